"""Slow references of the memories, one token and one slot at a time.

B batch, H heads, T tokens, S slots, N learned slots, E width of q and k, F features of a key, V width of v
"""

import math

import torch
from torch import Tensor


def mean_slots(x_BTD: Tensor, size: int, stride: int) -> Tensor:
    """The mean of tokens s·stride … s·stride + size − 1, for every s for which they are all there; s_BSD."""
    means = [x_BTD[:, i : i + size].sum(1) / size for i in range(0, x_BTD.shape[1] - size + 1, stride)]
    return torch.stack(means, 1) if means else x_BTD[:, :0]


def weighted_slots(x_BTD: Tensor, score_BT: Tensor, size: int, how: str) -> Tensor:
    """Σ_t w_t x_t over each complete chunk: w_t = e^score / Σ e^score, or 2σ(score) / size; s_BSD."""
    sums = []
    for i in range(0, x_BTD.shape[1] - size + 1, size):
        score_BC = score_BT[:, i : i + size]
        grown_BC = score_BC.exp() if how == "attention" else 2 / (1 + (-score_BC).exp())
        total_B1 = grown_BC.sum(1, keepdim=True) if how == "attention" else size
        sums.append((x_BTD[:, i : i + size] * (grown_BC / total_B1)[:, :, None]).sum(1))
    return torch.stack(sums, 1) if sums else x_BTD[:, :0]


def attend_slots(
    q_BHTE: Tensor, k_BHSE: Tensor, v_BHSV: Tensor, size: int, stride: int, keep: int | None = None
) -> Tensor:
    """Each token reads the last `keep` slots of those whose last token s·stride + size − 1 is before it; y_BHTV."""
    out = []
    for t in range(q_BHTE.shape[2]):
        seen = [s for s in range(k_BHSE.shape[2]) if s * stride + size - 1 < t]
        seen = seen if keep is None else seen[-keep:]
        if not seen:
            out.append(0 * q_BHTE[:, :, t, :1] * v_BHSV.new_zeros(v_BHSV.shape[-1]))
            continue
        scores_BHs = (k_BHSE[:, :, seen] * q_BHTE[:, :, t, None]).sum(-1) / math.sqrt(q_BHTE.shape[-1])
        out.append((scores_BHs.softmax(-1)[..., None] * v_BHSV[:, :, seen]).sum(2))
    return torch.stack(out, 2)


def attend_learned(q_BTHE: Tensor, k_HNE: Tensor, v_HNV: Tensor) -> Tensor:
    """Each token reads all learned slots; y_BTHV."""
    scores_BTHN = (q_BTHE[..., None, :] * k_HNE).sum(-1) / math.sqrt(q_BTHE.shape[-1])
    return (scores_BTHN.softmax(-1)[..., None] * v_HNV).sum(-2)


def delta_memory(
    q_BHTF: Tensor, k_BHTF: Tensor, v_BHTV: Tensor, beta_BHT: Tensor, state_BHFV: Tensor
) -> tuple[Tensor, Tensor]:
    """S ← S + k ⊗ β (v − Sᵀ k), y = Sᵀ q, token by token; y_BHTV and the last S."""
    out = []
    for t in range(q_BHTF.shape[2]):
        q, k, v, beta = q_BHTF[:, :, t], k_BHTF[:, :, t], v_BHTV[:, :, t], beta_BHT[:, :, t]
        held_BHV = (state_BHFV * k[..., None]).sum(2)
        state_BHFV = state_BHFV + k[..., None] * (beta[..., None] * (v - held_BHV))[:, :, None]
        out.append((state_BHFV * q[..., None]).sum(2))
    return torch.stack(out, 2), state_BHFV
