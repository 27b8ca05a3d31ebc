"""Attention in which every query reads the `width` past tokens that an indexer scores highest, at the cost of those.

An index score is I[t, s] = Σ_h w[t, h] · ReLU(q[t, h] · k[s]) / √(A·I): cheap, for all pairs s ≤ t, in tiles that keep
only the winners. What the attention itself computes are dot products and weighted sums over the winners alone.
Ref: DeepSeek-V3.2, arXiv 2512.02556 (lightning indexer).

B batch, H query heads, K kv heads, T tokens, S slots of a query (the tokens it reads), R queries with a choice,
E width of q and k, V width of v, A indexer heads, I width of indexer heads, C queries of a tile
"""

import functools
import math
import warnings
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from morphogen.ops.autocast import autocast_dtype, no_autocast
from morphogen.ops.function import call

#: Queries whose index scores are computed at once, at most and as far as the scores stay below this size.
TILE_ROWS = 64
TILE_BYTES = 2**19
#: The bits of an fp32 score that decide: sign, exponent, and 16 significant bits, the first of which is implied.
COMPARED = -(2**8)
#: Bytes of keys and values that a decoder gathers at once.
GATHER_BYTES = 2**24


@dataclass(frozen=True)
class Scoring:
    """How attention scores come of dot products: softcap · tanh(scale · q·k / softcap) − slope · age of the key.

    softcap: none when None. slopes_H: ALiBi's, constants.
    """

    scale: float
    softcap: float | None = None
    slopes_H: Tensor | None = None

    def __call__(self, dots_BHTS: Tensor, age_BTS: Tensor) -> Tensor:
        """Scores of dot products whose queries were scaled, (B, H, T, S)."""
        scores_BHTS = dots_BHTS
        if self.softcap is not None:
            scores_BHTS = self.softcap * torch.tanh(scores_BHTS / self.softcap)
        if self.slopes_H is not None:
            slopes_H11 = self.slopes_H.detach()[:, None, None].to(scores_BHTS.dtype)
            scores_BHTS = scores_BHTS - slopes_H11 * age_BTS[:, None].to(scores_BHTS.dtype)
        return scores_BHTS


@dataclass
class Picks:
    """The tokens each of `length` queries reads: token t < width those up to itself, later ones `index[t − width]`.

    width: slots of a query. index_BRS: int64, tokens in no order. Slot s of an early query is token s; those after the
    query's own are hidden.
    """

    length: int
    width: int
    index_BRS: Tensor
    _readers: dict[int, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict, init=False, repr=False)

    @property
    def device(self) -> torch.device:
        """Where the indices are."""
        return self.index_BRS.device

    def tokens(self) -> Tensor:
        """index_BTS: the token of every slot."""
        early_WS = torch.arange(self.width, device=self.device).expand(len(self.index_BRS), self.width, -1)
        return torch.cat([early_WS, self.index_BRS], 1)

    def hidden(self) -> Tensor:
        """hidden_TS: True at the slots that a query must not read."""
        at_T = torch.arange(self.length, device=self.device)
        return torch.arange(self.width, device=self.device) > at_T[:, None]

    def readers(self, sample: int) -> tuple[Tensor, Tensor, Tensor]:
        """The picks of one sample by token: (order of its R·S slots, the query of each, where each token's begin)."""
        if sample not in self._readers:
            token_N = self.index_BRS[sample].flatten()
            order_N = token_N.argsort(stable=True)
            counts_T = torch.bincount(token_N, minlength=self.length)
            offsets_T = F.pad(counts_T.cumsum(0)[:-1], (1, 0))
            self._readers[sample] = order_N, order_N // self.width + self.width, offsets_T
        return self._readers[sample]

    def chosen(self, sample: int, dtype: torch.dtype) -> Tensor:
        """The picks of one sample as a sparse matrix (R, T) of zeros, its entries in the order of the slots."""
        token_N = self.index_BRS[sample].flatten()
        starts = torch.arange(0, len(token_N) + 1, self.width, device=self.device)
        size = (self.length - self.width, self.length)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch says once that sparse tensors are in beta
            return torch.sparse_csr_tensor(starts, token_N, torch.zeros_like(token_N, dtype=dtype), size)


@torch.no_grad()
def index_scores(q_BATI: Tensor, k_B1SI: Tensor, w_BAT: Tensor) -> Tensor:
    """I_BTS = Σ_a w ReLU(q · k) / √(A·I) of all pairs, causal or not; at least fp32."""
    total = torch.promote_types(q_BATI.dtype, torch.float32)
    heads, width = q_BATI.shape[1], q_BATI.shape[3]
    with no_autocast(q_BATI.device):
        keys_BIS, weights_BAT1 = k_B1SI[:, 0].to(total).mT, w_BAT[..., None].to(total) / math.sqrt(heads * width)
        scores_BTS = (q_BATI[:, 0].to(total) @ keys_BIS).relu_().mul_(weights_BAT1[:, 0])
        for head in range(1, heads):
            part_BTS = (q_BATI[:, head].to(total) @ keys_BIS).relu_()
            scores_BTS.addcmul_(part_BTS, weights_BAT1[:, head])
    return scores_BTS


def picked_scores(q_BATI: Tensor, k_B1TI: Tensor, w_BAT: Tensor, picks: Picks) -> Tensor:
    """Index scores of the tokens that each query reads, I_BTS; unlike `index_scores` with gradients."""
    heads, width = q_BATI.shape[1], q_BATI.shape[3]
    rectified_BATS = F.relu(dots(q_BATI, k_B1TI, picks))
    weights_BAT1 = w_BAT[..., None].to(rectified_BATS.dtype) / math.sqrt(heads * width)
    return (rectified_BATS * weights_BAT1).sum(1)


def divergence(p_BTS: Tensor, scores_BTS: Tensor, picks: Picks) -> Tensor:
    """KL(p ‖ softmax of the scores) over the tokens that a query reads, in nats, the mean over queries; 0-dim."""
    hidden_TS = picks.hidden()
    logq_BTS = scores_BTS.masked_fill(hidden_TS, -torch.inf).log_softmax(-1).masked_fill(hidden_TS, 0.0)
    p_BTS = p_BTS.to(logq_BTS.dtype)
    return (torch.xlogy(p_BTS, p_BTS) - p_BTS * logq_BTS).sum(-1).mean()


@torch.no_grad()
def highest(scores_BTS: Tensor, width: int) -> Tensor:
    """The `width` slots of highest score of each query, index_BTW in no order; of equal scores the later slots win.

    Scores are compared in 16 significant bits: equal tokens have equal scores but for rounding, which depends on how
    many tokens are computed at once, and must decide nothing. −inf is lowest.
    """
    bits_BTS = (scores_BTS.float() + 0.0).view(torch.int32) & COMPARED  # + 0.0: there are two zeros
    ordered_BTS = bits_BTS ^ (bits_BTS >> 31 & 0x7FFFFFFF)  # integers in the order of the floats
    slot_S = torch.arange(scores_BTS.shape[-1], device=scores_BTS.device)
    return (ordered_BTS.long() << 32 | slot_S).topk(width, dim=-1, sorted=False).indices


@torch.no_grad()
def pick_tokens(q_BATI: Tensor, k_B1TI: Tensor, w_BAT: Tensor, width: int) -> Picks:
    """The tokens that causal attention reads when each query reads the `width` of highest index score."""
    batch, length = len(k_B1TI), k_B1TI.shape[2]
    width = min(width, length)
    index_BRS = torch.empty(batch, length - width, width, dtype=torch.long, device=k_B1TI.device)
    start = width
    while start < length:
        stop = min(length, start + min(TILE_ROWS, max(1, TILE_BYTES // (4 * batch * length))))
        tile = slice(start, stop)
        scores_BCS = index_scores(q_BATI[:, :, tile], k_B1TI[:, :, :stop], w_BAT[:, :, tile])
        at_C = torch.arange(stop - start, device=k_B1TI.device)
        scores_BCS[..., tile].masked_fill_(at_C > at_C[:, None], -torch.inf)
        index_BRS[:, start - width : stop - width] = highest(scores_BCS, width)
        start = stop
    return Picks(length, width, index_BRS)


def attend_picked(
    q_BHTE: Tensor,
    k_BKTE: Tensor,
    v_BKTV: Tensor,
    picks: Picks,
    scoring: Scoring,
    *,
    dropout: float = 0.0,
    bias_BTS: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention over picked tokens: y_BHTV, and the probabilities p_BHTS of the slots (before dropout).

    dropout: share of probabilities set to zero. bias_BTS: added to the scores of every head.
    """
    places_T = torch.arange(picks.length, device=picks.device)
    dots_BHTS = dots(q_BHTE * scoring.scale, k_BKTE, picks)
    scores_BHTS = scoring(dots_BHTS, places_T[:, None] - picks.tokens())
    if bias_BTS is not None:
        scores_BHTS = scores_BHTS + bias_BTS[:, None].to(scores_BHTS.dtype)
    p_BHTS = scores_BHTS.masked_fill(picks.hidden(), -torch.inf).softmax(-1)
    used_BHTS = F.dropout(p_BHTS, dropout) if dropout > 0.0 else p_BHTS
    return weighted_sums(used_BHTS, v_BKTV, picks).to(autocast_dtype(q_BHTE.device) or v_BKTV.dtype), p_BHTS


@torch.no_grad()
def attend_best(
    q_BHTE: Tensor,
    k_BKSE: Tensor,
    v_BKSV: Tensor,
    scores_BTS: Tensor,
    hidden_TS: Tensor,
    age_TS: Tensor,
    width: int,
    scoring: Scoring,
) -> Tensor:
    """`attend_picked` for a decoder: each query reads the `width` keys of highest index score; y_BHTV.

    scores_BTS: index scores of all keys. hidden_TS: True at keys that a query must not read. age_TS: in tokens.
    """
    index_BTW = highest(scores_BTS.masked_fill(hidden_TS, -torch.inf), min(width, scores_BTS.shape[-1]))
    batch, kv_heads = k_BKSE.shape[:2]
    dtype = autocast_dtype(q_BHTE.device) or v_BKSV.dtype
    q_BHTE, k_BKSE, v_BKSV = _full(q_BHTE, k_BKSE, v_BKSV)
    entries = batch * kv_heads * index_BTW.shape[-1] * (k_BKSE.shape[-1] + v_BKSV.shape[-1])
    sample_B11 = torch.arange(batch, device=k_BKSE.device)[:, None, None]
    step, parts = max(1, GATHER_BYTES // (4 * entries)), []
    with no_autocast(q_BHTE.device):
        for start in range(0, q_BHTE.shape[2], step):
            rows = slice(start, start + step)
            index_BCW, q_BHCE = index_BTW[:, rows], q_BHTE[:, :, rows] * scoring.scale
            keys_BCWKE, values_BCWKV = (x.transpose(1, 2)[sample_B11, index_BCW] for x in (k_BKSE, v_BKSV))
            q_BKGCE = q_BHCE.reshape(batch, kv_heads, -1, *q_BHCE.shape[2:])
            dots_BHCW = torch.einsum("bkgce,bcwke->bkgcw", q_BKGCE, keys_BCWKE).flatten(1, 2)
            age_BCW, hidden_BCW = (x[rows].expand(batch, -1, -1).gather(-1, index_BCW) for x in (age_TS, hidden_TS))
            scores_BHCW = scoring(dots_BHCW, age_BCW).masked_fill(hidden_BCW[:, None], -torch.inf)
            p_BKGCW = scores_BHCW.softmax(-1).view(*q_BKGCE.shape[:4], -1)
            parts.append(torch.einsum("bkgcw,bcwkv->bkgcv", p_BKGCW, values_BCWKV).flatten(1, 2))
    return torch.cat(parts, 2).to(dtype)


def dots(a_BHTE: Tensor, b_BKTE: Tensor, picks: Picks) -> Tensor:
    """scores_BHTS: a of every query times b of the tokens it reads; at least fp32. Undefined at hidden slots."""
    out = call(_Dots, a_BHTE, b_BKTE, picks)
    assert isinstance(out, Tensor)
    return out


def weighted_sums(w_BHTS: Tensor, b_BKTV: Tensor, picks: Picks) -> Tensor:
    """y_BHTV = Σ_s w[t, s] · b[token of s]; at least fp32. w must be 0 at hidden slots."""
    out = call(_WeightedSums, w_BHTS, b_BKTV, picks)
    assert isinstance(out, Tensor)
    return out


class _Dots(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a_BHTE: Tensor, b_BKTE: Tensor, picks: Picks) -> Tensor:
        ctx.save_for_backward(a_BHTE, b_BKTE)
        ctx.picks = picks
        return _all_dots(a_BHTE, b_BKTE, picks)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, ds_BHTS: Tensor) -> tuple[Tensor | None, ...]:
        a_BHTE, b_BKTE = ctx.saved_tensors
        da = _all_sums(ds_BHTS, b_BKTE, ctx.picks) if ctx.needs_input_grad[0] else None
        db = _all_spread(ds_BHTS, a_BHTE, ctx.picks, b_BKTE.shape[1]) if ctx.needs_input_grad[1] else None
        return None if da is None else da.to(a_BHTE.dtype), None if db is None else db.to(b_BKTE.dtype), None


class _WeightedSums(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, w_BHTS: Tensor, b_BKTV: Tensor, picks: Picks) -> Tensor:
        ctx.save_for_backward(w_BHTS, b_BKTV)
        ctx.picks = picks
        return _all_sums(w_BHTS, b_BKTV, picks)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_BHTV: Tensor) -> tuple[Tensor | None, ...]:
        w_BHTS, b_BKTV = ctx.saved_tensors
        dw = _all_dots(dy_BHTV, b_BKTV, ctx.picks) if ctx.needs_input_grad[0] else None
        db = _all_spread(w_BHTS, dy_BHTV, ctx.picks, b_BKTV.shape[1]) if ctx.needs_input_grad[1] else None
        return None if dw is None else dw.to(w_BHTS.dtype), None if db is None else db.to(b_BKTV.dtype), None


def _full(*tensors: Tensor) -> list[Tensor]:
    """At least fp32, and of one dtype: embedding bags want it so."""
    dtype = functools.reduce(torch.promote_types, (x.dtype for x in tensors), torch.float32)
    return [x.to(dtype) for x in tensors]


def _all_dots(a_BHTE: Tensor, b_BKTE: Tensor, picks: Picks) -> Tensor:
    a_BHTE, b_BKTE = _full(a_BHTE, b_BKTE)
    (batch, heads, length, _), width, group = a_BHTE.shape, picks.width, a_BHTE.shape[1] // b_BKTE.shape[1]
    out_BHTS = a_BHTE.new_empty(batch, heads, length, width)
    with no_autocast(a_BHTE.device):
        for sample in range(batch):
            chosen_RT = picks.chosen(sample, a_BHTE.dtype) if length > width else None
            for head in range(heads):
                a_TE, b_TE = a_BHTE[sample, head], b_BKTE[sample, head // group]
                torch.mm(a_TE[:width], b_TE[:width].T, out=out_BHTS[sample, head, :width])
                if chosen_RT is not None:
                    dots_RT = torch.sparse.sampled_addmm(chosen_RT, a_TE[width:], b_TE.T, beta=0.0)
                    out_BHTS[sample, head, width:] = dots_RT.values().view(-1, width)
    return out_BHTS


def _all_sums(w_BHTS: Tensor, b_BKTV: Tensor, picks: Picks) -> Tensor:
    w_BHTS, b_BKTV = _full(w_BHTS, b_BKTV)
    (batch, heads, length, width), group = w_BHTS.shape, w_BHTS.shape[1] // b_BKTV.shape[1]
    out_BHTV = b_BKTV.new_empty(batch, heads, length, b_BKTV.shape[-1])
    with no_autocast(w_BHTS.device):
        for sample in range(batch):
            for head in range(heads):
                w_TS, b_TV = w_BHTS[sample, head], b_BKTV[sample, head // group].contiguous()
                torch.mm(w_TS[:width], b_TV[:width], out=out_BHTV[sample, head, :width])
                if length > width:
                    out_BHTV[sample, head, width:] = F.embedding_bag(
                        picks.index_BRS[sample], b_TV, mode="sum", per_sample_weights=w_TS[width:].contiguous()
                    )
    return out_BHTV


def _all_spread(w_BHTS: Tensor, a_BHTE: Tensor, picks: Picks, kv_heads: int) -> Tensor:
    """out[token of s] += w[t, s] · a[t], summed over the query heads of a kv head; out_BKTE."""
    w_BHTS, a_BHTE = _full(w_BHTS, a_BHTE)
    (batch, heads, length, width), group = w_BHTS.shape, w_BHTS.shape[1] // kv_heads
    out_BKTE = a_BHTE.new_zeros(batch, kv_heads, length, a_BHTE.shape[-1])
    with no_autocast(a_BHTE.device):
        for sample in range(batch):
            for head in range(heads):
                w_TS, a_TE = w_BHTS[sample, head], a_BHTE[sample, head].contiguous()
                out_TE = out_BKTE[sample, head // group]
                out_TE[:width].addmm_(w_TS[:width].T, a_TE[:width])
                if length > width:
                    order_N, query_N, starts_T = picks.readers(sample)
                    weights_N = w_TS[width:].flatten().index_select(0, order_N)
                    out_TE += F.embedding_bag(query_N, a_TE, starts_T, mode="sum", per_sample_weights=weights_N)
    return out_BKTE
