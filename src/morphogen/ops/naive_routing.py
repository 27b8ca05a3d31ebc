"""Slow references for mixtures of experts: one token and one expert at a time.

B sequences, T tokens, N tokens, F places, E experts, K choices per token, D model dim, H hidden
"""

import math

import torch
from torch import Tensor

from morphogen.ops.elementwise import ACTIVATIONS, GATES
from morphogen.ops.names import RouterKind


def choose(
    logits_NF: Tensor, k: int, kind: RouterKind, temperature: float, bias_F: Tensor | None
) -> tuple[Tensor, Tensor]:
    """(places_NK, weights_NK) by the definition; a single choice weighs 1 but has the gradient of log s."""
    all_places, all_weights = [], []
    for logits_F in logits_NF / temperature:
        scores_F = logits_F.softmax(0) if kind == "softmax" else logits_F.sigmoid()
        ranked_F = logits_F if kind == "softmax" else scores_F
        if bias_F is not None:
            ranked_F = ranked_F + bias_F
        ranks = ranked_F.tolist()
        places = sorted(range(len(ranks)), key=lambda f: -ranks[f])[:k]
        chosen_K = scores_F[torch.tensor(places)]
        all_places.append(torch.tensor(places))
        all_weights.append(chosen_K / chosen_K.sum() if k > 1 else chosen_K / chosen_K.detach())
    return torch.stack(all_places), torch.stack(all_weights)


def within_capacity(experts_BTK: Tensor, n_experts: int, factor: float) -> Tensor:
    """kept_BTK: an expert takes a token unless it has as many of this sequence as its capacity allows by then."""
    batch, length, k = experts_BTK.shape
    kept_BTK = torch.zeros(batch, length, k, dtype=torch.bool)
    for b in range(batch):
        load = [0] * n_experts
        for t in range(length):
            for j, expert in enumerate(experts_BTK[b, t].tolist()):
                if load[expert] < math.ceil(factor * k * (t + 1) / n_experts):
                    load[expert] += 1
                    kept_BTK[b, t, j] = True
    return kept_BTK


def experts(
    x_ND: Tensor,
    experts_NK: Tensor,
    weights_NK: Tensor,
    kept_NK: Tensor,
    up_EHD: Tensor,
    gate_EHD: Tensor | None,
    down_EHD: Tensor,
    activation: str,
) -> Tensor:
    """y_ND: for every token, the sum over its experts of weight times the expert's output."""
    outputs = []
    for n, x_D in enumerate(x_ND):
        y_D = 0 * x_D
        for j, e in enumerate(experts_NK[n].tolist()):
            if not kept_NK[n, j]:
                continue
            up_H = up_EHD[e] @ x_D
            h_H = ACTIVATIONS[activation](up_H) if gate_EHD is None else GATES[activation](gate_EHD[e] @ x_D) * up_H
            y_D = y_D + weights_NK[n, j] * (h_H @ down_EHD[e])
        outputs.append(y_D)
    return torch.stack(outputs)
