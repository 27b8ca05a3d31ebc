"""The short causal convolution that stands before a recurrence, as one autograd function.

B batch, T tokens, F channels, K taps
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

#: Bytes of one array worked on at a time: on a CPU what its L2 cache holds, elsewhere enough to fill the device.
CPU_TILE_BYTES = 2**20
DEVICE_TILE_BYTES = 2**28


def causal_conv(x_BTF: Tensor, taps_FK: Tensor, bias_F: Tensor) -> Tensor:
    """y[t, f] = bias[f] + Σ_k taps[f, K−1−k]·x[t−k, f], every channel by itself; y_BTF in x's dtype.

    Before the first token come zeros.
    """
    y_BTF = _CausalConv.apply(x_BTF, taps_FK, bias_F)  # type: ignore[no-untyped-call]
    assert isinstance(y_BTF, Tensor)
    return y_BTF


class _CausalConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BTF: Tensor, taps_FK: Tensor, bias_F: Tensor) -> Tensor:
        full = torch.promote_types(x_BTF.dtype, torch.float32)
        taps_KF, bias = taps_FK.to(full).t().contiguous(), bias_F.to(full)
        y_BTF = torch.empty(x_BTF.shape, dtype=x_BTF.dtype, device=x_BTF.device)
        for n in _sequences(x_BTF):
            x, y = x_BTF[n].to(full), torch.empty(x_BTF[n].shape, dtype=full, device=x_BTF.device)
            torch.addcmul(bias, x, taps_KF[-1], out=y)
            for back in range(1, min(len(taps_KF), x.shape[1])):
                y[:, back:].addcmul_(x[:, :-back], taps_KF[-1 - back])
            y_BTF[n] = y
        ctx.save_for_backward(x_BTF, taps_FK, bias_F)
        return y_BTF

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_BTF: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x_BTF, taps_FK, bias_F = ctx.saved_tensors
        full = torch.promote_types(x_BTF.dtype, torch.float32)
        taps_KF = taps_FK.to(full).t().contiguous()
        dx_BTF = torch.empty(x_BTF.shape, dtype=x_BTF.dtype, device=x_BTF.device)
        dtaps_KF, dbias_F = torch.zeros_like(taps_KF), torch.zeros_like(bias_F, dtype=full)
        for n in _sequences(x_BTF):
            x, dy = x_BTF[n].to(full), dy_BTF[n].to(full)
            dx = dy * taps_KF[-1]
            dbias_F += dy.sum((0, 1))
            dtaps_KF[-1] += (dy * x).sum((0, 1))
            for back in range(1, min(len(taps_KF), x.shape[1])):
                dx[:, :-back].addcmul_(dy[:, back:], taps_KF[-1 - back])
                dtaps_KF[-1 - back] += (dy[:, back:] * x[:, :-back]).sum((0, 1))
            dx_BTF[n] = dx
        return dx_BTF, dtaps_KF.t().to(taps_FK.dtype), dbias_F.to(bias_F.dtype)


def _sequences(x_BTF: Tensor) -> Iterator[slice]:
    """As many sequences at a time as the cache holds."""
    budget = CPU_TILE_BYTES if x_BTF.device.type == "cpu" else DEVICE_TILE_BYTES
    step = max(1, budget // (4 * x_BTF[0].numel()))
    for start in range(0, len(x_BTF), step):
        yield slice(start, start + step)
