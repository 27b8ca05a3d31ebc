"""The module of `BranchRouter`. B batch, T tokens, D model dim, n target branches"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from morphogen.parts.contract.branch import Modulation
from morphogen.parts.contract.layers import Linear, make_norm
from morphogen.parts.contract.part import Context
from morphogen.parts.mixing.branch_router import BranchRouter


class Router(Modulation):
    """The module of `BranchRouter`."""

    def __init__(self, part: BranchRouter, ctx: Context) -> None:
        super().__init__()
        self.targets, self.temperature = part.targets, part.temperature
        self.bias = nn.Parameter(torch.empty(len(part.targets)))
        self.norm = self.up = self.out = None
        if part.router_type == "token":
            self.norm = make_norm(ctx.norm, ctx.dim)
            self.up = Linear(ctx.dim, part.hidden)
            self.out = Linear(part.hidden, len(part.targets))

    def look(self, x_BTD: Tensor) -> Tensor:
        """Shares of the targets, (B, T, n) or (n,), fp32 at least."""
        logits: Tensor = self.bias
        if self.norm is not None and self.up is not None and self.out is not None:
            logits = logits + self.out(F.silu(self.up(self.norm(x_BTD))))
        return len(self.targets) * F.softmax(logits / self.temperature, -1)

    def modulate(self, slot: str, y_BTD: Tensor, seen: Tensor | None) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        if seen is None or slot not in self.targets:
            return y_BTD
        return y_BTD * seen[..., self.targets.index(slot), None].to(y_BTD.dtype)
