"""The module of `MLP`. B batch, T tokens, D model dim, F hidden."""

from torch import Tensor

from morphogen.ops.elementwise import ACTIVATIONS, gated_activation
from morphogen.parts.contract.branch import Branch, State
from morphogen.parts.contract.layers import Linear, make_norm
from morphogen.parts.contract.part import Context
from morphogen.parts.ffn.mlp import GATED, MLP


class FeedForward(Branch):
    """The module of `MLP`."""

    def __init__(self, part: MLP, ctx: Context) -> None:
        super().__init__()
        self.activation = part.activation
        self.norm = make_norm(ctx.norm, ctx.dim)
        self.up = Linear(ctx.dim, part.hidden, part.bias)
        self.gate = Linear(ctx.dim, part.hidden, part.bias) if part.activation in GATED else None
        self.down = Linear(part.hidden, ctx.dim, part.bias)

    def mix_on(self, x_BTD: Tensor, state: State) -> Tensor:
        """Remembers nothing."""
        return self.mix(x_BTD)

    def mix(self, x_BTD: Tensor) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        up_BTF = self.up(x_BTD)
        if self.gate is None:
            h_BTF = ACTIVATIONS[self.activation](up_BTF)
        else:
            h_BTF = gated_activation(self.activation, self.gate(x_BTD), up_BTF)
        return self.down(h_BTF)
