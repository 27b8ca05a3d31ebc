"""FLOPs of a forward pass as torch counts them, to hold the costs' predictions against.

Attention runs by a slow path that multiplies each query with the keys it sees and no others: tiles that are partly
hidden compute more than they need, which is no part of the cost. Operations that torch's counter does not know are
given to it (`MORE`); those that are no matmul at all a part declares itself (`Cost.elementwise`).

B batch, T tokens, H query heads, K kv heads, E width of q and k, V width of v, D model dim
"""

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, cast
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from morphogen.blueprint.schema import Blueprint
from morphogen.ops import naive, routing
from morphogen.ops.patterns import Pattern
from morphogen.parts.attention import selector_layer
from morphogen.parts.attention.selector_layer import Selector
from morphogen.parts.contract.branch import State
from morphogen.parts.ffn.moe import MoE


def _grouped(x: Any, w: Any, *rest: Any, **options: Any) -> int:
    return cast(int, 2 * math.prod(x) * w[-1])


def _solve(triangle: Any, given: Any, *rest: Any, **options: Any) -> int:
    """A triangle against its right-hand sides: half a square matmul."""
    return cast(int, math.prod(triangle) * given[-1])


def _vector(matrix: Any, vector: Any, *rest: Any, **options: Any) -> int:
    return cast(int, 2 * math.prod(matrix))


ATEN = torch.ops.aten
#: Operations that torch's counter leaves out.
MORE = {ATEN._grouped_mm: _grouped, ATEN.linalg_solve_triangular: _solve, ATEN.mv: _vector, ATEN.dot: _vector}


@functools.lru_cache(maxsize=4096)
def _seen(pattern: Pattern, length: int) -> Tensor:
    """(query, key) of every pair, (P, 2)."""
    return naive.mask(pattern, length).nonzero()


def attend(q_BHTE: Tensor, k_BKTE: Tensor, v_BKTV: Tensor, pattern: Pattern, **scoring: Any) -> Tensor:
    """What attention multiplies, pair by pair; of the right shape, without scale and softmax."""
    return _read(q_BHTE, k_BKTE, v_BKTV, _seen(pattern, q_BHTE.shape[2]))


def _read(q_BHTE: Tensor, k_BKTE: Tensor, v_BKTV: Tensor, pairs_P2: Tensor) -> Tensor:
    (batch, heads, length, _), kv_heads = q_BHTE.shape, k_BKTE.shape[1]
    query_P, key_P = pairs_P2.unbind(1)
    q_NTGE = q_BHTE.reshape(batch * kv_heads, heads // kv_heads, length, -1).transpose(1, 2)
    q_MGE = q_NTGE[:, query_P].flatten(0, 1)
    k_ME, v_MV = k_BKTE.flatten(0, 1)[:, key_P].flatten(0, 1), v_BKTV.flatten(0, 1)[:, key_P].flatten(0, 1)
    y_MGV = torch.bmm(torch.bmm(q_MGE, k_ME[:, :, None]), v_MV[:, None])
    y_NPGV = y_MGV.view(batch * kv_heads, -1, *y_MGV.shape[1:])
    y_NTGV = y_NPGV.new_zeros(len(y_NPGV), length, *y_NPGV.shape[2:]).index_add(1, query_P, y_NPGV)
    y_BHTV: Tensor = y_NTGV.transpose(1, 2).reshape(batch, heads, length, -1)
    return y_BHTV / length


def select(
    self: Selector,
    x_BTD: Tensor,
    q_BHTE: Tensor,
    k_BKTE: Tensor,
    v_BKTV: Tensor,
    *rest: Any,
    **more: Any,
) -> Tensor:
    """What a selector and its attention multiply; which tokens it picks does not matter, so the first ones."""
    q_BATI, k_B1TI, w_BAT = self.index(x_BTD, 0)
    length, width = x_BTD.shape[1], self.part.selector_topk
    at_T = torch.arange(length)
    upto_TT = at_T <= at_T[:, None]
    query_P, key_P = upto_TT[width:].nonzero().unbind(1)
    dots_BPA1 = q_BATI[:, :, width:].transpose(1, 2)[:, query_P] @ k_B1TI[:, 0, key_P, :, None]
    _ = w_BAT[:, :, width:].mT[:, query_P, None] @ dots_BPA1
    return _read(q_BHTE, k_BKTE, v_BKTV, (upto_TT & (at_T < width)).nonzero())


def in_turn(logits_NF: Tensor, k: int, *rest: Any, **more: Any) -> routing.Choice:
    """Places chosen one after another, so that all have the same load where N·k is a multiple of their number."""
    tokens, places = logits_NF.shape
    places_NK = (torch.arange(tokens * k).view(tokens, k)) % places
    weights_NK = torch.full((tokens, k), 1.0 / k, dtype=logits_NF.dtype)
    return routing.Choice(places_NK, weights_NK, logits_NF)


@contextlib.contextmanager
def _slow_paths() -> Iterator[None]:
    with (
        patch.object(selector_layer, "attend", attend),
        patch.object(Selector, "attend", select),
        patch.object(routing, "choose", in_turn),
    ):
        yield


def counted_flops(forward: Callable[[], object]) -> float:
    """FLOPs of one call, as counted.

    Args:
        forward: Runs a model or a module, outside training.
    """
    with _slow_paths(), torch.no_grad(), FlopCounterMode(display=False, custom_mapping=MORE) as counter:
        forward()
    return float(counter.get_total_flops())


def held_bytes(state: State) -> int:
    """What a branch remembers, less where the next token stands."""
    return sum(x.numel() * x.element_size() for name, x in state.items() if name != "seen")


def undropped(blueprint: Blueprint) -> Blueprint:
    """The same, its mixtures refusing no token."""
    blocks = [
        block.model_copy(update={"ffn": block.ffn.model_copy(update={"drop_policy": "none"})})
        if isinstance(block.ffn, MoE)
        else block
        for block in blueprint.blocks
    ]
    return blueprint.model_copy(update={"blocks": tuple(blocks)})
