"""Slow references for attention over picked tokens and through a latent, one query at a time, from the definitions.

B batch, H query heads, K kv heads, T tokens, E width of q and k, V width of v, A indexer heads, I their width,
L latent dim, R width of the rotated key
"""

import math

import torch
from torch import Tensor

from morphogen.ops import naive
from morphogen.ops.patterns import Pattern


def index_scores(q_BATI: Tensor, k_B1TI: Tensor, w_BAT: Tensor, sample: int, token: int) -> Tensor:
    """Scores of tokens 0..token for one query, (token + 1,)."""
    heads, _, width = q_BATI.shape[1:]
    total = k_B1TI.new_zeros(token + 1)
    for head in range(heads):
        dots_S = k_B1TI[sample, 0, : token + 1] @ q_BATI[sample, head, token]
        total = total + w_BAT[sample, head, token] * dots_S.relu()
    return total / math.sqrt(heads * width)


def picked(scores_S: Tensor, width: int) -> list[int]:
    """The tokens of highest score; of equal ones, compared in 16 significant bits, the later."""
    mantissa_S, exponent_S = torch.frexp(scores_S.float())
    values = torch.ldexp((mantissa_S * 2.0**16).trunc(), exponent_S).tolist()
    return sorted(range(len(values)), key=lambda token: (values[token], token), reverse=True)[:width]


def attention(
    q_BHTE: Tensor,
    k_BKTE: Tensor,
    v_BKTV: Tensor,
    index: tuple[Tensor, Tensor, Tensor],
    width: int,
    *,
    softcap: float | None = None,
    slopes_H: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention over picked tokens, y_BHTV, and the KL divergence of its mean over heads from the indexer's softmax."""
    batch, heads, length, size = q_BHTE.shape
    group = heads // k_BKTE.shape[1]
    rows, total = [], q_BHTE.new_zeros(())
    for b in range(batch):
        for t in range(length):
            scores_S = index_scores(*index, sample=b, token=t)
            tokens = torch.tensor(picked(scores_S, width))
            mean_W = q_BHTE.new_zeros(len(tokens))
            for h in range(heads):
                logits_W = k_BKTE[b, h // group, tokens] @ q_BHTE[b, h, t] / math.sqrt(size)
                if softcap is not None:
                    logits_W = softcap * torch.tanh(logits_W / softcap)
                if slopes_H is not None:
                    logits_W = logits_W - slopes_H[h].to(logits_W.dtype) * (t - tokens)
                p_W = logits_W.softmax(0)
                rows.append(p_W @ v_BKTV[b, h // group, tokens])
                mean_W = mean_W + p_W.detach() / heads
            total = total + (mean_W * (mean_W.log() - scores_S[tokens].log_softmax(0))).sum()
    y_BTHV = torch.stack(rows).view(batch, length, heads, -1)
    return y_BTHV.transpose(1, 2), total / (batch * length)


def latent_attention(
    x_BTD: Tensor, weights: dict[str, Tensor], heads: int, freqs_F: Tensor, eps: Tensor, pattern: Pattern
) -> Tensor:
    """Multi-head latent attention on normalised input, head by head, (B, T, D). weights: by the part's names."""
    c_BTL = naive.rms_norm(x_BTD @ weights["kv_down.weight"].T, weights["latent_norm.weight"], eps)
    key_B1TR = naive.rope((x_BTD @ weights["k_rope.weight"].T)[:, None], freqs_F)
    out_BTD = torch.zeros_like(x_BTD)
    for h in range(heads):
        q_ED, r_RD, k_EL, v_EL = (weights[f"{name}.weight"].chunk(heads)[h] for name in ("q", "q_rope", "k_up", "v_up"))
        q_B1TE = torch.cat([(x_BTD @ q_ED.T)[:, None], naive.rope((x_BTD @ r_RD.T)[:, None], freqs_F)], -1)
        k_B1TE = torch.cat([(c_BTL @ k_EL.T)[:, None], key_B1TR], -1)
        y_B1TE = naive.attention(q_B1TE, k_B1TE, (c_BTL @ v_EL.T)[:, None], pattern)
        out_BTD = out_BTD + y_B1TE[:, 0] @ weights["o.weight"].chunk(heads, 1)[h].T
    return out_BTD
