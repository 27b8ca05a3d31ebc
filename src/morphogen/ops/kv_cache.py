"""Attention over a cache of past keys and values: what a decoder keeps, in which precision, and how it reads it.

B batch, H query heads, K kv heads, T new tokens, S cached and new tokens, E width of q and k, V width of v
"""

import itertools
import math
from collections.abc import Mapping

import torch
from torch import Tensor

from morphogen.ops.autocast import autocast_dtype
from morphogen.ops.patterns import Pattern, Quant, remembered
from morphogen.ops.sparse_attention import BAND_ROWS, attend
from morphogen.ops.tiled_attention import Settings, Tile, tiled_attention
from morphogen.ops.visibility import visible

LEVELS = 127


def places(runs: tuple[range, ...], device: torch.device) -> Tensor:
    """Runs of tokens as one tensor of their indices."""
    steps = [torch.arange(run.start, run.stop, run.step, device=device) for run in runs]
    return torch.cat(steps) if steps else torch.empty(0, dtype=torch.long, device=device)


def quantise(x: Tensor) -> tuple[Tensor, Tensor]:
    """int8 values and one scale per vector of the last axis: x ≈ values · scale, each within scale / 2 of x.

    scale = max |x| / 127, rounded to x's dtype; zero vectors have scale 0.
    """
    scale = x.abs().amax(-1, keepdim=True) / LEVELS
    full = torch.promote_types(x.dtype, torch.float32)
    values = (x.to(full) / scale.to(full).clamp(min=torch.finfo(full).tiny)).round_().clamp_(-LEVELS, LEVELS)
    return values.to(torch.int8), scale


def remember(
    state: dict[str, Tensor], new: Mapping[str, Tensor], pattern: Pattern, window: int | None, quant: Quant
) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Put new tokens into a cache; return what all of them are read as, and where the tokens and the new ones stand.

    state: empty at first; updated in place to hold what `remembered` says, quantised where `quant` says so.
    new: name -> (B, ..., T, width). Returned are name -> (B, ..., S, width), the cached and the new tokens; their
    places (S,); the places (T,) of the new ones. New tokens, too, are read as the cache gives them, so that chunks of
    any size decode the same.
    """
    example = next(iter(new.values()))
    start, count = seen(state), example.shape[-2]
    before = remembered(pattern, start, window)
    places_S = places((*before, range(start, start + count)), example.device)
    kept_M = torch.searchsorted(places_S, places(remembered(pattern, start + count, window), example.device))
    everything = len(kept_M) == len(places_S)
    whole: dict[str, Tensor] = {}
    for name, x in new.items():
        stored = {name: x}
        if quant == "int8":
            stored[name], stored[f"{name}_scale"] = quantise(x)
        for key, entries in stored.items():
            stored[key] = torch.cat([state[key].to(entries.dtype), entries], -2) if start else entries
            state[key] = stored[key] if everything else stored[key].index_select(-2, kept_M)
        whole[name] = stored[name] if quant == "none" else stored[name].to(x.dtype) * stored[f"{name}_scale"]
    state["seen"] = torch.full(example.shape[:1], start + count, device=example.device)
    return whole, places_S, places_S[-count:]


def seen(state: Mapping[str, Tensor]) -> int:
    """Tokens put into a cache so far."""
    return int(state["seen"][0]) if state else 0


def attend_on(
    q_BHTE: Tensor,
    k_BKSE: Tensor,
    v_BKSV: Tensor,
    places_T: Tensor,
    places_S: Tensor,
    pattern: Pattern,
    *,
    window: int | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    slopes_H: Tensor | None = None,
) -> Tensor:
    """`attend` for T queries that stand at `places_T` over keys that stand at `places_S`, in ascending order; y_BHTV.

    window: besides the pattern, a query sees only the last `window` tokens, itself included.
    """
    length = len(places_T)
    if len(places_S) == length and (window is None or window >= length):
        return attend(q_BHTE, k_BKSE, v_BKSV, pattern, scale=scale, softcap=softcap, slopes_H=slopes_H)
    dtype = autocast_dtype(q_BHTE.device) or q_BHTE.dtype
    old, tiles = len(places_S) - length, []
    for start, stop in itertools.pairwise([*range(0, length, BAND_ROWS), length]):
        i_C1, j_M = places_T[start:stop, None], places_S[: old + stop]
        seen_CM = visible(pattern, i_C1, j_M)
        if window is not None:
            seen_CM = seen_CM & (i_C1 - j_M < window)
        bias_CM = torch.zeros(seen_CM.shape, dtype=dtype, device=seen_CM.device).masked_fill_(~seen_CM, -torch.inf)
        tiles.append(Tile(slice(start, stop), (slice(0, old + stop),), bias_CM))
    settings = Settings(
        scale=1.0 / math.sqrt(q_BHTE.shape[-1]) if scale is None else scale,
        softcap=softcap,
        query_places=places_T,
        key_places=places_S,
        dropout=0.0,
        seed=0,
    )
    slopes_BH = None if slopes_H is None else slopes_H[None]
    return tiled_attention(q_BHTE.to(dtype), k_BKSE.to(dtype), v_BKSV.to(dtype), tiles, settings, slopes_BH)
