"""A gated short convolution. B batch, T tokens, D model dim, W channels, K taps."""

from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Literal, Self

import numpy as np
from pydantic import PositiveInt

from morphogen.parts.contract.alignment import Alignment, AxisMap
from morphogen.parts.contract.operator import BlockT, block_operator, operator
from morphogen.parts.contract.part import Context, Cost, Part
from morphogen.parts.contract.tensors import Tensor

if TYPE_CHECKING:
    from torch import nn


class ShortConv(Part):
    """o(c ⊙ conv(b ⊙ h)) with b, c, h = W x and a causal convolution of each channel over `kernel` tokens.

    The gated short convolution of LFM2, arXiv 2511.23404, after H3's, 2212.14052.
    """

    slot: ClassVar = "extra"
    neutral_fields: ClassVar = frozenset({"width", "kernel"})

    kind: Literal["short_conv"] = "short_conv"
    kernel: PositiveInt = 4
    """Tokens that the convolution reads, its own first, so that older ones can be added."""
    width: PositiveInt | None = None
    """Channels of the convolution; null: as many as the residual stream."""

    def channels(self, ctx: Context) -> int:
        """`width` with its default."""
        return self.width or ctx.dim

    def within(self, ctx: Context) -> Self:
        """Taps beyond the sequence read nothing."""
        return self.model_copy(update={"kernel": min(self.kernel, ctx.seq_len), "width": self.channels(ctx)})

    def tensors(self, ctx: Context) -> dict[str, Tensor]:
        """b, c and h by one map, the taps, and the output's projection."""
        return {
            "bch.weight": Tensor((("way", "width"), "dim")),
            "taps": Tensor(("width", "kernel"), fresh_zero=("kernel",), steady=True),
            "o.weight": Tensor(("dim", "width"), fresh_zero=("width",), writes=True),
        }

    def sizes(self, ctx: Context) -> dict[str, int]:
        """way (b, c, h), width, kernel and dim."""
        return {"way": 3, "width": self.channels(ctx), "kernel": self.kernel, "dim": ctx.dim}

    def build(self, ctx: Context) -> "nn.Module":
        """(B, T, D) to (B, T, D)."""
        from morphogen.parts.mixing.short_conv_layer import ShortConvBranch

        return ShortConvBranch(self, ctx)

    def cost(self, ctx: Context) -> Cost:
        """Projections and taps; the last kernel − 1 inputs of the convolution are remembered."""
        width = self.channels(ctx)
        return Cost(
            flops=2.0 * width * (4 * ctx.dim + self.kernel),
            state_bytes=2.0 * width * (self.kernel - 1),
            elementwise=2.0 * width * self.kernel,
        )

    def align(self, parent: Part, ctx: Context, parent_ctx: Context) -> Alignment | None:
        """Beyond the default: fewer taps leave out the oldest."""
        plain = super().align(parent, ctx, parent_ctx)
        if plain is None or not isinstance(parent, ShortConv) or self.kernel >= parent.kernel:
            return plain
        taps = AxisMap(how="first", size=self.kernel, parent_size=parent.kernel)
        return replace(plain, maps={**plain.maps, "kernel": taps}, exact=False, note="the oldest taps left out")


@block_operator(preserves=True)
def insert_short_conv(block: BlockT, ctx: Context, rng: np.random.Generator) -> BlockT | None:
    """A gated short convolution; its output starts at zero. Ref: arXiv 2511.23404."""
    if any(isinstance(extra, ShortConv) for extra in block.extras):
        return None
    return block.evolve(extras=(*block.extras, ShortConv(kernel=int(rng.integers(3, 6)))))


@operator(ShortConv, preserves=True)
def grow_short_conv(part: ShortConv, ctx: Context, rng: np.random.Generator) -> ShortConv | None:
    """One more tap, starting at zero, or half as many channels again, writing zero."""
    if rng.random() < 0.5:
        return part.evolve(kernel=part.kernel + 1) if part.kernel < 16 else None
    width = part.channels(ctx)
    return part.evolve(width=width + max(1, width // 2))


@operator(ShortConv, preserves=False)
def shrink_short_conv(part: ShortConv, ctx: Context, rng: np.random.Generator) -> ShortConv | None:
    """Without the oldest tap, or a quarter fewer channels; those of largest norm stay."""
    if rng.random() < 0.5:
        return part.evolve(kernel=part.kernel - 1) if part.kernel > 2 else None
    width = part.channels(ctx)
    return part.evolve(width=width - max(1, width // 4)) if width > 1 else None
