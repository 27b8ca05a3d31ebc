"""The module of `LayerScale`. B batch, T tokens, D model dim"""

import torch
from torch import Tensor, nn

from morphogen.parts.contract.branch import Modulation
from morphogen.parts.contract.part import Context
from morphogen.parts.mixing.layer_scale import LayerScale


class Scales(Modulation):
    """The module of `LayerScale`."""

    def __init__(self, part: LayerScale, ctx: Context) -> None:
        super().__init__()
        self.targets = frozenset(part.targets)
        for target in part.targets:
            self.register_parameter(target, nn.Parameter(torch.empty(ctx.dim)))

    def modulate(self, slot: str, y_BTD: Tensor, seen: Tensor | None) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        return y_BTD * self.get_parameter(slot).to(y_BTD.dtype) if slot in self.targets else y_BTD
