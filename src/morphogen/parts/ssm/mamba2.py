"""Mamba-2: a state-space layer with one decay per head.

B batch, T tokens, D model dim, H heads, P head width, F = H·P inner channels, N state size, K taps, Q tokens of a chunk
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from morphogen.parts.contract.alignment import Alignment, AxisMap
from morphogen.parts.contract.operator import operator
from morphogen.parts.contract.part import Context, Cost, NormKind, Part
from morphogen.parts.contract.tensors import ONES, ZEROS, Axes, Init, Spec
from morphogen.parts.ssm.ssm import INNER, SSM, STEPS, UNIFORM, by_inner

if TYPE_CHECKING:
    from torch import nn


class Mamba2(SSM):
    """Per head: state ← exp(dt·a)·state + dt·b xᵀ, y = state c + d·x; then RMSNorm(y ⊙ silu(z)) and out.

    x, b, c are silu(conv(·)) of projections of the input, dt its projection through a softplus; b and c are shared by
    all heads. a = −exp(a_log). Ref: arXiv 2405.21060.
    """

    axes: ClassVar[Mapping[str, Axes]] = {
        "x.weight": (INNER, "dim"),
        "b.weight": ("state", "dim"),
        "c.weight": ("state", "dim"),
        "dt.weight": ("heads", "dim"),
        "z.weight": (INNER, "dim"),
        "conv_x.weight": (INNER, "taps"),
        "conv_x.bias": (INNER,),
        "conv_b.weight": ("state", "taps"),
        "conv_b.bias": ("state",),
        "conv_c.weight": ("state", "taps"),
        "conv_c.bias": ("state",),
        "a_log": ("heads",),
        "dt_bias": ("heads",),
        "d": ("heads",),
        "out.weight": ("dim", INNER),
    }
    initial: ClassVar = {
        **{f"conv_{name}.weight": UNIFORM for name in "xbc"},
        **{f"conv_{name}.bias": ZEROS for name in "xbc"},
        "a_log": Init("log_uniform", (1.0, 16.0)),
        "dt_bias": STEPS,
        "d": ONES,
    }
    kind: Literal["mamba2"] = "mamba2"

    @property
    def unit(self) -> int:
        """A head."""
        return self.head_dim

    def inert(self) -> frozenset[str]:
        """It has no low-rank step, and the chunk changes nothing but speed."""
        return frozenset({"dt_rank", "chunk"})

    def norms(self, ctx: Context) -> Mapping[str, tuple[str, NormKind]]:
        """The branch's norm, and that of the gated output."""
        return {"norm": ("dim", ctx.norm), "out_norm": ("inner", "rmsnorm")}

    def sizes(self, ctx: Context) -> dict[str, int]:
        """heads, head_dim and both as inner; state, taps, dim."""
        return {
            "heads": self.units(ctx),
            "head_dim": self.head_dim,
            "inner": self.inner(ctx),
            "state": self.d_state,
            "taps": self.d_conv,
            "dim": ctx.dim,
        }

    def specs(self, ctx: Context) -> dict[str, Spec]:
        """The output's norm has the heads' channels as its axis."""
        specs = super().specs(ctx)
        specs["out_norm.weight"] = replace(specs["out_norm.weight"], axes=(INNER,))
        return specs

    def silent(self) -> Mapping[str, tuple[str, ...]]:
        """New states are not read. New channels reach the norm as zeros, as its statistics are over all of them."""
        zero: dict[str, tuple[str, ...]] = {"c.weight": ("state",), "conv_c.bias": ("state",)}
        zero |= {f"conv_{name}.weight": ("taps",) for name in "xbc"}
        return zero | ({"z.weight": INNER} if self.gate else {"x.weight": INNER, "conv_x.bias": INNER})

    def align(self, parent: Part, ctx: Context, parent_ctx: Context) -> Alignment | None:
        """Beyond the shared rules: the same inner channels in more heads (decay and step copied) or fewer (means)."""
        plain = super().align(parent, ctx, parent_ctx)
        if plain is None or not isinstance(parent, Mamba2) or self.head_dim == parent.head_dim:
            return plain
        heads, their_heads = self.units(ctx), parent.units(parent_ctx)
        if self.inner(ctx) != parent.inner(parent_ctx) or max(heads, their_heads) % min(heads, their_heads):
            return plain
        axes = {name: by_inner(spec.axes) for name, spec in self.specs(ctx).items()}
        if heads > their_heads:
            index = tuple(i * their_heads // heads for i in range(heads))
            take, note = AxisMap(how="index", size=heads, parent_size=their_heads, index=index), plain.note
        else:
            each = their_heads // heads
            groups = tuple(tuple(range(i * each, (i + 1) * each)) for i in range(heads))
            take = AxisMap(how="mean", size=heads, parent_size=their_heads, groups=groups)
            note = "; ".join(filter(None, (plain.note, "heads merged by mean")))
        maps = {**plain.maps, "heads": take}
        return replace(
            plain, axes=axes, parent_axes=axes, maps=maps, exact=plain.exact and take.how == "index", note=note
        )

    def build(self, ctx: Context) -> "nn.Module":
        """(B, T, D) to (B, T, D)."""
        from morphogen.parts.ssm.mamba2_layer import Mamba2Branch

        return Mamba2Branch(self, ctx)

    def cost(self, ctx: Context) -> Cost:
        """Projections and convolution, and chunk by chunk the scan.

        Per token, in chunks of Q, multiply-adds: scores Q·N, their use Q·F, states 2·N·F, decays Q·H.
        """
        inner, size = self.inner(ctx), self.d_state
        channels = inner + 2 * size
        heads = self.units(ctx)
        projections = ctx.dim * (channels + heads + inner * (2 if self.gate else 1))
        chunk = min(self.chunk_tokens, ctx.seq_len)
        padded = chunk * math.ceil(ctx.seq_len / chunk) / ctx.seq_len
        scan = padded * (chunk * (size + inner) + 2 * size * inner + chunk * heads)
        return Cost(
            flops=2.0 * (projections + self.d_conv * channels + scan),
            state_bytes=4.0 * size * inner + 2.0 * (self.d_conv - 1) * channels,
        )

    def kept(self, ctx: Context) -> float:
        """As measured: what the channels go through (projection, convolution, activation, scan, norm, gate) in nine
        copies, b and c in three each, and a state per chunk."""
        inner, chunk = self.inner(ctx), min(self.chunk_tokens, ctx.seq_len)
        return 9.0 * inner + 6.0 * self.d_state + self.d_state * inner / chunk


@operator(Mamba2, preserves=True)
def split_ssm_heads(part: Mamba2, ctx: Context, rng: np.random.Generator) -> Mamba2 | None:
    """Twice the heads on the same channels: the halves of a head start with its decay and step."""
    return _regrouped(part, part.head_dim // 2, ctx) if part.head_dim % 2 == 0 else None


@operator(Mamba2, preserves=False)
def merge_ssm_heads(part: Mamba2, ctx: Context, rng: np.random.Generator) -> Mamba2 | None:
    """Half the heads on the same channels: neighbours merge, their decay and step become the mean."""
    return _regrouped(part, part.head_dim * 2, ctx) if part.units(ctx) % 2 == 0 else None


def _regrouped(part: Mamba2, head_dim: int, ctx: Context) -> Mamba2 | None:
    """The same inner channels in heads of another width."""
    return part.evolve(head_dim=head_dim, expand=round(part.inner(ctx) / ctx.dim, 6))
