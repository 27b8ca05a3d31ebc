"""The module of `Retro`. B batch, T tokens, D model dim, S chunks."""

import torch
from torch import Tensor, nn

from morphogen.ops.slot_attention import mean_slots, weighted_slots
from morphogen.parts.contract.layers import Linear
from morphogen.parts.contract.part import Context
from morphogen.parts.memory.readers_layer import SlotBranch
from morphogen.parts.memory.retro import Retro


class RetroBranch(SlotBranch):
    """The module of `Retro`."""

    def __init__(self, part: Retro, ctx: Context) -> None:
        super().__init__(part, ctx)
        self.aggregator = part.aggregator
        self.pool = Linear(ctx.dim, 1) if part.aggregator != "mean" else None
        self.strength = nn.Parameter(torch.empty(()))

    def summarise(self, x_BTD: Tensor) -> Tensor:
        """(B, T, D) to (B, S, D)."""
        if self.aggregator == "mean" or self.pool is None:
            return mean_slots(x_BTD, self.slots)
        return weighted_slots(x_BTD, self.pool(x_BTD)[:, :, 0], self.slots.size, self.aggregator)

    def mix_on(self, x_BTD: Tensor, state: dict[str, Tensor]) -> Tensor:
        """As `mix`, after what `state` remembers."""
        y_BTD = super().mix_on(x_BTD, state)
        return y_BTD * torch.tanh(self.strength).to(y_BTD.dtype)


# --------------------------------------------------------------------------------------------------- operators
