"""What the modules of state-space layers share.

B batch, T tokens, D model dim, F inner channels, N state size, K taps of the convolution
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from morphogen.ops.causal_conv import causal_conv
from morphogen.parts.contract.branch import Branch, State
from morphogen.parts.contract.layers import Linear, make_norm
from morphogen.parts.contract.part import Context
from morphogen.parts.ssm.ssm import SSM


class Taps(nn.Module):
    """The tensors of a causal convolution, every channel by itself; the last tap is the present token's."""

    def __init__(self, channels: int, taps: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, taps))
        self.bias = nn.Parameter(torch.empty(channels))


class SSMBranch(Branch):
    """What the kinds' modules share."""

    def __init__(self, part: SSM, ctx: Context) -> None:
        super().__init__()
        inner = part.inner(ctx)
        self.norm = make_norm(ctx.norm, ctx.dim)
        self.x = Linear(ctx.dim, inner)
        self.z = Linear(ctx.dim, inner) if part.gate else None
        self.conv_x = Taps(inner, part.d_conv)
        self.dt_bias = nn.Parameter(torch.empty(part.units(ctx)))
        self.d = nn.Parameter(torch.empty(part.units(ctx)))
        self.out = Linear(inner, ctx.dim)
        self.chunk = part.chunk_tokens

    def mix(self, x_BTD: Tensor) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        return self.mix_on(x_BTD, {})

    def gated(self, y_BTF: Tensor, z_BTF: list[Tensor]) -> Tensor:
        """y ⊙ silu(z), where there is a z."""
        return y_BTF * F.silu(z_BTF[0]) if z_BTF else y_BTF


def stacked(layers: Sequence[Linear], x: Tensor) -> Tensor:
    """The layers' outputs side by side, by one matmul."""
    return F.linear(x, torch.cat([layer.weight for layer in layers]))


def convolve(x_BTF: Tensor, taps_FK: Tensor, bias_F: Tensor, state: State) -> Tensor:
    """silu(conv(x)), (B, T, F); `state` remembers the K−1 inputs before."""
    known = 0
    if "conv" in state:
        known = state["conv"].shape[1]
        x_BTF = torch.cat([state["conv"].to(x_BTF.dtype), x_BTF], 1)
    state["conv"] = x_BTF[:, max(0, x_BTF.shape[1] - taps_FK.shape[1] + 1) :].clone()
    return causal_conv(x_BTF, taps_FK, bias_F, silu=True)[:, known:]


def step_sizes(dt_BTF: Tensor, bias_F: Tensor) -> Tensor:
    """softplus(dt + bias), in fp32 at least."""
    return F.softplus(dt_BTF.to(torch.promote_types(dt_BTF.dtype, torch.float32)) + bias_F)


# --------------------------------------------------------------------------------------------------- operators
