"""The module of `ShortConv`. B batch, T tokens, D model dim, W channels, K taps."""

import torch
from torch import Tensor, nn

from morphogen.ops.causal_conv import causal_conv
from morphogen.parts.contract.branch import Branch, State
from morphogen.parts.contract.layers import Linear, make_norm
from morphogen.parts.contract.part import Context
from morphogen.parts.mixing.short_conv import ShortConv


class ShortConvBranch(Branch):
    """The module of `ShortConv`. While decoding it remembers the convolution's `past` inputs, (B, up to K − 1, W)."""

    def __init__(self, part: ShortConv, ctx: Context) -> None:
        super().__init__()
        width = part.channels(ctx)
        self.norm = make_norm(ctx.norm, ctx.dim)
        self.bch = Linear(ctx.dim, 3 * width)
        self.taps = nn.Parameter(torch.empty(width, part.kernel))
        self.o = Linear(width, ctx.dim)

    def mix(self, x_BTD: Tensor) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        return self.mix_on(x_BTD, {})

    def mix_on(self, x_BTD: Tensor, state: State) -> Tensor:
        """As `mix`, after what `state` remembers."""
        b_BTW, c_BTW, h_BTW = self.bch(x_BTD).chunk(3, -1)
        known_BtW = h_BTW = b_BTW * h_BTW
        if state:
            known_BtW = torch.cat([state["past"], h_BTW], 1)
        y_BtW = causal_conv(known_BtW, self.taps.flip(1), self.taps.new_zeros(len(self.taps)))
        state["past"] = known_BtW[:, max(0, known_BtW.shape[1] - self.taps.shape[1] + 1) :].clone()
        return self.o(c_BTW * y_BtW[:, known_BtW.shape[1] - h_BTW.shape[1] :])


# --------------------------------------------------------------------------------------------------- operators
