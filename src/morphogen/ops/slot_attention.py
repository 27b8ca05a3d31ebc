"""Attention to slots: summaries of past tokens, or keys and values that are learned.

B batch, H heads, T tokens, S slots, N learned slots, E width of q and k, V width of v, D model dim, C tokens of a slot
"""

import functools
import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from morphogen.ops.autocast import autocast_dtype, no_autocast
from morphogen.ops.slots import Slots, spans
from morphogen.ops.tiled_attention import Settings, Tile, tiled_attention


def mean_slots(x_BTD: Tensor, slots: Slots) -> Tensor:
    """The mean of each complete slot's tokens, s_BSD. Overlapping slots share the sums of the steps between them."""
    step = math.gcd(slots.size, slots.stride)
    batch, count = x_BTD.shape[0], slots.complete(x_BTD.shape[1])
    if count == 0:
        return x_BTD[:, :0]
    used = (count - 1) * slots.stride + slots.size
    steps_BnD = x_BTD[:, :used].reshape(batch, used // step, step, -1).mean(2)
    if slots.size == step:
        return steps_BnD
    return steps_BnD.unfold(1, slots.size // step, slots.stride // step).mean(-1)


def weighted_slots(x_BTD: Tensor, score_BT: Tensor, size: int, how: Literal["attention", "gate"]) -> Tensor:
    """Chunks of `size` tokens summed with weights from their scores, s_BSD; a chunk that is not complete is left out.

    attention: weights softmax(score) over the chunk. gate: 2σ(score) / size. Both are the mean at score 0.
    """
    batch, length, width = x_BTD.shape
    count = length // size
    x_BSCD = x_BTD[:, : count * size].reshape(batch, count, size, width)
    score_BSC = score_BT[:, : count * size].reshape(batch, count, size)
    score_BSC = score_BSC.to(torch.promote_types(score_BSC.dtype, torch.float32))
    weight_BSC = score_BSC.softmax(-1) if how == "attention" else score_BSC.sigmoid() * (2.0 / size)
    return (weight_BSC[:, :, None].to(x_BTD.dtype) @ x_BSCD)[:, :, 0]


def attend_slots(
    q_BHTE: Tensor, k_BHSE: Tensor, v_BHSV: Tensor, slots: Slots, *, start: int = 0, before: int = 0
) -> Tensor:
    """y_t = Σ_s softmax_s(q_t·k_s / √E) v_s over the slots s that token t reads, 0 where there are none; y_BHTV.

    start: tokens before the first query, from the start of slot number `before` on; slots before that are complete.
    Cost is that of the slots read: linear in T when `keep` bounds them. Under autocast inputs are cast as for torch's
    own attention.
    """
    dtype = autocast_dtype(q_BHTE.device) or q_BHTE.dtype
    q_BHTE, k_BHSE, v_BHSV = q_BHTE.to(dtype), k_BHSE.to(dtype), v_BHSV.to(dtype)
    batch, heads, length, width = q_BHTE.shape
    skip, tiles = _tiles(slots, start, before, length, dtype, q_BHTE.device)
    if skip == length:
        return q_BHTE.new_zeros(batch, heads, length, v_BHSV.shape[-1])
    nowhere = torch.empty(0)
    settings = Settings(1 / math.sqrt(width), None, query_places=nowhere, key_places=nowhere, dropout=0.0, seed=0)
    y_BHtV = tiled_attention(q_BHTE[:, :, skip:], k_BHSE, v_BHSV, tiles, settings, None)
    return F.pad(y_BHtV, (0, 0, skip, 0))


@functools.lru_cache(maxsize=32)
def _tiles(
    slots: Slots, start: int, before: int, length: int, dtype: torch.dtype, device: torch.device
) -> tuple[int, Sequence[Tile]]:
    """How many of the first queries read nothing, and the tiles of the others, counted from the first of those."""
    skip = 0 if before else min(length, max(0, slots.size - start))
    tiles = []
    for first, last, keys in spans(slots, skip, start, before, length):
        seen_C1 = torch.tensor([before + slots.complete(start + t) for t in range(first, last)])[:, None]
        low_C1 = torch.zeros_like(seen_C1) if slots.keep is None else seen_C1 - slots.keep
        at_M = torch.arange(keys.start, keys.stop)
        hidden_CM = (at_M < low_C1) | (at_M >= seen_C1)
        bias_CM = torch.zeros(hidden_CM.shape, dtype=dtype).masked_fill_(hidden_CM, -torch.inf)
        tiles.append(Tile(slice(first - skip, last - skip), (keys,), bias_CM.to(device)))
    return skip, tiles


def attend_learned(q_BTHE: Tensor, k_HNE: Tensor, v_HNV: Tensor) -> Tensor:
    """y_t = Σ_n softmax_n(q_t·k_n / √E) v_n over all learned slots n; y_BTHV. Ref: arXiv 1907.01470.

    Under autocast inputs are cast as for torch's own attention.
    """
    batch, length, heads, width = q_BTHE.shape
    dtype = autocast_dtype(q_BTHE.device) or q_BTHE.dtype
    q_HRE = (q_BTHE.to(dtype) / math.sqrt(width)).permute(2, 0, 1, 3).reshape(heads, batch * length, width)
    with no_autocast(q_BTHE.device):
        weight_HRN = F.softmax(q_HRE @ k_HNE.to(dtype).mT, -1)
        y_HRV = weight_HRN @ v_HNV.to(dtype)
    return y_HRV.view(heads, batch, length, v_HNV.shape[-1]).permute(1, 2, 0, 3)
