"""The module of `Mamba`.

B batch, T tokens, D model dim, F inner channels, N state size, K taps, L rank of the step's projection
"""

import torch
from torch import Tensor, nn

from morphogen.ops.scan import selective_scan
from morphogen.parts.contract.branch import State
from morphogen.parts.contract.layers import Linear
from morphogen.parts.contract.part import Context
from morphogen.parts.ssm.mamba import Mamba
from morphogen.parts.ssm.ssm_layer import SSMBranch, convolve, stacked, step_sizes


class MambaBranch(SSMBranch):
    """The module of `Mamba`."""

    def __init__(self, part: Mamba, ctx: Context) -> None:
        super().__init__(part, ctx)
        inner, rank, size = part.inner(ctx), part.rank(ctx), part.d_state
        self.dt_down = Linear(inner, rank)
        self.b = Linear(inner, size)
        self.c = Linear(inner, size)
        self.dt_up = Linear(rank, inner)
        self.a_log = nn.Parameter(torch.empty(size * inner))

    def mix_on(self, x_BTD: Tensor, state: State) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        layers = [self.x, *([] if self.z is None else [self.z])]
        x_BTF, *z_BTF = stacked(layers, x_BTD).chunk(len(layers), -1)
        x_BTF = convolve(x_BTF, self.conv_x.weight, self.conv_x.bias, state)
        reads = [self.dt_down, self.b, self.c]
        low_BTL, b_BTN, c_BTN = torch.split(stacked(reads, x_BTF), [len(layer.weight) for layer in reads], -1)
        y_BTF, state["state"] = selective_scan(
            x_BTF,
            step_sizes(self.dt_up(low_BTL), self.dt_bias),
            -self.a_log.exp().view(len(self.b.weight), -1),
            b_BTN,
            c_BTN,
            self.d,
            state.get("state"),
            self.chunk,
        )
        return self.out(self.gated(y_BTF, z_BTF))


# --------------------------------------------------------------------------------------------------- operators
