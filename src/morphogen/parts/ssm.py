"""State-space layers: what their kinds share, in data, module and operators.

B batch, T tokens, D model dim, F inner channels, N state size, K taps of the convolution
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

import numpy as np
import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from morphogen.ops.causal_conv import causal_conv
from morphogen.parts.alignment import Alignment, AxisMap
from morphogen.parts.base import Context, Part, operator
from morphogen.parts.branch import Branch, State
from morphogen.parts.layers import Linear, make_norm
from morphogen.parts.tensors import Axes, Init

#: Mamba-2's inner channels are its heads' channels.
INNER = ("heads", "head_dim")
#: What both kinds have and may inherit from one another.
SHARED = frozenset({"x.weight", "z.weight", "conv_x.weight", "conv_x.bias", "out.weight"})
#: Linear layers of the published models start uniform, with this share of the deviation of `NORMAL`.
UNIFORM = Init("fan_in_normal", (1 / math.sqrt(3),))
#: Step sizes after the softplus at the start.
STEPS = Init("softplus_inverse", (1e-3, 1e-1))


class SSM(Part):
    """What the kinds share: an input that a short causal convolution and SiLU pass on to a recurrence.

    d_state: state entries per inner channel. d_conv: taps. expand: inner channels per residual channel, rounded to
    whole heads, at least one. head_dim: of mamba2. dt_rank: of mamba, a sixteenth of the residual width when null.
    chunk: tokens worked on at a time (mamba2: in one matmul, mamba: between two states kept for the backward pass); it
    changes speed and memory only, null chooses. gate: the output times silu(z), z a projection of the input.
    """

    slot: ClassVar = "ssm"
    writers: ClassVar = frozenset({"out.weight"})
    size_fields: ClassVar = frozenset({"d_state", "d_conv", "expand", "head_dim", "dt_rank", "chunk"})

    d_state: PositiveInt = 16
    d_conv: PositiveInt = 4
    expand: PositiveFloat = 2.0
    head_dim: PositiveInt = 32
    dt_rank: PositiveInt | None = None
    chunk: PositiveInt | None = None
    gate: bool = True

    def unread(self) -> frozenset[str]:
        """The chunk decides the speed."""
        return super().unread() - {"chunk"}

    @property
    def unit(self) -> int:
        """Inner channels come in multiples of it."""
        raise NotImplementedError  # every kind has its own

    def units(self, ctx: Context) -> int:
        """How many of them."""
        return max(1, round(self.expand * ctx.dim / self.unit))

    def inner(self, ctx: Context) -> int:
        """Inner channels."""
        return self.units(ctx) * self.unit

    @property
    def chunk_tokens(self) -> int:
        """`chunk`, or what is fast at this state size."""
        return self.chunk or (32 if self.d_state <= 32 else 64)

    def absent(self, ctx: Context) -> frozenset[str]:
        """Only a gate has a projection."""
        return frozenset() if self.gate else frozenset({"z.weight"})

    def silent(self) -> Mapping[str, tuple[str, ...]]:
        """Tensor -> axes along which fresh entries are zero, so that what is new changes nothing."""
        raise NotImplementedError  # every kind has its own

    def align(self, parent: Part, ctx: Context, parent_ctx: Context) -> Alignment | None:
        """Beyond the default: new taps come before the old ones, and another kind takes over what both have."""
        if not isinstance(parent, SSM):
            return None
        plain = super().align(parent, ctx, parent_ctx)
        if plain is None:
            return self._from_other_kind(parent, ctx, parent_ctx)
        plain = replace(plain, zero=self.silent())
        if self.d_conv == parent.d_conv:
            return plain
        shift = parent.d_conv - self.d_conv
        index = tuple(max(i + shift, -1) for i in range(self.d_conv))
        taps = AxisMap(how="index", size=self.d_conv, parent_size=parent.d_conv, index=index)
        notes = [plain.note] if plain.note else []
        notes += ["oldest taps of the convolution removed"] if shift > 0 else []
        return replace(plain, maps={"taps": taps}, exact=plain.exact and shift < 0, note="; ".join(notes))

    def _from_other_kind(self, parent: "SSM", ctx: Context, parent_ctx: Context) -> Alignment:
        mine, theirs = self.specs(ctx), parent.specs(parent_ctx)
        common = {n for n in mine if n in theirs and (n in SHARED or n.startswith("norm."))}
        if self.d_conv != parent.d_conv:
            common -= {"conv_x.weight"}
        axes = {name: by_inner(mine[name].axes) for name in common}
        return Alignment(
            sources={name: name if name in common else None for name in mine},
            exact=False,
            note=f"{parent.label} became {self.label}",
            axes=axes,
            parent_axes=axes,
            scales=self.norm_scales(parent, ctx, parent_ctx),
        )


def by_inner(axes: Axes) -> Axes:
    """The same axes with a head's channels and the heads as one."""
    return tuple("inner" if axis == INNER else axis for axis in axes)


# ------------------------------------------------------------------------------------------------------ module


class Taps(nn.Module):
    """The tensors of a causal convolution, every channel by itself; the last tap is the present token's."""

    def __init__(self, channels: int, taps: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, taps))
        self.bias = nn.Parameter(torch.empty(channels))


class SSMBranch(Branch):
    """What the kinds' modules share."""

    def __init__(self, part: SSM, ctx: Context) -> None:
        super().__init__()
        inner = part.inner(ctx)
        self.norm = make_norm(ctx.norm, ctx.dim)
        self.x = Linear(ctx.dim, inner)
        self.z = Linear(ctx.dim, inner) if part.gate else None
        self.conv_x = Taps(inner, part.d_conv)
        self.dt_bias = nn.Parameter(torch.empty(part.units(ctx)))
        self.d = nn.Parameter(torch.empty(part.units(ctx)))
        self.out = Linear(inner, ctx.dim)
        self.chunk = part.chunk_tokens

    def mix(self, x_BTD: Tensor) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        return self.mix_on(x_BTD, {})

    def gated(self, y_BTF: Tensor, z_BTF: list[Tensor]) -> Tensor:
        """y ⊙ silu(z), where there is a z."""
        return y_BTF * F.silu(z_BTF[0]) if z_BTF else y_BTF


def stacked(layers: Sequence[Linear], x: Tensor) -> Tensor:
    """The layers' outputs side by side, by one matmul."""
    return F.linear(x, torch.cat([layer.weight for layer in layers]))


def convolve(x_BTF: Tensor, taps_FK: Tensor, bias_F: Tensor, state: State) -> Tensor:
    """silu(conv(x)), (B, T, F); `state` remembers the K−1 inputs before."""
    known = 0
    if "conv" in state:
        known = state["conv"].shape[1]
        x_BTF = torch.cat([state["conv"].to(x_BTF.dtype), x_BTF], 1)
    state["conv"] = x_BTF[:, max(0, x_BTF.shape[1] - taps_FK.shape[1] + 1) :].clone()
    return causal_conv(x_BTF, taps_FK, bias_F, silu=True)[:, known:]


def step_sizes(dt_BTF: Tensor, bias_F: Tensor) -> Tensor:
    """softplus(dt + bias), in fp32 at least."""
    return F.softplus(dt_BTF.to(torch.promote_types(dt_BTF.dtype, torch.float32)) + bias_F)


# --------------------------------------------------------------------------------------------------- operators


def with_units(part: SSM, units: int, ctx: Context) -> SSM | None:
    """The part with so many heads or channels; None where that is no change."""
    return part.evolve(expand=round(units * part.unit / ctx.dim, 6)) if units != part.units(ctx) else None


@operator(SSM, preserves=True)
def widen_ssm(part: SSM, ctx: Context, rng: np.random.Generator) -> SSM | None:
    """More heads or inner channels; the new ones start silent."""
    units = part.units(ctx)
    return with_units(part, max(units + 1, round(units * float(rng.choice([1.25, 1.5, 2.0])))), ctx)


@operator(SSM, preserves=False)
def narrow_ssm(part: SSM, ctx: Context, rng: np.random.Generator) -> SSM | None:
    """Fewer heads or inner channels; those of largest norm stay."""
    units = part.units(ctx)
    return with_units(part, min(units - 1, round(units * float(rng.choice([0.5, 0.75])))), ctx) if units > 1 else None


@operator(SSM, preserves=True)
def widen_ssm_state(part: SSM, ctx: Context, rng: np.random.Generator) -> SSM | None:
    """Twice the state, up to 256; the new entries are not read."""
    return part.evolve(d_state=2 * part.d_state) if part.d_state <= 128 else None


@operator(SSM, preserves=False)
def narrow_ssm_state(part: SSM, ctx: Context, rng: np.random.Generator) -> SSM | None:
    """Half the state; the entries of largest norm stay."""
    return part.evolve(d_state=part.d_state // 2) if part.d_state > 1 else None


@operator(SSM, preserves=True)
def grow_ssm_conv(part: SSM, ctx: Context, rng: np.random.Generator) -> SSM | None:
    """A convolution one to four taps longer, up to 16; the new, older taps start at zero."""
    return part.evolve(d_conv=min(16, part.d_conv + int(rng.integers(1, 5)))) if part.d_conv < 16 else None


@operator(SSM, preserves=False)
def shrink_ssm_conv(part: SSM, ctx: Context, rng: np.random.Generator) -> SSM | None:
    """A shorter convolution, without the oldest taps."""
    return part.evolve(d_conv=int(rng.integers(1, part.d_conv))) if part.d_conv > 1 else None


@operator(SSM, preserves=False)
def toggle_ssm_gate(part: SSM, ctx: Context, rng: np.random.Generator) -> SSM | None:
    """The output's gate put in or taken away."""
    return part.evolve(gate=not part.gate)
