"""The indexer of `Selective` attention, and what the modules of its kinds share.

B batch, T tokens, S tokens to read, D model dim, A indexer heads, I their width, H query heads, K kv heads,
E width of q and k, V width of v
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
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
from morphogen.parts.attention.selector import Selective
from morphogen.parts.contract.branch import Branch, Record, State
from morphogen.parts.contract.layers import LayerNorm, Linear, rotations
from morphogen.parts.contract.part import Context

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
