"""The module of `GatedEMA`. B batch, T tokens, D model dim, W channels"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gated_ema.part import CHUNK, GatedEMA
from morphogen.ops.ssd import ssd
from morphogen.parts.contract.branch import Branch, State
from morphogen.parts.contract.layers import Linear, make_norm
from morphogen.parts.contract.part import Context


def ema(u_BTW: Tensor, logit_W: Tensor, past_BW: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """y_t = a·y_{t−1} + (1 − a)·u_t with a = sigmoid(logit); y_BTW, and the last of it. past_BW: what y begins with."""
    ones_BT1 = torch.ones_like(u_BTW[..., :1])
    start_B1W1 = None if past_BW is None else past_BW[:, None, :, None]
    y_BTW1, last_B1W1 = ssd(
        (torch.sigmoid(-logit_W) * u_BTW)[..., None],
        torch.ones_like(u_BTW),
        F.logsigmoid(logit_W),
        ones_BT1,
        ones_BT1,
        torch.zeros_like(logit_W),
        start_B1W1,
        CHUNK,
    )
    return y_BTW1[..., 0], last_B1W1[:, 0, :, 0]


class GatedEMABranch(Branch):
    """The module of `GatedEMA`. While decoding it remembers the last average, `past` (B, W)."""

    def __init__(self, part: GatedEMA, ctx: Context) -> None:
        super().__init__()
        self.norm = make_norm(ctx.norm, ctx.dim)
        self.ug = Linear(ctx.dim, 2 * part.width)
        self.logit = nn.Parameter(torch.empty(part.width))
        self.o = Linear(part.width, ctx.dim)

    def mix(self, x_BTD: Tensor) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        return self.mix_on(x_BTD, {})

    def mix_on(self, x_BTD: Tensor, state: State) -> Tensor:
        """As `mix`, after what `state` remembers."""
        u_BTW, g_BTW = self.ug(x_BTD).chunk(2, -1)
        y_BTW, state["past"] = ema(u_BTW, self.logit, state.get("past"))
        return self.o(torch.sigmoid(g_BTW) * y_BTW)
