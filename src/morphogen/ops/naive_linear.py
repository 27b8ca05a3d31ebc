"""Slow references for linear attention and the gated delta rule: one token after another, from the definitions alone.

B batch, K kv heads, G query heads per kv head, T tokens, E width of q and k, V width of v
"""

import torch
from torch import Tensor


def linear_attention(
    q_BKGTE: Tensor, k_BKTE: Tensor, v_BKTV: Tensor, log_decay_BKT: Tensor, state_BKEV: Tensor
) -> tuple[Tensor, Tensor]:
    """S_t = exp(g_t) S_{t−1} + k_t v_tᵀ, y_t = S_tᵀ q_t; y_BKGTV and the last state."""
    outputs = []
    for t in range(k_BKTE.shape[2]):
        written_BKEV = k_BKTE[:, :, t, :, None] * v_BKTV[:, :, t, None, :]
        state_BKEV = log_decay_BKT[:, :, t, None, None].exp() * state_BKEV + written_BKEV
        outputs.append(q_BKGTE[:, :, :, t] @ state_BKEV)
    return torch.stack(outputs, 3), state_BKEV


def gated_delta(
    q_BKGTE: Tensor, k_BKTE: Tensor, v_BKTV: Tensor, log_decay_BKT: Tensor, beta_BKT: Tensor, state_BKEV: Tensor
) -> tuple[Tensor, Tensor]:
    """S ← exp(g_t) S_{t−1}, S_t = S + β_t k_t (v_t − Sᵀ k_t)ᵀ, y_t = S_tᵀ q_t; y_BKGTV and the last state."""
    outputs = []
    for t in range(k_BKTE.shape[2]):
        state_BKEV = log_decay_BKT[:, :, t, None, None].exp() * state_BKEV
        k_BKE1 = k_BKTE[:, :, t, :, None]
        wrong_BKV = v_BKTV[:, :, t] - (k_BKE1 * state_BKEV).sum(2)
        state_BKEV = state_BKEV + k_BKE1 * (beta_BKT[:, :, t, None] * wrong_BKV)[:, :, None]
        outputs.append(q_BKGTE[:, :, :, t] @ state_BKEV)
    return torch.stack(outputs, 3), state_BKEV
