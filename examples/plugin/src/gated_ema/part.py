"""A gated exponential moving average as a kind of part, and the operators that evolution has for it.

Nothing here imports torch: what a part is and costs is asked where nothing is trained.
"""

import math
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from pydantic import PositiveInt

from morphogen.parts.contract.operator import BlockT, block_operator, operator
from morphogen.parts.contract.part import Context, Cost, Part
from morphogen.parts.contract.tensors import Init, Tensor

if TYPE_CHECKING:
    from torch import nn

#: Tokens of a chunk of the average.
CHUNK = 32


class GatedEMA(Part):
    """o(sigmoid(g) ⊙ y) with u, g = W x and y_t = a·y_{t−1} + (1 − a)·u_t, where each channel learns its a."""

    slot: ClassVar = "extra"
    neutral_fields: ClassVar = frozenset({"width"})

    kind: Literal["gated_ema"] = "gated_ema"
    width: PositiveInt = 32
    """Channels."""

    @classmethod
    def anew(cls, kind: str, ctx: Context) -> "GatedEMA":
        """Half as many channels as the residual stream, where evolution puts one in."""
        return cls(width=max(8, ctx.dim // 2))

    def tensors(self, ctx: Context) -> dict[str, Tensor]:
        """u and g by one map, the logit of a, and the output's projection, where new channels write zero."""
        return {
            "ug.weight": Tensor((("way", "width"), "dim")),
            "logit": Tensor(("width",), init=Init("normal", (2.0,))),
            "o.weight": Tensor(("dim", "width"), fresh_zero=("width",), writes=True),
        }

    def sizes(self, ctx: Context) -> dict[str, int]:
        """way (u, g), width and dim."""
        return {"way": 2, "width": self.width, "dim": ctx.dim}

    def build(self, ctx: Context) -> "nn.Module":
        """(B, T, D) to (B, T, D)."""
        from gated_ema.layer import GatedEMABranch

        return GatedEMABranch(self, ctx)

    def cost(self, ctx: Context) -> Cost:
        """Three projections, and the average as `ssd` computes it: a head per channel, one state, in chunks.

        Per token, in chunks of Q, multiply-adds: scores Q, decays Q and their use Q per channel, the state 2 per
        channel. Beside these the gate's product and that of u. The last average is remembered in fp32.
        """
        chunk = min(CHUNK, ctx.seq_len)
        padded = chunk * math.ceil(ctx.seq_len / chunk) / ctx.seq_len
        average = padded * (chunk * (1 + 2 * self.width) + 2 * self.width)
        products = 2.0 * self.width
        return Cost(
            flops=2.0 * (3 * ctx.dim * self.width + average) + products,
            state_bytes=4.0 * self.width,
            elementwise=products,
        )


@block_operator(preserves=True)
def insert_gated_ema(block: BlockT, ctx: Context, rng: np.random.Generator) -> BlockT | None:
    """A gated exponential moving average; its output starts at zero."""
    if any(isinstance(extra, GatedEMA) for extra in block.extras):
        return None
    return block.evolve(extras=(*block.extras, GatedEMA.anew("gated_ema", ctx)))


@operator(GatedEMA, preserves=True)
def widen_gated_ema(part: GatedEMA, ctx: Context, rng: np.random.Generator) -> GatedEMA | None:
    """Half as many channels again, writing zero."""
    return part.evolve(width=part.width + max(1, part.width // 2))
