"""The module of `Mamba2`.

B batch, T tokens, D model dim, H heads, P head width, F = H·P inner channels, N state size, C channels convolved
"""

import torch
from torch import Tensor, nn

from morphogen.ops.ssd import ssd
from morphogen.parts.contract.branch import State
from morphogen.parts.contract.layers import Linear, RMSNorm
from morphogen.parts.contract.part import Context
from morphogen.parts.ssm.mamba2 import Mamba2
from morphogen.parts.ssm.ssm_layer import SSMBranch, Taps, convolve, stacked, step_sizes


class Mamba2Branch(SSMBranch):
    """The module of `Mamba2`."""

    def __init__(self, part: Mamba2, ctx: Context) -> None:
        super().__init__(part, ctx)
        heads, size = part.units(ctx), part.d_state
        self.b = Linear(ctx.dim, size)
        self.c = Linear(ctx.dim, size)
        self.dt = Linear(ctx.dim, heads)
        self.conv_b = Taps(size, part.d_conv)
        self.conv_c = Taps(size, part.d_conv)
        self.a_log = nn.Parameter(torch.empty(heads))
        self.out_norm = RMSNorm(part.inner(ctx))

    def mix_on(self, x_BTD: Tensor, state: State) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        layers = [self.x, self.b, self.c, self.dt, *([] if self.z is None else [self.z])]
        (inner, size), heads = (len(self.x.weight), len(self.b.weight)), len(self.dt.weight)
        convs = (self.conv_x, self.conv_b, self.conv_c)
        taps, bias = torch.cat([conv.weight for conv in convs]), torch.cat([conv.bias for conv in convs])
        widths = [inner + 2 * size, heads, *([] if self.z is None else [inner])]
        xbc_BTC, dt_BTH, *z_BTF = torch.split(stacked(layers, x_BTD), widths, -1)
        x_BTF, b_BTN, c_BTN = torch.split(convolve(xbc_BTC, taps, bias, state), [inner, size, size], -1)
        y_BTHP, state["state"] = ssd(
            x_BTF.view(*x_BTF.shape[:2], heads, -1),
            step_sizes(dt_BTH, self.dt_bias),
            -self.a_log.exp(),
            b_BTN,
            c_BTN,
            self.d,
            state.get("state"),
            self.chunk,
        )
        return self.out(self.out_norm(self.gated(y_BTHP.flatten(2), z_BTF)))


# --------------------------------------------------------------------------------------------------- operators
