"""Attention under a pattern by torch's `flex_attention`, which makes one kernel of scores, mask and softmax.

On a CPU it has no backward pass, and is only tested there, uncompiled.

B batch, H query heads, K kv heads (H = K·group), T tokens, E width of q and k, V width of v
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from morphogen.ops import naive
from morphogen.ops.backends import Backend, Sizes, Trial
from morphogen.ops.patterns import Pattern
from morphogen.ops.visibility import visible

#: Widths of heads that the compiled kernel takes.
LEAST_WIDTH, MOST_WIDTH = 16, 256
#: Shapes and patterns of one process that are compiled, before the compiler would give up.
MOST_COMPILED = 256
#: Tokens that it is tried on: not a multiple of a block.
TRIED_TOKENS = 200


def flex(
    q_BHTE: Tensor,
    k_BKTE: Tensor,
    v_BKTV: Tensor,
    pattern: Pattern,
    *,
    scale: float,
    softcap: float | None = None,
    slopes_H: Tensor | None = None,
    compiled: bool = True,
) -> Tensor:
    """As `sparse_attention.attend`, without dropout; y_BHTV."""
    attention: Any = _compiled() if compiled else flex_attention
    y_BHTV = attention(
        q_BHTE,
        k_BKTE,
        v_BKTV,
        score_mod=_score(softcap, slopes_H),
        block_mask=block_mask(pattern, q_BHTE.shape[2], q_BHTE.device),
        scale=scale,
        enable_gqa=q_BHTE.shape[1] != k_BKTE.shape[1],
    )
    assert isinstance(y_BHTV, Tensor)
    return y_BHTV


@functools.lru_cache(maxsize=256)
def block_mask(pattern: Pattern, length: int, device: torch.device) -> BlockMask:
    """Which blocks of scores are computed, and which keys of those are seen."""

    def seen(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return visible(pattern, i, j)

    return create_block_mask(seen, None, None, length, length, device=device)


def _score(softcap: float | None, slopes_H: Tensor | None) -> Callable[..., Tensor] | None:
    """What becomes of a score before the softmax."""
    if softcap is None and slopes_H is None:
        return None

    def changed(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        if softcap is not None:
            score = softcap * torch.tanh(score / softcap)
        return score if slopes_H is None else score - slopes_H[h] * (i - j)

    return changed


@functools.cache
def _compiled() -> Callable[..., Any]:
    """Compiled anew for every shape and pattern; what is compiled is kept for the process."""
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, MOST_COMPILED)
    compiled: Callable[..., Any] = torch.compile(flex_attention, dynamic=False)
    return compiled


def sizes_of(q_BHTE: Tensor, k_BKTE: Tensor, v_BKTV: Tensor, pattern: Pattern, capped: bool, sloped: bool) -> Sizes:
    """Heads, group and widths, pattern, and whether scores are capped and sloped."""
    heads = q_BHTE.shape[1]
    return heads, heads // k_BKTE.shape[1], q_BHTE.shape[3], v_BKTV.shape[3], pattern, capped, sloped


def _fits(sizes: Sizes, tokens: int) -> str:
    widths = sizes[2:4]
    return "" if all(LEAST_WIDTH <= width <= MOST_WIDTH for width in widths) else f"heads are {widths} wide"


def _trial(sizes: Sizes) -> Trial:
    heads, group, width, values, pattern, capped, sloped = sizes
    draw = torch.Generator().manual_seed(0)
    shapes = ((heads, width), (heads // group, width), (heads // group, values))
    inputs = tuple(torch.randn(1, n, TRIED_TOKENS, e, generator=draw, dtype=torch.float64) for n, e in shapes)
    cap, scale = (5.0 if capped else None), width**-0.5
    slopes_H = torch.linspace(0.5, 0.01, heads) if sloped else None

    def kernel(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        on_device = None if slopes_H is None else slopes_H.to(q.device)
        return (flex(q, k, v, pattern, scale=scale, softcap=cap, slopes_H=on_device),)

    def reference(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        return (naive.attention(q, k, v, pattern, scale=scale, softcap=cap, slopes_H=slopes_H),)

    return Trial(inputs, (True, True, True), kernel, reference)


FLEX = Backend(
    name="flex_attention",
    library="",
    devices=frozenset({"cuda"}),
    run=flex,
    trial=_trial,
    fits=_fits,
    note="patterns, ALiBi and softcap in one compiled kernel; plain dense attention takes scaled_dot_product_attention",
)
#: Sizes that it is tried at when it is only asked about.
USUAL: Sizes = (4, 2, 64, 64, Pattern("sliding", window=32), True, True)
