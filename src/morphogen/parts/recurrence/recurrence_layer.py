"""The module of `Recurrence`. B batch, T tokens, D model dim."""

import torch
from torch import Tensor, nn

from morphogen.parts.contract.layers import Linear, make_norm
from morphogen.parts.contract.part import Context
from morphogen.parts.recurrence.recurrence import Recurrence


class Loop(nn.Module):
    """The module of `Recurrence`: what the core is given at each step."""

    gate_state: Tensor
    gate_prelude: Tensor
    gate_bias: Tensor | None

    def __init__(self, part: Recurrence, ctx: Context) -> None:
        super().__init__()
        self.part = part
        self.norm = make_norm(ctx.norm, ctx.dim)
        self.state = Linear(ctx.dim, ctx.dim)
        self.prelude_norm = make_norm(ctx.norm, ctx.dim) if part.concat_prelude else None
        self.prelude = Linear(ctx.dim, ctx.dim) if part.concat_prelude else None
        names = part.tensors(ctx)
        for name, shape in (("gate_state", (ctx.dim,)), ("gate_prelude", (ctx.dim,)), ("gate_bias", ())):
            self.register_parameter(name, nn.Parameter(torch.empty(shape)) if name in names else None)

    def first(self, prelude_BTD: Tensor) -> Tensor:
        """The state before the first step, (B, T, D)."""
        if self.training and self.part.start_state == "noise":
            return torch.randn_like(prelude_BTD)
        return torch.zeros_like(prelude_BTD)

    def forward(self, state_BTD: Tensor, prelude_BTD: Tensor) -> Tensor:
        """The core's input, (B, T, D)."""
        read_BTD = self.norm(state_BTD)
        mixed_BTD = self.state(read_BTD)
        logit_BT = None if self.gate_bias is None else read_BTD @ self.gate_state + self.gate_bias
        if self.prelude is not None and self.prelude_norm is not None:
            read_BTD = self.prelude_norm(prelude_BTD)
            mixed_BTD = mixed_BTD + self.prelude(read_BTD)
            logit_BT = None if logit_BT is None else logit_BT + read_BTD @ self.gate_prelude
        if logit_BT is not None:
            mixed_BTD = mixed_BTD * (2.0 * torch.sigmoid(logit_BT))[..., None]
        return prelude_BTD + mixed_BTD
