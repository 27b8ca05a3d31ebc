"""Attention over a list of tiles: some consecutive queries, the keys they may read, and what is hidden of those.

Each tile is the plain formula softmax(q kᵀ · scale) v on a piece small enough for the cache; the whole list is one
autograd function that keeps only q, k, v and recomputes the rest in its backward pass. Time and memory are those of
the tiles: a triangle of them is half of dense attention, a band of them is linear in the length.

B batch, H query heads, K kv heads, G query heads per kv head (H = K·G, a query head is (kv head, group)),
N = B·K, T tokens, S keys (T, or more when some stand in the list twice), R = G·C,
C queries of a tile, M keys of a tile, E width of q and k, V width of v
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from morphogen.ops.autocast import no_autocast
from morphogen.ops.function import call

#: Bytes of scores computed at once: on a CPU what half its L2 cache holds, elsewhere enough to fill the device.
CPU_TILE_BYTES = 2**19
DEVICE_TILE_BYTES = 2**28


@dataclass(frozen=True)
class Tile:
    """Queries `rows`; their keys, the concatenation of the `keys` slices, of which no key may occur twice.

    bias: (C, last keys), added to the scores: 0 if visible, −inf if hidden, in the dtype of the scores. All keys before
    those it covers are visible to every query of the tile. Every query sees at least one key.
    """

    rows: slice
    keys: tuple[slice, ...]
    bias: Tensor


@dataclass(frozen=True)
class Settings:
    """What goes into a score besides the tile. query_places (T,), key_places (S,): for ALiBi."""

    scale: float
    softcap: float | None
    query_places: Tensor
    key_places: Tensor
    dropout: float
    seed: int


def tiled_attention(
    q_BHTE: Tensor, k_BKSE: Tensor, v_BKSV: Tensor, tiles: Sequence[Tile], settings: Settings, slopes_BH: Tensor | None
) -> Tensor:
    """Attention over `tiles`, which must cover every query once; y_BHTV.

    slopes_BH: ALiBi slope of each head, a constant without gradient; its batch axis may be 1. All of q, k, v are of one
    dtype; scores are of that dtype, the statistics of the softmax at least fp32.
    """
    batch, heads, length, _ = q_BHTE.shape
    kv_heads = k_BKSE.shape[1]
    group = heads // kv_heads
    slopes_NG = None if slopes_BH is None else slopes_BH.expand(batch, heads).reshape(-1, group)
    y_NGTV = call(
        _Tiled,
        (q_BHTE * settings.scale).reshape(batch * kv_heads, group, length, -1),
        k_BKSE.flatten(0, 1),
        v_BKSV.flatten(0, 1),
        slopes_NG,
        tiles,
        replace(settings, scale=1.0),
    )
    assert isinstance(y_NGTV, Tensor)
    return y_NGTV.reshape(batch, heads, length, -1)


class _Tiled(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q_NGTE: Tensor,
        k_NSE: Tensor,
        v_NSV: Tensor,
        slopes_NG: Tensor | None,
        tiles: Sequence[Tile],
        settings: Settings,
    ) -> Tensor:
        y_NGTV = q_NGTE.new_empty(*q_NGTE.shape[:3], v_NSV.shape[-1])
        noise = _noise(settings, q_NGTE.device)
        with no_autocast(q_NGTE.device):
            for tile, n in _pieces(tiles, q_NGTE):
                y = y_NGTV[n, :, tile.rows]
                q_nRE, k_nME, v_nMV = _rows(q_NGTE, tile, n), _keys(k_NSE, tile, n), _keys(v_NSV, tile, n)
                p_nRM, _ = _probabilities(q_nRE, k_nME, tile, settings, None if slopes_NG is None else slopes_NG[n])
                if noise is not None:
                    p_nRM = p_nRM * _kept(p_nRM, settings, noise)
                y.copy_(torch.bmm(p_nRM, v_nMV).view(y.shape))
        ctx.save_for_backward(q_NGTE, k_NSE, v_NSV, slopes_NG)
        ctx.tiles, ctx.settings = tiles, settings
        return y_NGTV

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_NGTV: Tensor) -> tuple[Tensor | None, ...]:
        q_NGTE, k_NSE, v_NSV, slopes_NG = ctx.saved_tensors
        settings = ctx.settings
        dq_NGTE = torch.empty_like(q_NGTE)
        total = torch.promote_types(q_NGTE.dtype, torch.float32)  # sums over tiles are not left to bf16
        dk_NSE, dv_NSV = torch.zeros_like(k_NSE, dtype=total), torch.zeros_like(v_NSV, dtype=total)
        noise = _noise(settings, q_NGTE.device)
        with no_autocast(q_NGTE.device):
            for tile, n in _pieces(ctx.tiles, q_NGTE):
                q_nRE, k_nME, v_nMV = _rows(q_NGTE, tile, n), _keys(k_NSE, tile, n), _keys(v_NSV, tile, n)
                dy_nRV = _rows(dy_NGTV, tile, n)
                slopes_nG = None if slopes_NG is None else slopes_NG[n]
                p_nRM, tanh_nRM = _probabilities(q_nRE, k_nME, tile, settings, slopes_nG)
                dp_nRM, used_nRM = torch.bmm(dy_nRV, v_nMV.mT), p_nRM
                if noise is not None:
                    kept_nRM = _kept(p_nRM, settings, noise)
                    used_nRM = p_nRM * kept_nRM
                    dp_nRM.mul_(kept_nRM)
                ds_nRM = torch._softmax_backward_data(dp_nRM, p_nRM, -1, p_nRM.dtype)
                if tanh_nRM is not None:
                    ds_nRM.mul_(1 - tanh_nRM.square())
                dq = dq_NGTE[n, :, tile.rows]
                dq.copy_(torch.bmm(ds_nRM, k_nME).view(dq.shape))
                _add(dk_NSE, tile, n, ds_nRM, q_nRE)
                _add(dv_NSV, tile, n, used_nRM, dy_nRV)
        return dq_NGTE, dk_NSE.to(k_NSE.dtype), dv_NSV.to(v_NSV.dtype), None, None, None


def _pieces(tiles: Sequence[Tile], q_NGTE: Tensor) -> Iterator[tuple[Tile, slice]]:
    """Each tile with as many of the N rows at a time as the cache holds."""
    n_rows, group = q_NGTE.shape[:2]
    budget = CPU_TILE_BYTES if q_NGTE.device.type == "cpu" else DEVICE_TILE_BYTES
    for tile in tiles:
        width = sum(len(range(piece.start, piece.stop, piece.step or 1)) for piece in tile.keys)
        step = max(1, budget // (q_NGTE.element_size() * group * (tile.rows.stop - tile.rows.start) * width))
        for start in range(0, n_rows, step):
            yield tile, slice(start, min(start + step, n_rows))


def _rows(x_NGTE: Tensor, tile: Tile, n: slice) -> Tensor:
    return x_NGTE[n, :, tile.rows].flatten(1, 2)


def _keys(x_NSE: Tensor, tile: Tile, n: slice) -> Tensor:
    pieces = [x_NSE[n, piece] for piece in tile.keys]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, 1)


def _add(total_NSE: Tensor, tile: Tile, n: slice, weights_nRM: Tensor, x_nRE: Tensor) -> None:
    """total[keys] += weightsᵀ x."""
    if len(tile.keys) == 1 and total_NSE.dtype == x_nRE.dtype:
        total_NSE[n, tile.keys[0]].baddbmm_(weights_nRM.mT, x_nRE)
        return
    sums_nME, start = torch.bmm(weights_nRM.mT, x_nRE), 0
    for piece in tile.keys:
        total_nSE = total_NSE[n, piece]
        total_nSE.add_(sums_nME[:, start : start + total_nSE.shape[1]])
        start += total_nSE.shape[1]


def _probabilities(
    q_nRE: Tensor, k_nME: Tensor, tile: Tile, settings: Settings, slopes_nG: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """softmax of the tile's scores, and tanh(score / softcap) where there is a cap."""
    scores_nRM = torch.bmm(q_nRE, k_nME.mT)
    tanh_nRM = None
    if settings.softcap is not None:
        tanh_nRM = scores_nRM.div_(settings.softcap).tanh_()
        scores_nRM = tanh_nRM * settings.softcap
    count = tile.rows.stop - tile.rows.start
    scores_nGCM = scores_nRM.view(len(scores_nRM), -1, count, scores_nRM.shape[2])
    if slopes_nG is not None:
        at_M = torch.cat([settings.key_places[piece] for piece in tile.keys])
        distance_CM = (settings.query_places[tile.rows, None] - at_M).to(scores_nRM.dtype)
        scores_nGCM.sub_(slopes_nG[:, :, None, None].to(scores_nRM.dtype) * distance_CM)
    scores_nGCM[..., -tile.bias.shape[1] :].add_(tile.bias)
    return F.softmax(scores_nRM, -1), tanh_nRM


def _noise(settings: Settings, device: torch.device) -> torch.Generator | None:
    """The stream of dropout; the same in the forward and the backward pass."""
    return torch.Generator(device).manual_seed(settings.seed) if settings.dropout > 0 else None


def _kept(p_nRM: Tensor, settings: Settings, noise: torch.Generator) -> Tensor:
    """1 / (1 − dropout) where a probability is kept, 0 where it is dropped."""
    keep = 1.0 - settings.dropout
    return torch.empty_like(p_nRM).bernoulli_(keep, generator=noise).div_(keep)
