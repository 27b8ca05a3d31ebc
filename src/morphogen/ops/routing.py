"""Sending tokens to experts: choosing them, keeping to a capacity, and running them on tokens sorted by expert.

B sequences, T tokens of a sequence, N tokens, F places (what competes for a token), E experts, K choices per token,
A assignments of tokens to experts, sorted by expert, a those of one expert, D model dim, H hidden
"""

import functools
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from morphogen.ops.autocast import no_autocast
from morphogen.ops.elementwise import ACTIVATIONS, gated_activation
from morphogen.ops.names import RouterKind

#: Strides that torch's grouped matmul takes, in bytes.
GROUPED_ALIGNMENT = 16


class Choice(NamedTuple):
    """Of every token: the places that take it, their weights, and the log of every place's score.

    places_NK: distinct. weights_NK: sum to 1. logp_NF: unnormalised for the sigmoid router.
    """

    places_NK: Tensor
    weights_NK: Tensor
    logp_NF: Tensor


def choose(
    logits_NF: Tensor, k: int, kind: RouterKind, temperature: float = 1.0, bias_F: Tensor | None = None
) -> Choice:
    """The k places of highest score for each token, weighted by score: w = s / Σ s over the chosen.

    s = softmax(logits / temperature) or sigmoid(logits / temperature). bias_F: added for the choice only, to the logits
    of the softmax router, to the scores of the sigmoid one; it has no part in the weights. Ref: arXiv 2101.03961
    (token choice), 2408.15664 (bias), 2412.19437 (sigmoid).

    With k = 1 the weight is 1 and its gradient that of log s, so that the router learns all the same.
    """
    scaled_NF = logits_NF / temperature
    if kind == "softmax":
        logp_NF, ranked_NF = scaled_NF.log_softmax(-1), scaled_NF.detach()
    else:
        logp_NF, ranked_NF = F.logsigmoid(scaled_NF), scaled_NF.detach()
        if bias_F is not None:
            ranked_NF = ranked_NF.sigmoid()
    if bias_F is not None:
        ranked_NF = ranked_NF + bias_F
    places_NK = ranked_NF.topk(k, dim=-1).indices
    chosen_NK = logp_NF.gather(-1, places_NK)
    weights_NK = chosen_NK.softmax(-1) if k > 1 else (chosen_NK - chosen_NK.detach()).exp()
    return Choice(places_NK, weights_NK, logp_NF)


def between_twins(turn_NK: Tensor, lean_NK: Tensor, split_NK: Tensor) -> tuple[Tensor, Tensor]:
    """Which of two twins takes a token: (second_NK, boolean; factor_NK on the weight, 1 with a gradient).

    turn_NK: logit of the second, σ(turn) its share; it takes the token when turn + lean > 0. The factor's gradient is
    that of log σ(±turn), as for a single choice. split_NK: False where a place has one expert only.
    """
    second_NK = split_NK & (turn_NK + lean_NK > 0)
    logq_NK = F.logsigmoid(torch.where(second_NK, turn_NK, -turn_NK))
    return second_NK, torch.where(split_NK, (logq_NK - logq_NK.detach()).exp(), 1.0)


def ceilings(factor: float, k: int, n_experts: int, start: int, length: int) -> Tensor:
    """⌈factor·k·(t + 1) / n_experts⌉, how many of the tokens 0..t of a sequence one expert may take, from t = start on.

    (T,), on the CPU: the products are taken in fp64, which not every device has.
    """
    t_T = torch.arange(start, start + length, dtype=torch.float64)
    return (factor * k * (t_T + 1) / n_experts).ceil().long()


def within_capacity(experts_BTK: Tensor, ceiling_T: Tensor, load_BE: Tensor) -> tuple[Tensor, Tensor]:
    """Which assignments an expert takes that refuses tokens while it is full: (kept_BTK, load_BE afterwards).

    load_BE: tokens taken before. a_t = min(a_{t−1} + s_t, ceiling_t), s_t being 1 where token t is sent, has the closed
    form a_t = S_t − max(−a_{−1}, max over u ≤ t of (S_u − ceiling_u)), S the running sum of s. Only the past counts, so
    a prefix decides as the whole does.
    """
    batch, length, _ = experts_BTK.shape
    sent_BTE = torch.zeros(batch, length, load_BE.shape[1], dtype=load_BE.dtype, device=load_BE.device)
    sums_BTE = sent_BTE.scatter_(2, experts_BTK, 1).cumsum(1)
    over_BTE = (sums_BTE - ceiling_T[:, None]).cummax(1).values
    taken_BTE = sums_BTE - torch.maximum(over_BTE, -load_BE[:, None])
    before_BTE = torch.cat([load_BE[:, None], taken_BTE[:, :-1]], 1)
    return (taken_BTE > before_BTE).gather(2, experts_BTK), taken_BTE[:, -1]


def balance_loss(probs_NE: Tensor, load_E: Tensor) -> Tensor:
    """E · Σ_e f_e · P_e: f the share of assignments, P the mean probability, through which the gradient goes.

    1 when balanced. Ref: arXiv 2101.03961, equation 4.
    """
    share_E = load_E / load_E.sum().clamp(min=1)
    return probs_NE.shape[-1] * (share_E.to(probs_NE.dtype) * probs_NE.mean(0)).sum()


def z_loss(logits_NF: Tensor) -> Tensor:
    """mean(logsumexp(logits)²), which keeps router logits small. Ref: arXiv 2202.08906, equation 5."""
    return logits_NF.logsumexp(-1).square().mean()


def entropy(probs_NE: Tensor) -> Tensor:
    """Mean entropy of the tokens' distributions over experts, in nats."""
    entropy_N: Tensor = torch.special.entr(probs_NE).sum(-1)
    return entropy_N.mean()


# --------------------------------------------------------------------------------------------- running the experts


@dataclass(frozen=True)
class Dispatch:
    """Assignments sorted by expert: assignment a is of token `token_A[a]`, and choice `order_A[a]` of all N·K.

    counts_E: assignments of each expert.
    """

    order_A: Tensor
    token_A: Tensor
    counts_E: Tensor

    def divided(self, first: int) -> list["Dispatch"]:
        """The assignments to the first experts together, then those to each of the others alone."""
        groups = [self.counts_E[:first], *torch.split(self.counts_E[first:], 1)]
        sizes = [int(counts.sum()) for counts in groups]
        pieces = zip(torch.split(self.order_A, sizes), torch.split(self.token_A, sizes), groups, strict=True)
        return [Dispatch(*piece) for piece in pieces]

    def weights(self, weights_NK: Tensor) -> Tensor:
        """Of each assignment, weights_A."""
        return weights_NK.flatten().index_select(0, self.order_A)

    def combine(self, y_AD: Tensor, weights_NK: Tensor) -> Tensor:
        """Each token's outputs, times its weights, summed; (N, D) in y's dtype."""
        weights_A1 = self.weights(weights_NK)[:, None].to(y_AD.dtype)
        y_ND = y_AD.new_zeros(len(weights_NK), y_AD.shape[1])
        return y_ND.index_add(0, self.token_A, y_AD * weights_A1)


def dispatch(experts_NK: Tensor, n_experts: int, kept_NK: Tensor | None = None) -> Dispatch:
    """Sort the assignments by expert, tokens in order within one; those not kept are left out."""
    flat = experts_NK.flatten()
    if kept_NK is not None:
        flat = flat.masked_fill(~kept_NK.flatten(), n_experts)
    order_A = flat.argsort(stable=True)
    counts_E = flat.bincount(minlength=n_experts + 1)[:n_experts]
    if kept_NK is not None:
        order_A = order_A[: int(counts_E.sum())]
    return Dispatch(order_A, order_A // experts_NK.shape[1], counts_E)


def expert_ffn(
    x_ND: Tensor,
    weights_NK: Tensor,
    dispatch: Dispatch,
    up_EHD: Tensor,
    gate_EHD: Tensor | None,
    down_EHD: Tensor,
    activation: str,
) -> Tensor:
    """Σ over a token's assignments to e of w · (act(gate_e x) ⊙ up_e x) down_e, (N, D) in x's dtype.

    Without a gate it is act(up_e x) down_e. Weights are cast to x's dtype. By torch's grouped matmul where that can,
    expert by expert elsewhere.
    """
    return dispatch.combine(assigned_outputs(x_ND, dispatch, up_EHD, gate_EHD, down_EHD, activation), weights_NK)


def assigned_outputs(
    x_ND: Tensor, dispatch: Dispatch, up_EHD: Tensor, gate_EHD: Tensor | None, down_EHD: Tensor, activation: str
) -> Tensor:
    """Every assignment's output, y_AD, the way that suits the sizes and the device."""
    outputs = grouped_outputs if _groupable(x_ND, up_EHD) else sliced_outputs
    return outputs(x_ND, dispatch, up_EHD, gate_EHD, down_EHD, activation)


def _groupable(x_ND: Tensor, up_EHD: Tensor) -> bool:
    """Whether torch's grouped matmul takes such sizes, on such a device."""
    step = GROUPED_ALIGNMENT // x_ND.element_size()
    aligned = up_EHD.shape[1] % step == 0 and up_EHD.shape[2] % step == 0
    return aligned and grouped_mm_works(x_ND.device.type, x_ND.dtype)


def grouped_outputs(
    x_ND: Tensor, dispatch: Dispatch, up_EHD: Tensor, gate_EHD: Tensor | None, down_EHD: Tensor, activation: str
) -> Tensor:
    """Every assignment's output, y_AD, by three grouped matmuls."""
    x_AD, ends_E = x_ND.index_select(0, dispatch.token_A), dispatch.counts_E.cumsum(0, dtype=torch.int32)
    up_AH = F.grouped_mm(x_AD, up_EHD.to(x_AD.dtype).mT, offs=ends_E)
    if gate_EHD is None:
        h_AH = ACTIVATIONS[activation](up_AH)
    else:
        h_AH = gated_activation(activation, F.grouped_mm(x_AD, gate_EHD.to(x_AD.dtype).mT, offs=ends_E), up_AH)
    return F.grouped_mm(h_AH, down_EHD.to(x_AD.dtype), offs=ends_E)


def sliced_outputs(
    x_ND: Tensor, dispatch: Dispatch, up_EHD: Tensor, gate_EHD: Tensor | None, down_EHD: Tensor, activation: str
) -> Tensor:
    """Every assignment's output, y_AD, expert by expert; for sizes and dtypes that the grouped matmul does not take."""
    dtype, counts = x_ND.dtype, dispatch.counts_E.tolist()
    x_aD = torch.split(x_ND.index_select(0, dispatch.token_A), counts)
    ups, downs = up_EHD.to(dtype).unbind(), down_EHD.to(dtype).unbind()
    if gate_EHD is None:
        hs = [ACTIVATIONS[activation](x @ up_HD.t()) for x, up_HD in zip(x_aD, ups, strict=True)]
    else:
        gates = gate_EHD.to(dtype).unbind()
        hs = [
            gated_activation(activation, x @ gate_HD.t(), x @ up_HD.t())
            for x, gate_HD, up_HD in zip(x_aD, gates, ups, strict=True)
        ]
    return torch.cat([h_aH @ down_HD for h_aH, down_HD in zip(hs, downs, strict=True)])


@functools.cache
def grouped_mm_works(device: str, dtype: torch.dtype) -> bool:
    """Whether this torch multiplies groups of rows on such a device, backwards too; wherever it is asked first."""
    if not hasattr(F, "grouped_mm"):
        return False
    try:
        with torch.inference_mode(False), torch.enable_grad(), no_autocast(torch.device(device)):
            x = torch.ones(8, 8, device=device, dtype=dtype, requires_grad=True)
            w = torch.ones(2, 8, 8, device=device, dtype=dtype, requires_grad=True)
            y = F.grouped_mm(x, w, offs=torch.tensor([3, 8], device=device, dtype=torch.int32))
            torch.autograd.grad(y, (x, w), torch.ones_like(y))
    except (RuntimeError, ValueError):
        return False
    return True
