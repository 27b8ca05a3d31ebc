"""The module of `Gated`. B batch, T tokens, D model dim"""

import torch
from torch import Tensor, nn

from morphogen.parts.contract.branch import Modulation
from morphogen.parts.mixing.gated import Gated


class Gates(Modulation):
    """The module of `Gated`."""

    def __init__(self, part: Gated) -> None:
        super().__init__()
        self.targets, self.learnable = frozenset(part.targets), part.learnable
        for target in part.targets:
            if part.learnable:
                self.register_parameter(target, nn.Parameter(torch.empty(())))
            else:
                self.register_buffer(target, torch.empty(()))

    def modulate(self, slot: str, y_BTD: Tensor, seen: Tensor | None) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        if slot not in self.targets:
            return y_BTD
        gate = self.get_parameter(slot) if self.learnable else self.get_buffer(slot)
        return y_BTD * gate.to(y_BTD.dtype)
