"""What a sequence has been so far, at every token: the mean, the maximum, or an attention-weighted mean of its prefix.

B batch, T tokens, D channels
"""

from typing import Literal

import torch
from torch import Tensor

Pooling = Literal["mean", "max", "attention"]


def prefix_mean(x_BTD: Tensor, past: dict[str, Tensor]) -> Tensor:
    """The mean of tokens 0..t, at every t. `past` remembers the sum of those before; updated in place."""
    before = int(past["count"][0]) if past else 0
    sums_BTD = x_BTD.cumsum(1)
    if past:
        sums_BTD = sums_BTD + past["sum"][:, None]
    end = before + x_BTD.shape[1]
    past["sum"] = sums_BTD[:, -1]
    past["count"] = torch.full(x_BTD.shape[:1], end, device=x_BTD.device)
    counts_T = torch.arange(before + 1, end + 1, device=x_BTD.device).to(x_BTD.dtype)
    return sums_BTD / counts_T[:, None]


def prefix_max(x_BTD: Tensor, past: dict[str, Tensor]) -> Tensor:
    """The maximum of tokens 0..t, channel by channel. `past` remembers that of those before; updated in place."""
    if past:
        x_BTD = torch.cat([past["max"][:, None], x_BTD], 1)
    most_BtD = x_BTD.cummax(1).values
    most_BTD = most_BtD[:, 1:] if past else most_BtD
    past["max"] = most_BTD[:, -1]
    return most_BTD


def prefix_attention(x_BTD: Tensor, score_BT: Tensor, past: dict[str, Tensor]) -> Tensor:
    """Σ over j ≤ t of softmax(score)_j · x_j, at every t.

    `past` remembers that of the tokens before, and the logarithm of what their scores' exponentials sum up to: together
    they count as one token of that score. Updated in place.
    """
    length = x_BTD.shape[1]
    if past:
        x_BTD = torch.cat([past["pooled"][:, None], x_BTD], 1)
        score_BT = torch.cat([past["score"][:, None], score_BT], 1)
    earlier = x_BTD.shape[1] - length
    seen_Tt = torch.ones(length, earlier + length, dtype=torch.bool, device=x_BTD.device).tril(earlier)
    masked_BTt = torch.where(seen_Tt, score_BT[:, None], -torch.inf)
    pooled_BTD = masked_BTt.softmax(-1) @ x_BTD
    past["pooled"], past["score"] = pooled_BTD[:, -1], score_BT.logsumexp(1)
    return pooled_BTD
