"""The module of `MemoryTokens`. B batch, T tokens, D model dim, H heads, E head dim, F heads times channels."""

import torch
from torch import Tensor, nn

from morphogen.ops.slot_attention import attend_learned
from morphogen.parts.contract.branch import Branch, State
from morphogen.parts.contract.layers import Linear, make_norm
from morphogen.parts.contract.part import Context
from morphogen.parts.memory.memory_tokens import MemoryTokens


class MemoryTokensBranch(Branch):
    """The module of `MemoryTokens`."""

    def __init__(self, part: MemoryTokens, ctx: Context) -> None:
        super().__init__()
        self.heads = part.heads
        self.norm = make_norm(ctx.norm, ctx.dim)
        self.q = Linear(ctx.dim, part.width)
        self.keys = nn.Parameter(torch.empty(part.heads, part.tokens, part.head_dim))
        self.values = nn.Parameter(torch.empty(part.heads, part.tokens, part.head_dim))
        self.o = Linear(part.width, ctx.dim)

    def mix(self, x_BTD: Tensor) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        q_BTHE = self.q(x_BTD).view(*x_BTD.shape[:2], self.heads, self.keys.shape[-1])
        return self.o(attend_learned(q_BTHE, self.keys, self.values).flatten(2))

    def mix_on(self, x_BTD: Tensor, state: State) -> Tensor:
        """Remembers nothing of the sequence."""
        return self.mix(x_BTD)


# --------------------------------------------------------------------------------------------------- operators
