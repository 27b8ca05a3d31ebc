"""The module of `LinearSiLU`. B batch, T tokens, D model dim."""

from torch import Tensor
from torch.nn import functional as F

from morphogen.parts.contract.branch import Branch, State
from morphogen.parts.contract.layers import Linear, make_norm
from morphogen.parts.contract.part import Context
from morphogen.parts.mixing.linear_silu import LinearSiLU


class LinearSiLUBranch(Branch):
    """The module of `LinearSiLU`."""

    def __init__(self, part: LinearSiLU, ctx: Context) -> None:
        super().__init__()
        self.norm = make_norm(ctx.norm, ctx.dim)
        self.up = Linear(ctx.dim, part.units(ctx), bias=True)
        self.down = Linear(part.units(ctx), ctx.dim, bias=True)

    def mix_on(self, x_BTD: Tensor, state: State) -> Tensor:
        """Remembers nothing."""
        return self.mix(x_BTD)

    def mix(self, x_BTD: Tensor) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        return self.down(F.silu(self.up(x_BTD)))
