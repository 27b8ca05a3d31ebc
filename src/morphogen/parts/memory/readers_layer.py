"""What the modules of memories that are read by slots share.

B batch, T tokens, D model dim, H heads, E head dim, S slots, F heads times channels
"""

import torch
from torch import Tensor

from morphogen.ops.slot_attention import attend_slots
from morphogen.parts.contract.branch import Branch, State
from morphogen.parts.contract.layers import Linear, make_norm
from morphogen.parts.contract.part import Context
from morphogen.parts.memory.readers import SlotReader


class SlotBranch(Branch):
    """The module of a `SlotReader`.

    While decoding it remembers keys `k` and values `v` of the slots still read, (B, H, S, E), and the `tail`: the
    tokens from the start of the slot that is filled next, (B, less than its size, D).
    """

    def __init__(self, part: SlotReader, ctx: Context) -> None:
        super().__init__()
        self.slots, self.heads = part.slots, part.heads
        self.norm = make_norm(ctx.norm, ctx.dim)
        self.q = Linear(ctx.dim, part.width)
        self.k = Linear(ctx.dim, part.width)
        self.v = Linear(ctx.dim, part.width)
        self.o = Linear(part.width, ctx.dim)

    def summarise(self, x_BTD: Tensor) -> Tensor:
        """The summary of each complete slot, (B, T, D) to (B, S, D)."""
        raise NotImplementedError  # every kind has its own

    def mix(self, x_BTD: Tensor) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        return self.mix_on(x_BTD, {})

    def mix_on(self, x_BTD: Tensor, state: State) -> Tensor:
        """As `mix`, after what `state` remembers."""
        slots, recent_BTD = self.slots, x_BTD
        if state:
            recent_BTD = torch.cat([state["tail"], x_BTD], 1)
        s_BSD = self.summarise(recent_BTD)
        k_BHSE, v_BHSE = self._split(self.k(s_BSD)), self._split(self.v(s_BSD))
        if state:
            k_BHSE, v_BHSE = torch.cat([state["k"], k_BHSE], 2), torch.cat([state["v"], v_BHSE], 2)
        start, made = recent_BTD.shape[1] - x_BTD.shape[1], s_BSD.shape[1]
        before = k_BHSE.shape[2] - made
        y_BHTE = attend_slots(self._split(self.q(x_BTD)), k_BHSE, v_BHSE, slots, start=start, before=before)
        gone = 0 if slots.keep is None else max(0, k_BHSE.shape[2] - slots.keep)
        state["k"], state["v"] = k_BHSE[:, :, gone:], v_BHSE[:, :, gone:]
        state["tail"] = recent_BTD[:, made * slots.stride :].clone()
        return self.o(y_BHTE.transpose(1, 2).flatten(2))

    def _split(self, x_BTF: Tensor) -> Tensor:
        batch, length, width = x_BTF.shape
        return x_BTF.view(batch, length, self.heads, width // self.heads).transpose(1, 2)


# --------------------------------------------------------------------------------------------------- operators
