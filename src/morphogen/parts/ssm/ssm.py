"""State-space layers: what their kinds share, in data, module and operators.

B batch, T tokens, D model dim, F inner channels, N state size, K taps of the convolution
"""

import math
from dataclasses import replace
from typing import ClassVar, Self, TypeVar

import numpy as np
from pydantic import PositiveFloat, PositiveInt

from morphogen.parts.contract.alignment import Alignment, AxisMap
from morphogen.parts.contract.operator import operator
from morphogen.parts.contract.part import Context, Part
from morphogen.parts.contract.tensors import Axes, Init

#: Mamba-2's inner channels are its heads' channels.
INNER = ("heads", "head_dim")
#: What both kinds have and may inherit from one another.
SHARED = frozenset({"x.weight", "z.weight", "conv_x.weight", "conv_x.bias", "out.weight"})
#: Linear layers of the published models start uniform, with this share of the deviation of `NORMAL`.
UNIFORM = Init("fan_in_normal", (1 / math.sqrt(3),))
#: Step sizes after the softplus at the start.
STEPS = Init("softplus_inverse", (1e-3, 1e-1))


class SSM(Part):
    """What the kinds share: an input that a short causal convolution and SiLU pass on to a recurrence."""

    slot: ClassVar = "ssm"
    neutral_fields: ClassVar = frozenset({"d_state", "d_conv", "expand", "head_dim", "dt_rank", "chunk"})

    d_state: PositiveInt = 16
    """State entries per inner channel."""
    d_conv: PositiveInt = 4
    """Tokens that the short convolution reads."""
    expand: PositiveFloat = 2.0
    """Inner channels per residual channel, rounded to whole heads, at least one."""
    head_dim: PositiveInt = 32
    """Inner channels of a head; of mamba2."""
    dt_rank: PositiveInt | None = None
    """Channels that the step size is made by; of mamba; null: a sixteenth of the residual width."""
    chunk: PositiveInt | None = None
    """Tokens worked on at a time (mamba2: in one matmul, mamba: between two states kept for the backward pass); changes
    speed and memory only; null chooses."""
    gate: bool = True
    """Whether the output is multiplied by silu(z), z a projection of the input."""

    def within(self, ctx: Context) -> Self:
        """Taps beyond the sequence read nothing; inner channels come in whole heads."""
        taps = min(self.d_conv, ctx.seq_len)
        return self.model_copy(update={"d_conv": taps, "expand": self.inner(ctx) / ctx.dim})

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

    def align(self, parent: Part, ctx: Context, parent_ctx: Context) -> Alignment | None:
        """Beyond the default: new taps come before the old ones, and another kind takes over what both have."""
        if not isinstance(parent, SSM):
            return None
        plain = super().align(parent, ctx, parent_ctx)
        if plain is None:
            return self._from_other_kind(parent, ctx, parent_ctx)
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


S = TypeVar("S", bound=SSM)


def with_units(part: S, units: int, ctx: Context) -> S | None:
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
