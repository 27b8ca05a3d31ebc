"""Mamba: a state-space layer with a decay per channel and state entry (selective scan).

B batch, T tokens, D model dim, F inner channels, N state size, K taps, L rank of the step's projection
"""

import math
from typing import TYPE_CHECKING, Literal, Self

import numpy as np

from morphogen.ops.names import OpName
from morphogen.parts.contract.operator import operator
from morphogen.parts.contract.part import Context, Cost
from morphogen.parts.contract.tensors import ONES, ZEROS, Init, Tensor
from morphogen.parts.ssm.mamba2 import Mamba2
from morphogen.parts.ssm.ssm import SSM, STEPS, UNIFORM

if TYPE_CHECKING:
    from torch import nn


class Mamba(SSM):
    """Per channel: state[n] ← exp(dt·a[n])·state[n] + dt·b[n]·x, y = Σ_n c[n]·state[n] + d·x; then out(y ⊙ silu(z)).

    x is silu(conv(·)) of a projection of the input; b, c and, by way of `dt_rank` channels and a softplus, dt are
    projections of x. a = −exp(a_log), which starts as log 1…N (S4D-real). Ref: arXiv 2312.00752.
    """

    kind: Literal["mamba"] = "mamba"

    @property
    def unit(self) -> int:
        """A channel."""
        return 1

    def rank(self, ctx: Context) -> int:
        """`dt_rank`, or a sixteenth of the residual width."""
        return self.dt_rank or math.ceil(ctx.dim / 16)

    def within(self, ctx: Context) -> Self:
        """The rank is a number, by default too."""
        return super().within(ctx).model_copy(update={"dt_rank": self.rank(ctx)})

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

    def tensors(self, ctx: Context) -> dict[str, Tensor]:
        """New states are not read; new channels are read by nothing; a new rank adds nothing to the step. Decays start
        at 1…N in every channel."""
        return {
            "x.weight": Tensor(("inner", "dim")),
            **({"z.weight": Tensor(("inner", "dim"))} if self.gate else {}),
            "conv_x.weight": Tensor(("inner", "taps"), UNIFORM, fresh_zero=("taps",), steady=True),
            "conv_x.bias": Tensor(("inner",), ZEROS),
            "dt_down.weight": Tensor(("rank", "inner"), fresh_zero=("inner",)),
            "b.weight": Tensor(("state", "inner"), fresh_zero=("inner",)),
            "c.weight": Tensor(("state", "inner"), fresh_zero=("state", "inner")),
            "dt_up.weight": Tensor(("inner", "rank"), UNIFORM, fresh_zero=("rank",)),
            "dt_bias": Tensor(("inner",), STEPS),
            # flat, as weight decay is for matrices only
            "a_log": Tensor((("state", "inner"),), Init("log_count", (self.d_state,))),
            "d": Tensor(("inner",), ONES),
            "out.weight": Tensor(("dim", "inner"), fresh_zero=("inner",), writes=True),
        }

    def build(self, ctx: Context) -> "nn.Module":
        """(B, T, D) to (B, T, D)."""
        from morphogen.parts.ssm.mamba_layer import MambaBranch

        return MambaBranch(self, ctx)

    def op(self) -> OpName:
        """A recurrence token by token."""
        return "selective_scan"

    def cost(self, ctx: Context) -> Cost:
        """Projections, convolution, and 7 per state entry: dt·a, its exp, dt·x·b, the update (2), the read (2)."""
        inner, size, rank = self.inner(ctx), self.d_state, self.rank(ctx)
        projections = ctx.dim * inner * (3 if self.gate else 2) + inner * (2 * rank + 2 * size)
        return Cost(
            flops=2.0 * (projections + self.d_conv * inner) + 7.0 * size * inner,
            state_bytes=4.0 * size * inner + 2.0 * (self.d_conv - 1) * inner,
            elementwise=2.0 * self.d_conv * inner + 5.0 * size * inner,  # the read is a matmul
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
