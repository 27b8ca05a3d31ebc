"""The short causal convolution that stands before a recurrence, as one autograd function.

B batch, T tokens, F channels, K taps; t the tokens of a tile
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from morphogen.ops.elementwise import silu_backward
from morphogen.ops.function import call

#: Bytes of one array worked on at a time: on a CPU what its L2 cache holds, elsewhere enough to fill the device.
CPU_TILE_BYTES = 2**20
DEVICE_TILE_BYTES = 2**28


def causal_conv(x_BTF: Tensor, taps_FK: Tensor, bias_F: Tensor, *, silu: bool = False) -> Tensor:
    """y[t, f] = bias[f] + Σ_k taps[f, K−1−k]·x[t−k, f], every channel by itself; y_BTF in x's dtype.

    Before the first token come zeros. silu: the result goes through it.
    """
    y_BTF = call(_CausalConv, x_BTF, taps_FK, bias_F, silu)
    assert isinstance(y_BTF, Tensor)
    return y_BTF


class _CausalConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BTF: Tensor, taps_FK: Tensor, bias_F: Tensor, silu: bool) -> Tensor:
        full = torch.promote_types(x_BTF.dtype, torch.float32)
        taps_KF, bias = taps_FK.to(full).t().contiguous(), bias_F.to(full)
        y_BTF = torch.empty(x_BTF.shape, dtype=x_BTF.dtype, device=x_BTF.device)
        sums_BTF = torch.empty_like(y_BTF) if silu else y_BTF
        for n, start, stop in _tiles(x_BTF):
            known = min(start, len(taps_KF) - 1)
            x = x_BTF[n, start - known : stop].to(full)
            kept = sums_BTF[n, start:stop]
            sums = kept if kept.dtype == full else torch.empty_like(kept, dtype=full)
            torch.addcmul(bias, x[:, known:], taps_KF[-1], out=sums)
            for back in range(1, min(len(taps_KF), stop)):
                blank = max(0, back - known)  # tokens of the tile before which there are not so many
                sums[:, blank:].addcmul_(x[:, known + blank - back : x.shape[1] - back], taps_KF[-1 - back])
            if sums is not kept:
                kept.copy_(sums)
            if silu:
                y_BTF[n, start:stop] = F.silu(sums)
        ctx.save_for_backward(x_BTF, taps_FK, bias_F, sums_BTF if silu else None)
        return y_BTF

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_BTF: Tensor) -> tuple[Tensor | None, ...]:
        x_BTF, taps_FK, bias_F, sums_BTF = ctx.saved_tensors
        full, length = torch.promote_types(x_BTF.dtype, torch.float32), x_BTF.shape[1]
        taps_KF = taps_FK.to(full).t().contiguous()
        dx_BTF = torch.empty(x_BTF.shape, dtype=x_BTF.dtype, device=x_BTF.device)
        dtaps_KF, dbias_F = torch.zeros_like(taps_KF), torch.zeros_like(bias_F, dtype=full)
        for n, start, stop in _tiles(x_BTF):
            end = min(stop + len(taps_KF) - 1, length)  # the outputs that the tile's inputs reach
            x, dsums = x_BTF[n, start:stop].to(full), dy_BTF[n, start:end].to(full)
            if sums_BTF is not None:
                dsums = silu_backward(dsums, sums_BTF[n, start:end].to(full))
            dx = dsums[:, : stop - start] * taps_KF[-1]
            products = torch.empty_like(dx)
            dbias_F += dsums[:, : stop - start].sum((0, 1))
            for back in range(min(len(taps_KF), end - start)):
                reached = dsums[:, back : back + stop - start]
                count = reached.shape[1]
                if back:
                    dx[:, :count].addcmul_(reached, taps_KF[-1 - back])
                dtaps_KF[-1 - back] += torch.mul(reached, x[:, :count], out=products[:, :count]).sum((0, 1))
            dx_BTF[n, start:stop] = dx
        return dx_BTF, dtaps_KF.t().to(taps_FK.dtype), dbias_F.to(bias_F.dtype), None


def _tiles(x_BTF: Tensor) -> Iterator[tuple[slice, int, int]]:
    """Sequences, and the first and the last token but one of each: as many as fit the cache."""
    batch, length, channels = x_BTF.shape
    budget = CPU_TILE_BYTES if x_BTF.device.type == "cpu" else DEVICE_TILE_BYTES
    tokens = max(1, budget // (4 * channels))
    sequences = max(1, tokens // length)
    for first in range(0, batch, sequences):
        for start in range(0, length, tokens):
            yield slice(first, first + sequences), start, min(start + tokens, length)
