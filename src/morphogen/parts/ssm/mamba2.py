"""Mamba-2: a state-space layer with one decay per head.

B batch, T tokens, D model dim, H heads, P head width, F = H·P inner channels, N state size, K taps, Q tokens of a chunk
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from morphogen.ops.names import OpName
from morphogen.parts.contract.alignment import Alignment, AxisMap
from morphogen.parts.contract.operator import operator
from morphogen.parts.contract.part import Context, Cost, NormKind, Part
from morphogen.parts.contract.tensors import ONES, ZEROS, Axis, Init, Tensor
from morphogen.parts.contract.widths import Width, times
from morphogen.parts.ssm.ssm import INNER, SSM, STEPS, UNIFORM, by_inner, with_units

if TYPE_CHECKING:
    from torch import nn


class Mamba2(SSM):
    """Per head: state ← exp(dt·a)·state + dt·b xᵀ, y = state c + d·x; then RMSNorm(y ⊙ silu(z)) and out.

    x, b, c are silu(conv(·)) of projections of the input, dt its projection through a softplus; b and c are shared by
    all heads. a = −exp(a_log). Ref: arXiv 2405.21060.
    """

    kind: Literal["mamba2"] = "mamba2"

    @property
    def unit(self) -> int:
        """A head."""
        return self.head_dim

    def inert(self) -> frozenset[str]:
        """It has no low-rank step, and the chunk changes nothing but speed."""
        return frozenset({"dt_rank", "chunk"})

    def norms(self, ctx: Context) -> Mapping[str, tuple[Axis, NormKind]]:
        """The branch's norm, and that of the gated output."""
        return {"norm": ("dim", ctx.norm), "out_norm": (INNER, "rmsnorm")}

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

    def tensors(self, ctx: Context) -> dict[str, Tensor]:
        """New states are not read. New channels reach the norm as zeros, as its statistics are over all of them: by the
        gate, or without one by what they are made of."""
        ungated = () if self.gate else INNER
        return {
            "x.weight": Tensor((INNER, "dim"), fresh_zero=ungated),
            "b.weight": Tensor(("state", "dim")),
            "c.weight": Tensor(("state", "dim"), fresh_zero=("state",)),
            "dt.weight": Tensor(("heads", "dim")),
            **({"z.weight": Tensor((INNER, "dim"), fresh_zero=INNER)} if self.gate else {}),
            "conv_x.weight": Tensor((INNER, "taps"), UNIFORM, fresh_zero=("taps",), steady=True),
            "conv_x.bias": Tensor((INNER,), ZEROS, fresh_zero=ungated),
            "conv_b.weight": Tensor(("state", "taps"), UNIFORM, fresh_zero=("taps",), steady=True),
            "conv_b.bias": Tensor(("state",), ZEROS),
            "conv_c.weight": Tensor(("state", "taps"), UNIFORM, fresh_zero=("taps",), steady=True),
            "conv_c.bias": Tensor(("state",), ZEROS, fresh_zero=("state",)),
            "a_log": Tensor(("heads",), Init("log_uniform", (1.0, 16.0))),
            "dt_bias": Tensor(("heads",), STEPS),
            "d": Tensor(("heads",), ONES),
            "out.weight": Tensor(("dim", INNER), writes=True),
        }

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

    def resized(self, target: Width, factor: float, ctx: Context) -> "Mamba2 | None":
        """Other heads, or channels of them."""
        units = self.units(ctx)
        if target == "heads":
            return with_units(self, times(units, factor), ctx)
        width = times(self.head_dim, factor)
        return self.evolve(head_dim=width, expand=round(units * width / ctx.dim, 6)) if target == "head_dim" else None

    def build(self, ctx: Context) -> "nn.Module":
        """(B, T, D) to (B, T, D)."""
        from morphogen.parts.ssm.mamba2_layer import Mamba2Branch

        return Mamba2Branch(self, ctx)

    def op(self) -> OpName:
        """A recurrence in chunks."""
        return "ssd"

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
            elementwise=2.0 * self.d_conv * channels,
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
