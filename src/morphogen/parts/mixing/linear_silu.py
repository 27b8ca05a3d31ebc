"""A plain branch of two linear maps with a SiLU between them. D model dim, F hidden."""

from typing import TYPE_CHECKING, ClassVar, Literal, Self

import numpy as np
from pydantic import PositiveInt

from morphogen.parts.contract.operator import BlockT, block_operator, operator
from morphogen.parts.contract.part import Context, Cost, Part
from morphogen.parts.contract.tensors import ZEROS, Tensor
from morphogen.parts.contract.widths import Width, times

if TYPE_CHECKING:
    from torch import nn


class LinearSiLU(Part):
    """down(silu(up x)), both with a bias: what a `custom` extra that nobody had registered was in the older system."""

    slot: ClassVar = "extra"
    neutral_fields: ClassVar = frozenset({"hidden"})

    kind: Literal["linear_silu"] = "linear_silu"
    hidden: PositiveInt | None = None
    """Units between the two maps; null: as many as the residual stream."""

    def units(self, ctx: Context) -> int:
        """`hidden` with its default."""
        return self.hidden or ctx.dim

    @property
    def pointwise(self) -> bool:
        """It is."""
        return True

    def within(self, ctx: Context) -> Self:
        """With the number of its units."""
        return self.model_copy(update={"hidden": self.units(ctx)})

    def tensors(self, ctx: Context) -> dict[str, Tensor]:
        """Two matrices and their biases, which start at zero."""
        return {
            "up.weight": Tensor(("hidden", "dim")),
            "up.bias": Tensor(("hidden",), ZEROS),
            "down.weight": Tensor(("dim", "hidden"), fresh_zero=("hidden",), writes=True),
            "down.bias": Tensor(("dim",), ZEROS, writes=True),
        }

    def sizes(self, ctx: Context) -> dict[str, int]:
        """hidden and dim."""
        return {"hidden": self.units(ctx), "dim": ctx.dim}

    def build(self, ctx: Context) -> "nn.Module":
        """(B, T, D) to (B, T, D)."""
        from morphogen.parts.mixing.linear_silu_layer import LinearSiLUBranch

        return LinearSiLUBranch(self, ctx)

    def cost(self, ctx: Context) -> Cost:
        """Two matmuls."""
        return Cost(flops=4.0 * self.units(ctx) * ctx.dim)

    def resized(self, target: Width, factor: float, ctx: Context) -> "LinearSiLU | None":
        """Other hidden units."""
        return self.evolve(hidden=times(self.units(ctx), factor)) if target == "ffn" else None

    def kept(self, ctx: Context) -> float:
        """Before and after the activation."""
        return 2.0 * self.units(ctx)


@block_operator(preserves=True, weight=0.0)
def insert_linear_silu(block: BlockT, ctx: Context, rng: np.random.Generator) -> BlockT | None:
    """A branch of two linear maps with a SiLU between them; its output starts at zero."""
    if any(isinstance(extra, LinearSiLU) for extra in block.extras):
        return None
    return block.evolve(extras=(*block.extras, LinearSiLU()))


@operator(LinearSiLU, preserves=True, weight=0.0)
def widen_linear_silu(part: LinearSiLU, ctx: Context, rng: np.random.Generator) -> LinearSiLU | None:
    """Half as many units again between the two maps, writing zero."""
    units = part.units(ctx)
    return part.evolve(hidden=units + max(1, units // 2))


@operator(LinearSiLU, preserves=False, weight=0.0)
def narrow_linear_silu(part: LinearSiLU, ctx: Context, rng: np.random.Generator) -> LinearSiLU | None:
    """A quarter fewer units between the two maps; those of largest norm stay."""
    units = part.units(ctx)
    return part.evolve(hidden=units - max(1, units // 4)) if units > 1 else None
