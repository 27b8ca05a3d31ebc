"""Mamba: a state-space layer with a decay per channel and state entry (selective scan).

B batch, T tokens, D model dim, F inner channels, N state size, K taps, L rank of the step's projection
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from morphogen.parts.contract.operator import operator
from morphogen.parts.contract.part import Context, Cost
from morphogen.parts.contract.tensors import ONES, ZEROS, Axes, Init, Spec
from morphogen.parts.ssm.mamba2 import Mamba2
from morphogen.parts.ssm.ssm import SSM, STEPS, UNIFORM

if TYPE_CHECKING:
    from torch import nn


class Mamba(SSM):
    """Per channel: state[n] ← exp(dt·a[n])·state[n] + dt·b[n]·x, y = Σ_n c[n]·state[n] + d·x; then out(y ⊙ silu(z)).

    x is silu(conv(·)) of a projection of the input; b, c and, by way of `dt_rank` channels and a softplus, dt are
    projections of x. a = −exp(a_log), which starts as log 1…N (S4D-real). Ref: arXiv 2312.00752.
    """

    axes: ClassVar[Mapping[str, Axes]] = {
        "x.weight": ("inner", "dim"),
        "z.weight": ("inner", "dim"),
        "conv_x.weight": ("inner", "taps"),
        "conv_x.bias": ("inner",),
        "dt_down.weight": ("rank", "inner"),
        "b.weight": ("state", "inner"),
        "c.weight": ("state", "inner"),
        "dt_up.weight": ("inner", "rank"),
        "dt_bias": ("inner",),
        "a_log": (("state", "inner"),),  # flat, as weight decay is for matrices only
        "d": ("inner",),
        "out.weight": ("dim", "inner"),
    }
    initial: ClassVar = {
        "conv_x.weight": UNIFORM,
        "conv_x.bias": ZEROS,
        "dt_up.weight": UNIFORM,
        "dt_bias": STEPS,
        "d": ONES,
    }
    kind: Literal["mamba"] = "mamba"

    @property
    def unit(self) -> int:
        """A channel."""
        return 1

    def rank(self, ctx: Context) -> int:
        """`dt_rank`, or a sixteenth of the residual width."""
        return self.dt_rank or math.ceil(ctx.dim / 16)

    def inert(self) -> frozenset[str]:
        """It has no heads, and the chunk changes nothing but speed."""
        return frozenset({"head_dim", "chunk"})

    def sizes(self, ctx: Context) -> dict[str, int]:
        """inner, state, rank, taps, dim."""
        return {
            "inner": self.inner(ctx),
            "state": self.d_state,
            "rank": self.rank(ctx),
            "taps": self.d_conv,
            "dim": ctx.dim,
        }

    def specs(self, ctx: Context) -> dict[str, Spec]:
        """Decays start at 1…N in every channel."""
        specs = super().specs(ctx)
        specs["a_log"] = replace(specs["a_log"], init=Init("log_count", (self.d_state,)))
        return specs

    def silent(self) -> Mapping[str, tuple[str, ...]]:
        """New states are not read; new channels are read by nothing; a new rank adds nothing to the step."""
        return {
            "c.weight": ("state", "inner"),
            "b.weight": ("inner",),
            "dt_down.weight": ("inner",),
            "dt_up.weight": ("rank",),
            "out.weight": ("inner",),
            "conv_x.weight": ("taps",),
        }

    def build(self, ctx: Context) -> "nn.Module":
        """(B, T, D) to (B, T, D)."""
        from morphogen.parts.ssm.mamba_layer import MambaBranch

        return MambaBranch(self, ctx)

    def cost(self, ctx: Context) -> Cost:
        """Projections, convolution, and 7 per state entry: dt·a, its exp, dt·x·b, the update (2), the read (2)."""
        inner, size, rank = self.inner(ctx), self.d_state, self.rank(ctx)
        projections = ctx.dim * inner * (3 if self.gate else 2) + inner * (2 * rank + 2 * size)
        return Cost(
            flops=2.0 * (projections + self.d_conv * inner) + 7.0 * size * inner,
            state_bytes=4.0 * size * inner + 2.0 * (self.d_conv - 1) * inner,
        )

    def kept(self, ctx: Context) -> float:
        """As measured: what the channels go through (projection, convolution, activation, step, scan, gate) in 9.5
        copies, b and c in two each; states are computed again."""
        return 9.5 * self.inner(ctx) + 4.0 * self.d_state


@operator(Mamba, preserves=True)
def raise_dt_rank(part: Mamba, ctx: Context, rng: np.random.Generator) -> Mamba | None:
    """Twice the rank of the step's projection; the new half adds nothing yet."""
    return part.evolve(dt_rank=2 * part.rank(ctx)) if part.rank(ctx) < part.inner(ctx) else None


@operator(Mamba, preserves=False)
def lower_dt_rank(part: Mamba, ctx: Context, rng: np.random.Generator) -> Mamba | None:
    """Half the rank of the step's projection; the channels of largest norm stay."""
    return part.evolve(dt_rank=part.rank(ctx) // 2) if part.rank(ctx) > 1 else None


@operator(SSM, preserves=False)
def change_ssm_kind(part: SSM, ctx: Context, rng: np.random.Generator) -> SSM | None:
    """Mamba-2 becomes Mamba, or the other way round; projections, convolution and output are carried over."""
    fields = part.model_dump(exclude={"kind"})
    return Mamba(**fields) if part.label == "mamba2" else Mamba2(**fields)
