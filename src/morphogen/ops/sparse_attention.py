"""Causal attention under a sparsity pattern, at the cost of the keys the pattern leaves.

B batch, H query heads, K kv heads (H = K·group, a query head is (kv head, group)), T tokens, E width of q and k,
V width of v, C queries of a tile, M keys of a tile
"""

import functools
import math
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from morphogen.errors import InputError
from morphogen.ops.autocast import autocast_dtype
from morphogen.ops.backends import kernel
from morphogen.ops.flex import FLEX, sizes_of
from morphogen.ops.patterns import Pattern
from morphogen.ops.tiled_attention import Settings, Tile, tiled_attention
from morphogen.ops.visibility import visible

#: Queries of a tile: of the triangle, of a band, and the fewest worth a tile where classes of blocks change.
TRIANGLE_ROWS = 64
LONG_TRIANGLE_ROWS = 128
LONG_TRIANGLE = 512
BAND_ROWS = 64
LEAST_ROWS = 16
#: On a CPU torch's fused kernel is behind tiles at these lengths in fp32, at all in bf16 (benchmarks/speed.py).
TILED_FP32 = range(256, 1024)
#: Patterns that come to dense attention, within classes of tokens.
FOLDED = ("none", "dilated", "block")


def attend(
    q_BHTE: Tensor,
    k_BKTE: Tensor,
    v_BKTV: Tensor,
    pattern: Pattern,
    *,
    scale: float | None = None,
    softcap: float | None = None,
    slopes_H: Tensor | None = None,
    dropout: float = 0.0,
    training: bool = True,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Causal attention: y_i = Σ_j softmax_j(cap(q_i·k_j·scale) − slope·(i − j)) v_j over the j that i sees; y_BHTV.

    scale: 1/√E when None. softcap: cap(s) = softcap·tanh(s / softcap), the identity when None. slopes_H: of ALiBi,
    constants. dropout: share of probabilities set to zero, the rest scaled up, when `training`; its noise is drawn from
    `generator`, torch's default one when None. Under autocast the inputs are cast as for torch's own attention.
    Raises InputError for shapes that do not fit together.
    """
    _check(q_BHTE, k_BKTE, v_BKTV, slopes_H, dropout)
    common = functools.reduce(torch.promote_types, (q_BHTE.dtype, k_BKTE.dtype, v_BKTV.dtype))
    dtype = autocast_dtype(q_BHTE.device) or common
    q_BHTE, k_BKTE, v_BKTV = q_BHTE.to(dtype), k_BKTE.to(dtype), v_BKTV.to(dtype)
    length = q_BHTE.shape[2]
    rate = dropout if training else 0.0
    settings = Settings(
        scale=1.0 / math.sqrt(q_BHTE.shape[-1]) if scale is None else scale,
        softcap=softcap,
        query_places=(places_T := torch.arange(length, device=q_BHTE.device)),
        key_places=places_T,
        dropout=rate,
        seed=int(torch.randint(2**62, (), generator=generator)) if rate > 0 else 0,
    )
    slopes_BH = None if slopes_H is None else slopes_H.detach()[None]
    pattern = _simplest(pattern, length)
    if not (pattern.kind in FOLDED and _fused(q_BHTE, v_BKTV, settings, slopes_BH)) and not rate:
        sizes = sizes_of(q_BHTE, k_BKTE, v_BKTV, pattern, softcap is not None, slopes_H is not None)
        if (flex := kernel((FLEX,), q_BHTE.device, dtype, length, sizes)) is not None:
            slopes_H = None if slopes_H is None else slopes_H.detach()
            y_BHTV: Tensor = flex(
                q_BHTE, k_BKTE, v_BKTV, pattern, scale=settings.scale, softcap=softcap, slopes_H=slopes_H
            )
            return y_BHTV
    if pattern.kind == "none":
        return _dense(q_BHTE, k_BKTE, v_BKTV, settings, slopes_BH)
    if pattern.kind == "dilated":
        return _folded(q_BHTE, k_BKTE, v_BKTV, settings, slopes_BH, 1, pattern.dilation)
    if pattern.kind == "block":
        return _folded(q_BHTE, k_BKTE, v_BKTV, settings, slopes_BH, pattern.block_size, pattern.block_stride)
    if pattern.kind == "local_block":
        unit, classes = pattern.block_size, pattern.block_stride
        k_BKTE, v_BKTV = (torch.cat([x, _by_class(x, unit, classes)], 2) for x in (k_BKTE, v_BKTV))
        ordered_T = _by_class(places_T[None, None, :, None], unit, classes)[0, 0, :, 0]
        settings = replace(settings, key_places=torch.cat([places_T, ordered_T]))
    return tiled_attention(q_BHTE, k_BKTE, v_BKTV, _band(pattern, settings, q_BHTE.dtype), settings, slopes_BH)


def _check(q_BHTE: Tensor, k_BKTE: Tensor, v_BKTV: Tensor, slopes_H: Tensor | None, dropout: float) -> None:
    q, k, v = tuple(q_BHTE.shape), tuple(k_BKTE.shape), tuple(v_BKTV.shape)
    if not (len(q) == len(k) == len(v) == 4 and k[:3] == v[:3] and (q[0], *q[2:]) == (k[0], *k[2:]) and q[2] > 0):
        raise InputError(f"attend: got q {q}, k {k}, v {v}, expected (B, H, T, E), (B, K, T, E), (B, K, T, V), T ≥ 1")
    if q[1] % k[1]:
        raise InputError(f"attend: got {q[1]} query heads over {k[1]} kv heads, expected a multiple")
    if slopes_H is not None and tuple(slopes_H.shape) != q[1:2]:
        raise InputError(f"attend: got slopes of shape {tuple(slopes_H.shape)}, expected ({q[1]},), one per query head")
    if not 0.0 <= dropout < 1.0:
        raise InputError(f"attend: got dropout {dropout}, expected 0 ≤ dropout < 1")


def _simplest(pattern: Pattern, length: int) -> Pattern:
    """The cheapest pattern that sees the same keys at this length."""
    blocks = math.ceil(length / max(1, pattern.block_size))
    windowed = pattern.kind in ("sliding", "local_global", "local_block")
    everything = (
        (windowed and pattern.window >= length - 1)
        or (pattern.kind == "block" and (blocks == 1 or pattern.block_stride == 1))
        or (pattern.kind == "local_global" and pattern.global_stride == 1)
        or (pattern.kind == "dilated" and pattern.dilation == 1)
    )
    if everything:
        return Pattern()
    if pattern.kind == "block" and not 0 < pattern.block_stride < blocks:
        return replace(pattern, block_stride=blocks)
    if pattern.kind == "dilated":
        return replace(pattern, dilation=min(pattern.dilation, length))
    if pattern.kind == "local_block" and pattern.block_stride >= blocks:
        return Pattern("sliding", window=pattern.window)
    return pattern


def _dense(q_BHTE: Tensor, k_BKTE: Tensor, v_BKTV: Tensor, settings: Settings, slopes_BH: Tensor | None) -> Tensor:
    """Every past key: torch's fused kernel where that is the faster, tiles of the lower triangle elsewhere."""
    if _fused(q_BHTE, v_BKTV, settings, slopes_BH):
        grouped = q_BHTE.shape[1] != k_BKTE.shape[1]
        return F.scaled_dot_product_attention(
            q_BHTE, k_BKTE, v_BKTV, is_causal=True, scale=settings.scale, enable_gqa=grouped
        )
    length = q_BHTE.shape[2]
    rows = TRIANGLE_ROWS if length < LONG_TRIANGLE else LONG_TRIANGLE_ROWS
    at_C = torch.arange(rows, device=q_BHTE.device)
    bias_CC = _bias(at_C <= at_C[:, None], q_BHTE.dtype)
    tiles = []
    for start in range(0, length, rows):
        stop = min(start + rows, length)
        tiles.append(Tile(slice(start, stop), (slice(0, stop),), bias_CC[: stop - start, : stop - start]))
    return tiled_attention(q_BHTE, k_BKTE, v_BKTV, tiles, settings, slopes_BH)


def _fused(q_BHTE: Tensor, v_BKTV: Tensor, settings: Settings, slopes_BH: Tensor | None) -> bool:
    """Whether torch's fused kernel can compute this, and is the faster."""
    if settings.softcap is not None or slopes_BH is not None or settings.dropout > 0.0:
        return False
    length, width = q_BHTE.shape[2:]
    same_width = v_BKTV.shape[3] == width  # the CPU's kernel needs it
    return q_BHTE.device.type != "cpu" or (q_BHTE.dtype == torch.float32 and same_width and length not in TILED_FP32)


def _folded(
    q_BHTE: Tensor,
    k_BKTE: Tensor,
    v_BKTV: Tensor,
    settings: Settings,
    slopes_BH: Tensor | None,
    unit: int,
    classes: int,
) -> Tensor:
    """Dense attention inside each class of tokens, where runs of `unit` tokens belong to the `classes` in turn.

    The classes become part of the batch. Padding stands at the end of each class, where only padding sees it.
    """
    batch, heads, length, _ = q_BHTE.shape
    folded = [_fold(x, unit, classes) for x in (q_BHTE, k_BKTE, v_BKTV)]
    # the places of the first class; those of the others differ by a shift, which no distance sees
    places_T = _fold(settings.query_places[None, None, :, None], unit, classes)[0, 0, :, 0]
    settings = replace(settings, query_places=places_T, key_places=places_T)
    y_BHTV = _dense(folded[0], folded[1], folded[2], settings, slopes_BH)
    y_BcHruV = y_BHTV.reshape(batch, classes, heads, -1, unit, y_BHTV.shape[-1])
    return y_BcHruV.permute(0, 2, 3, 1, 4, 5).flatten(2, 4)[:, :, :length]


def _fold(x_BHTE: Tensor, unit: int, classes: int) -> Tensor:
    """(B, H, T, E) to (B·classes, H, tokens of a class, E); T is padded with zeros to whole rounds of the classes."""
    x_BHTE = F.pad(x_BHTE, (0, 0, 0, -x_BHTE.shape[2] % (unit * classes)))
    batch, heads, length, width = x_BHTE.shape
    x_BHrcuE = x_BHTE.reshape(batch, heads, -1, classes, unit, width)
    return x_BHrcuE.permute(0, 3, 1, 2, 4, 5).reshape(batch * classes, heads, length // classes, width)


def _by_class(x_BHTE: Tensor, unit: int, classes: int) -> Tensor:
    """The tokens of class 0, then those of class 1, ..., each padded with zeros to the same number."""
    batch, heads, _, width = x_BHTE.shape
    x_BcHtE = _fold(x_BHTE, unit, classes).reshape(batch, classes, heads, -1, width)
    return x_BcHtE.transpose(1, 2).flatten(2, 3)


def _band(pattern: Pattern, settings: Settings, dtype: torch.dtype) -> list[Tile]:
    """Tiles of queries with the keys of their window, and before those the far keys that the pattern adds.

    For local_block, the keys are listed twice, the second time by class of block: far keys are then one run per class.
    """
    places_T = settings.query_places
    length, tiles, masks = len(places_T), [], dict[tuple[int, ...], Tensor]()
    period = {"local_global": pattern.global_stride, "local_block": pattern.block_size * pattern.block_stride}
    for start, stop in _runs(pattern, length):
        low = max(0, start - pattern.window)
        far, mixed = _far_keys(pattern, start, stop, low, length)
        keys = (*far, slice(low, stop))
        phase = (start - low, stop - low, low % period.get(pattern.kind, 1))
        if mixed or phase not in masks:
            at_M = torch.cat([settings.key_places[piece] for piece in (keys if mixed else keys[-1:])])
            masks[phase] = _bias(visible(pattern, places_T[start:stop, None], at_M), dtype)
        tiles.append(Tile(slice(start, stop), keys, masks[phase]))
    return tiles


def _bias(visible_CM: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros_like(visible_CM, dtype=dtype).masked_fill_(~visible_CM, -torch.inf)


def _runs(pattern: Pattern, length: int) -> list[tuple[int, int]]:
    """The queries of each tile: for local_block whole blocks or parts of one, so that few classes meet in a tile."""
    if pattern.kind != "local_block":
        return [(start, min(start + BAND_ROWS, length)) for start in range(0, length, BAND_ROWS)]
    step = pattern.block_size * max(1, LEAST_ROWS // pattern.block_size)
    runs = []
    for first in range(0, length, step):
        last = min(first + step, length)
        runs += [(start, min(start + BAND_ROWS, last)) for start in range(first, last, BAND_ROWS)]
    return runs


def _far_keys(pattern: Pattern, start: int, stop: int, low: int, length: int) -> tuple[list[slice], bool]:
    """The keys before `low` that queries in [start, stop) see, and whether some of these queries see only some of them.

    Those of local_block stand in the list by class that follows the T keys, one run for each class of the queries.
    """
    if pattern.kind == "local_global":
        return [slice(0, low, pattern.global_stride)] if low else [], False
    if pattern.kind != "local_block":
        return [], False
    unit, classes = pattern.block_size, pattern.block_stride
    first, last = start // unit, (stop - 1) // unit
    rounds = math.ceil(length / (unit * classes))
    runs = []
    for block in range(first, min(last, first + classes - 1) + 1):
        whole, rest = divmod(max(0, low - block % classes * unit), unit * classes)
        count = whole * unit + min(rest, unit)
        if first == last:
            count = min(
                count, block // classes * unit
            )  # a window shorter than the block leaves some of it before `low`
        begin = length + block % classes * rounds * unit
        runs.append(slice(begin, begin + count))
    return [run for run in runs if run.stop > run.start], first != last
