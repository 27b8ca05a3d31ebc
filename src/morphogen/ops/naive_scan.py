"""Slow references for `ops.ssd` and `ops.scan`: one token after another, from the definitions alone.

B batch, T tokens, H heads, P head width, F channels, N state size, K taps of the convolution
"""

import torch
from torch import Tensor


def causal_conv(x_BTF: Tensor, taps_FK: Tensor, bias_F: Tensor) -> Tensor:
    """y[t, f] = bias[f] + Σ_k taps[f, K−1−k]·x[t−k, f]; before the first token come zeros."""
    rows = []
    for t in range(x_BTF.shape[1]):
        y_BF = bias_F.expand(x_BTF.shape[0], -1)
        for back in range(min(t + 1, taps_FK.shape[1])):
            y_BF = y_BF + taps_FK[:, -1 - back] * x_BTF[:, t - back]
        rows.append(y_BF)
    return torch.stack(rows, 1)


def ssd(
    x_BTHP: Tensor,
    dt_BTH: Tensor,
    a_H: Tensor,
    b_BTN: Tensor,
    c_BTN: Tensor,
    d_H: Tensor,
    state_BNHP: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """state ← exp(dt·a)·state + dt·b xᵀ; y = state c + d·x, per head; y_BTHP and the last state_BNHP."""
    batch, length, heads, width = x_BTHP.shape
    state = x_BTHP.new_zeros(batch, b_BTN.shape[-1], heads, width) if state_BNHP is None else state_BNHP
    rows = []
    for t in range(length):
        decay_BH, step_BH = torch.exp(dt_BTH[:, t] * a_H), dt_BTH[:, t]
        added = b_BTN[:, t, :, None, None] * (step_BH[..., None] * x_BTHP[:, t])[:, None]
        state = decay_BH[:, None, :, None] * state + added
        rows.append((c_BTN[:, t, :, None, None] * state).sum(1) + d_H[:, None] * x_BTHP[:, t])
    return torch.stack(rows, 1), state


def selective_scan(
    x_BTF: Tensor,
    dt_BTF: Tensor,
    a_NF: Tensor,
    b_BTN: Tensor,
    c_BTN: Tensor,
    d_F: Tensor,
    state_BNF: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """state ← exp(dt·a)·state + dt·b x; y = Σ_n c[n]·state[n] + d·x, per channel; y_BTF and the last state_BNF."""
    batch, length, channels = x_BTF.shape
    state = x_BTF.new_zeros(batch, b_BTN.shape[-1], channels) if state_BNF is None else state_BNF
    rows = []
    for t in range(length):
        decay_BNF = torch.exp(dt_BTF[:, t, None] * a_NF)
        state = decay_BNF * state + b_BTN[:, t, :, None] * (dt_BTF[:, t] * x_BTF[:, t])[:, None]
        rows.append((c_BTN[:, t, :, None] * state).sum(1) + d_F * x_BTF[:, t])
    return torch.stack(rows, 1), state
