"""Slow references, written from the definitions alone: what the fast versions are tested against.

B batch, H query heads, K kv heads, T tokens, E width of q and k, V width of v, F rotated pairs
"""

import math

import torch
from torch import Tensor

from morphogen.ops.patterns import Pattern


def sees(pattern: Pattern, i: int, j: int) -> bool:
    """Whether query i sees key j under `pattern`; its docstring in words of one pair."""
    if j > i:
        return False
    near = i - j <= pattern.window
    match pattern.kind:
        case "none":
            return True
        case "sliding":
            return near
        case "dilated":
            return (i - j) % pattern.dilation == 0
        case "local_global":
            return near or j % pattern.global_stride == 0
    apart = i // pattern.block_size - j // pattern.block_size
    at_stride = apart > 0 and pattern.block_stride > 0 and apart % pattern.block_stride == 0
    return at_stride or (apart == 0 if pattern.kind == "block" else near)


def mask(pattern: Pattern, length: int) -> Tensor:
    """visible_TT, boolean: row i is True at the keys that query i sees."""
    return torch.tensor([[sees(pattern, i, j) for j in range(length)] for i in range(length)])


def attention(
    q_BHTE: Tensor,
    k_BKTE: Tensor,
    v_BKTV: Tensor,
    pattern: Pattern,
    *,
    scale: float | None = None,
    softcap: float | None = None,
    slopes_H: Tensor | None = None,
) -> Tensor:
    """Attention with every score computed, a dense mask, and kv heads repeated for their group; y_BHTV."""
    group = q_BHTE.shape[1] // k_BKTE.shape[1]
    k_BHTE, v_BHTV = k_BKTE.repeat_interleave(group, 1), v_BKTV.repeat_interleave(group, 1)
    length, width = q_BHTE.shape[2:]
    scores_BHTT = q_BHTE @ k_BHTE.mT * (1 / math.sqrt(width) if scale is None else scale)
    if softcap is not None:
        scores_BHTT = softcap * torch.tanh(scores_BHTT / softcap)
    if slopes_H is not None:
        at_T = torch.arange(length, dtype=q_BHTE.dtype)
        scores_BHTT = scores_BHTT - slopes_H.to(q_BHTE.dtype)[:, None, None] * (at_T[:, None] - at_T)
    scores_BHTT = scores_BHTT.masked_fill(~mask(pattern, length), -math.inf)
    return scores_BHTT.softmax(-1) @ v_BHTV


def rope(x_BHTE: Tensor, freqs_F: Tensor) -> Tensor:
    """Channels 2f and 2f+1 of token t turned by the angle t·freqs[f]; channels from 2F on as they are."""
    channels = list(x_BHTE.unbind(-1))
    for f, freq in enumerate(freqs_F.tolist()):
        angle_T = torch.arange(x_BHTE.shape[2], dtype=torch.float64) * freq
        cos_T, sin_T = angle_T.cos().to(x_BHTE.dtype), angle_T.sin().to(x_BHTE.dtype)
        even, odd = channels[2 * f], channels[2 * f + 1]
        channels[2 * f], channels[2 * f + 1] = even * cos_T - odd * sin_T, even * sin_T + odd * cos_T
    return torch.stack(channels, -1)


def rms_norm(x: Tensor, weight: Tensor, eps: Tensor) -> Tensor:
    """x / √(mean(x²) + eps) · weight over the last axis."""
    return x / torch.sqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: Tensor) -> Tensor:
    """(x − mean(x)) / √(var(x) + eps) · weight + bias over the last axis."""
    centred = x - x.mean(-1, keepdim=True)
    return centred / torch.sqrt(centred.square().mean(-1, keepdim=True) + eps) * weight + bias
