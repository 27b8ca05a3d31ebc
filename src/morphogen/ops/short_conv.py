"""A short causal convolution of each channel. B batch, T tokens, W channels, K taps."""

import torch
from torch import Tensor
from torch.nn import functional as F


def short_conv(x_BTW: Tensor, taps_WK: Tensor, past_BPW: Tensor | None = None) -> Tensor:
    """y_t[w] = Σ_l taps[w, l] · x_{t−l}[w] with x zero before the start, or preceded by `past`; y_BTW.

    past: the K − 1 inputs before the first, at most; what is missing of them is zero.
    """
    known = 0 if past_BPW is None else past_BPW.shape[1]
    x_BWt = (x_BTW if past_BPW is None else torch.cat([past_BPW, x_BTW], 1)).transpose(1, 2)
    padded_BWt = F.pad(x_BWt, (taps_WK.shape[1] - 1 - known, 0))
    return F.conv1d(padded_BWt, taps_WK.flip(1)[:, None], groups=taps_WK.shape[0]).transpose(1, 2)
