"""Attention over the past tokens that a small learned indexer scores highest: the `selector` of softmax attention.

B batch, T tokens, S tokens to read, D model dim, A indexer heads, I their width, H query heads, K kv heads,
E width of q and k, V width of v
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Annotated, Literal, NamedTuple, Self

import numpy as np
import torch
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from morphogen.ops.elementwise import apply_rope
from morphogen.ops.kv_cache import attend_on, remember, seen
from morphogen.ops.selection import (
    Scoring,
    attend_best,
    attend_picked,
    divergence,
    index_scores,
    pick_tokens,
    picked_scores,
)
from morphogen.ops.sparse_attention import attend
from morphogen.parts.alignment import Alignment
from morphogen.parts.base import Context, Cost, NormKind, Part, operator
from morphogen.parts.branch import Branch, Record, State
from morphogen.parts.layers import LayerNorm, Linear, rotations
from morphogen.parts.sparsity import Sparse, seen_pairs
from morphogen.parts.tensors import ZEROS, Axes, Init

#: The indexer's tensors, for the `axes`, `initial` and `zero_init` of parts that have one. Its weights start at zero:
#: all scores are then equal, and of equal scores the latest token wins, so that it starts as a sliding window.
SELECTOR_AXES: Mapping[str, Axes] = {
    "selector.q.weight": (("selector_heads", "selector_dim"), "dim"),
    "selector.k.weight": ("selector_dim", "dim"),
    "selector.w.weight": ("selector_heads", "dim"),
}
SELECTOR_INITIAL: Mapping[str, Init] = {"selector.w.weight": ZEROS}
SELECTOR_ZERO_INIT: Mapping[str, tuple[str, ...]] = {"selector.w.weight": ("selector_heads",)}
#: Fields of it that change no function.
SELECTOR_SIZES = frozenset({"selector_heads", "selector_loss"})
#: Fewest tokens to read that operators give.
LEAST_TOPK = 8


class Selective(Sparse):
    """Softmax attention that may read only the `selector_topk` past tokens its indexer scores highest.

    Score of token s for query t: Σ_a w[t, a] · ReLU(q[t, a] · k[s]) / √(A·I), q and w linear in the branch's input, k a
    LayerNorm of a linear map, q and k rotated. Of equal scores the later token wins. Up to `selector_topk` tokens this
    is dense attention. Ref: DeepSeek-V3.2, arXiv 2512.02556.

    selector_loss: what trains the indexer, whose input is detached in either case. `align`: an auxiliary loss, the KL
    divergence of the attention's distribution over the tokens it reads, mean over heads, from the softmax of their
    scores. `task`: the language model's own loss, as though the scores had been added to those of the attention
    (straight-through: they are, less themselves).
    """

    selector: Literal["none", "dsa"] = "none"
    selector_topk: Annotated[int, Field(ge=2)] = 64
    selector_heads: PositiveInt = 4
    selector_dim: Annotated[int, Field(ge=4, multiple_of=2)] = 32
    selector_loss: Literal["align", "task"] = "align"

    @model_validator(mode="after")
    def _selects_from_all(self) -> Self:
        if self.selector != "none" and self.sparsity != "none":
            raise ValueError(f"selector {self.selector} chooses among all past tokens, expected sparsity none")
        return self

    def traits(self) -> frozenset[str]:
        """A selector, where there is one."""
        return frozenset({"selector"} if self.selector != "none" else ())

    def inert(self) -> frozenset[str]:
        """The settings of a selector that is not there, and knobs of other patterns."""
        unused = super().inert()
        if self.selector == "none":
            unused |= {"selector_topk", "selector_heads", "selector_dim", "selector_loss"}
        return unused

    def absent(self, ctx: Context) -> frozenset[str]:
        """The indexer's tensors, without one."""
        return frozenset(SELECTOR_AXES) if self.selector == "none" else frozenset()

    def norms(self, ctx: Context) -> Mapping[str, tuple[str, NormKind]]:
        """The branch's norm, and that of the indexer's keys."""
        norms = dict(super().norms(ctx))
        if self.selector != "none":
            norms["selector.k_norm"] = ("selector_dim", "layernorm")
        return norms

    def sizes(self, ctx: Context) -> dict[str, int]:
        """selector_heads, selector_dim and dim."""
        return {"selector_heads": self.selector_heads, "selector_dim": self.selector_dim, "dim": ctx.dim}

    def align(self, parent: Part, ctx: Context, parent_ctx: Context) -> Alignment | None:
        """New indexer heads weigh nothing, and the others make up for the scale that falls with their number."""
        plain = super().align(parent, ctx, parent_ctx)
        if plain is None or not isinstance(parent, Selective):
            return plain
        ratio = math.sqrt(self.selector_heads / parent.selector_heads)
        return dataclasses.replace(plain, scales={**plain.scales, "selector.w.weight": ratio})

    def keys_read(self, ctx: Context) -> float:
        """Tokens that a query reads, the mean over a sequence."""
        if self.selector == "none":
            return seen_pairs(self.pattern, ctx.seq_len) / ctx.seq_len
        return float(np.minimum(np.arange(ctx.seq_len) + 1, self.selector_topk).mean())

    def selection_cost(self, ctx: Context) -> Cost:
        """Projections, and index scores of all pairs where there is a choice; keys in the cache."""
        if self.selector == "none":
            return Cost()
        heads, width = self.selector_heads, self.selector_dim
        at_T = np.arange(self.selector_topk, ctx.seq_len)
        pairs = float((at_T + 1).sum()) / ctx.seq_len
        flops = 2.0 * ctx.dim * (heads * width + width + heads) + 2.0 * heads * (width + 1) * pairs
        return Cost(flops=flops) + self.kv_policy.cost(self.pattern, ctx.seq_len, 1, width)


#: Indexer queries, keys and weights.
Index = tuple[Tensor, Tensor, Tensor]


class Selector(nn.Module):
    """The indexer, and attention over what it picks. theta: of RoPE on its queries and keys; None for no RoPE.
    stretch: what its positions are divided by."""

    def __init__(self, part: Selective, ctx: Context, theta: float | None, stretch: float = 1.0) -> None:
        super().__init__()
        self.part = part
        self.theta, self.stretch = theta, stretch
        self.q = Linear(ctx.dim, part.selector_heads * part.selector_dim)
        self.k = Linear(ctx.dim, part.selector_dim)
        self.w = Linear(ctx.dim, part.selector_heads)
        self.k_norm = LayerNorm(part.selector_dim)

    def index(self, x_BTD: Tensor, start: int) -> Index:
        """Indexer queries q_BATI, keys k_B1TI and weights w_BAT of tokens that stand at `start` and after."""
        x_BTD, (batch, length, _) = x_BTD.detach(), x_BTD.shape
        q_BATI = self.q(x_BTD).view(batch, length, -1, self.part.selector_dim).transpose(1, 2)
        k_B1TI = self.k_norm(self.k(x_BTD))[:, None]
        if self.theta is not None:
            places = range(start, start + length)
            cis_TF = rotations(places, self.part.selector_dim, self.theta, q_BATI, factor=self.stretch)
            q_BATI, k_B1TI = apply_rope(q_BATI, cis_TF), apply_rope(k_B1TI, cis_TF)
        return q_BATI, k_B1TI, self.w(x_BTD).mT

    def attend(
        self,
        x_BTD: Tensor,
        q_BHTE: Tensor,
        k_BKTE: Tensor,
        v_BKTV: Tensor,
        scoring: Scoring,
        record: Record | None,
        *,
        dropout: float,
    ) -> Tensor:
        """Attention of a whole sequence, y_BHTV; x is the branch's input. The alignment loss goes to `record`."""
        part, training = self.part, self.training and torch.is_grad_enabled()
        task = training and part.selector_loss == "task"
        align = training and part.selector_loss == "align" and record is not None
        if part.selector_topk >= x_BTD.shape[1] and not task and not align:
            return attend(q_BHTE, k_BKTE, v_BKTV, part.pattern, dropout=dropout, **vars(scoring))
        index = self.index(x_BTD, 0)
        picks = pick_tokens(*index, part.selector_topk)
        bias_BTS = None
        if task:
            scores_BTS = picked_scores(*index, picks)
            bias_BTS = scores_BTS - scores_BTS.detach()
        y_BHTV, p_BHTS = attend_picked(q_BHTE, k_BKTE, v_BKTV, picks, scoring, dropout=dropout, bias_BTS=bias_BTS)
        if align and record is not None:
            record.add_loss("selector", divergence(p_BHTS.detach().mean(1), picked_scores(*index, picks), picks))
        return y_BHTV

    def attend_on(
        self,
        index: Index,
        q_BHTE: Tensor,
        kept: Mapping[str, Tensor],
        places_T: Tensor,
        places_S: Tensor,
        scoring: Scoring,
    ) -> Tensor:
        """As `attend`, for tokens at `places_T` over what the cache gives, at `places_S`; y_BHTV.

        index: of the new tokens. kept: k_BKSE, v_BKSV and the index keys selector_k_B1SI.
        """
        part, window = self.part, self.part.kv_policy.window
        k_BKSE, v_BKSV, keys_B1SI = kept["k"], kept["v"], kept["selector_k"]
        if len(places_S) <= part.selector_topk:
            return attend_on(q_BHTE, k_BKSE, v_BKSV, places_T, places_S, part.pattern, window=window, **vars(scoring))
        if len(places_S) == len(places_T) and window is None:
            picks = pick_tokens(index[0], keys_B1SI, index[2], part.selector_topk)
            return attend_picked(q_BHTE, k_BKSE, v_BKSV, picks, scoring)[0]
        age_TS = places_T[:, None] - places_S
        hidden_TS = age_TS < 0 if window is None else (age_TS < 0) | (age_TS >= window)
        scores_BTS = index_scores(index[0], keys_B1SI, index[2])
        return attend_best(q_BHTE, k_BKSE, v_BKSV, scores_BTS, hidden_TS, age_TS, part.selector_topk, scoring)


class Past(NamedTuple):
    """What a decoder's new tokens read, themselves included: by name, and where it stands, `places_S`.

    places_T: where the new tokens stand. new_index: theirs, where there is an indexer.
    """

    kept: dict[str, Tensor]
    places_S: Tensor
    places_T: Tensor
    new_index: Index | None


class SelectiveBranch(Branch):
    """The module of a `Selective` part: attends to what its indexer picks or, without one, to all its pattern shows."""

    part: Selective
    selector: Selector | None

    def attend(
        self, x_BTD: Tensor, q_BHTE: Tensor, k_BKTE: Tensor, v_BKTV: Tensor, scoring: Scoring, *, dropout: float
    ) -> Tensor:
        """Attention of a whole sequence, y_BHTV; x is the branch's input. dropout: while training."""
        dropout = dropout if self.training else 0.0
        if self.selector is not None:
            return self.selector.attend(x_BTD, q_BHTE, k_BKTE, v_BKTV, scoring, self.record, dropout=dropout)
        return attend(q_BHTE, k_BKTE, v_BKTV, self.part.pattern, dropout=dropout, **vars(scoring))

    def remember(self, x_BTD: Tensor, state: State, new: Mapping[str, Tensor]) -> Past:
        """Puts new tokens, and what the indexer keeps of them, into `state`, under `kv_policy`; x as for `attend`."""
        policy, index = self.part.kv_policy, None
        if self.selector is not None:
            index = self.selector.index(x_BTD, seen(state))
            new = {**new, "selector_k": index[1]}
        return Past(*remember(state, new, self.part.pattern, policy.window, policy.quant), index)

    def attend_on(self, q_BHTE: Tensor, past: Past, scoring: Scoring) -> Tensor:
        """As `attend` without dropout, over the keys `k` and values `v` that are kept; y_BHTV."""
        (kept, places_S, places_T, new_index), part = past, self.part
        if self.selector is not None and new_index is not None:
            return self.selector.attend_on(new_index, q_BHTE, kept, places_T, places_S, scoring)
        k_BKSE, v_BKSV, window = kept["k"], kept["v"], part.kv_policy.window
        return attend_on(q_BHTE, k_BKSE, v_BKSV, places_T, places_S, part.pattern, window=window, **vars(scoring))


# --------------------------------------------------------------------------------------------------- operators


@operator(Selective, preserves=False)
def toggle_selector(part: Selective, ctx: Context, rng: np.random.Generator) -> Selective | None:
    """A learned selector of the tokens to read, put in (it starts with the latest ones) or taken out."""
    if part.selector != "none":
        return part.evolve(selector="none")
    return part.evolve(
        selector="dsa",
        selector_topk=max(LEAST_TOPK, ctx.seq_len // int(rng.choice([4, 8, 16]))),
        selector_heads=int(rng.choice([2, 4])),
        selector_dim=int(rng.choice([16, 32])),
    )


@operator(Selective, preserves=False)
def tune_selector(part: Selective, ctx: Context, rng: np.random.Generator) -> Selective | None:
    """Half or twice the tokens that the selector picks, or the width of its heads."""
    if part.selector == "none":
        return None
    factor = float(rng.choice([0.5, 2.0]))
    if rng.random() < 0.5:
        return part.evolve(selector_topk=max(LEAST_TOPK, int(part.selector_topk * factor)))
    return part.evolve(selector_dim=max(8, int(part.selector_dim * factor) // 2 * 2))


@operator(Selective, preserves=True)
def widen_selector(part: Selective, ctx: Context, rng: np.random.Generator) -> Selective | None:
    """Twice the selector's heads; the new ones weigh nothing."""
    return None if part.selector == "none" else part.evolve(selector_heads=2 * part.selector_heads)


@operator(Selective, preserves=False)
def narrow_selector(part: Selective, ctx: Context, rng: np.random.Generator) -> Selective | None:
    """Half the selector's heads; those of largest norm stay."""
    if part.selector == "none" or part.selector_heads < 2:
        return None
    return part.evolve(selector_heads=part.selector_heads // 2)


@operator(Selective, preserves=True)
def toggle_selector_loss(part: Selective, ctx: Context, rng: np.random.Generator) -> Selective | None:
    """Train the selector by the other signal: alignment with the attention, or the language model's loss."""
    if part.selector == "none":
        return None
    return part.evolve(selector_loss="task" if part.selector_loss == "align" else "align")
