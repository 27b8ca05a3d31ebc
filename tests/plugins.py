"""A plug-in as a user writes one. B batch, T tokens, D model dim, W width."""

from importlib.metadata import EntryPoint
from typing import ClassVar, Self, cast

import numpy as np
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from morphogen.parts.contract.branch import Branch, State
from morphogen.parts.contract.layers import Linear, make_norm
from morphogen.parts.contract.part import Context, Cost
from morphogen.parts.contract.tensors import Tensor as Declared
from morphogen.parts.mixing.custom import Plugin


class Bottleneck(Plugin):
    """down(silu(up x)) through `width` channels."""

    neutral_fields: ClassVar = frozenset({"width"})
    tune_preserves: ClassVar = True

    width: PositiveInt = 8

    def tensors(self, ctx: Context) -> dict[str, Declared]:
        return {
            "up.weight": Declared(("width", "dim")),
            "down.weight": Declared(("dim", "width"), fresh_zero=("width",), writes=True),
        }

    def sizes(self, ctx: Context) -> dict[str, int]:
        return {"width": self.width, "dim": ctx.dim}

    def build(self, ctx: Context) -> nn.Module:
        return BottleneckBranch(self, ctx)

    def cost(self, ctx: Context) -> Cost:
        return Cost(flops=4.0 * self.width * ctx.dim)

    def tune(self, ctx: Context, rng: np.random.Generator) -> Self | None:
        """Twice the width; the new channels write zero."""
        return self.evolve(width=2 * self.width)


class Sibling(Bottleneck):
    """Another plug-in, of the same tensors."""


class BottleneckBranch(Branch):
    def __init__(self, part: Bottleneck, ctx: Context) -> None:
        super().__init__()
        self.norm = make_norm(ctx.norm, ctx.dim)
        self.up = Linear(ctx.dim, part.width)
        self.down = Linear(part.width, ctx.dim)

    def mix(self, x_BTD: Tensor) -> Tensor:
        return cast(Tensor, self.down(F.silu(self.up(x_BTD))))

    def mix_on(self, x_BTD: Tensor, state: State) -> Tensor:
        return self.mix(x_BTD)


def installed(group: str) -> list[EntryPoint]:
    """As `importlib.metadata.entry_points` where the plug-in above is installed."""
    return [EntryPoint("bottleneck", "plugins:Bottleneck", group)] if group == "morphogen.parts" else []
