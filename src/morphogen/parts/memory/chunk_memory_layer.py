"""The module of `ChunkMemory`. B batch, T tokens, D model dim, S slots."""

from torch import Tensor

from morphogen.ops.slot_attention import mean_slots
from morphogen.parts.memory.readers_layer import SlotBranch


class ChunkMemoryBranch(SlotBranch):
    """The module of `ChunkMemory`."""

    def summarise(self, x_BTD: Tensor) -> Tensor:
        """(B, T, D) to (B, S, D)."""
        return mean_slots(x_BTD, self.slots)


# --------------------------------------------------------------------------------------------------- operators
