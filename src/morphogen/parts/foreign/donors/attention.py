"""Attention for models that remember no tokens: theirs, with keys and values kept between calls.

Models of transformers ask for attention by name and hand on what a layer is called with, so that a layer of a model
which knows no cache can be given one. B batch, H heads, G heads of keys, T tokens, S tokens with those before
"""

from typing import Any, Final

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

#: The name that this attention is asked for by.
REMEMBERING: Final = "morphogen_remembering"


class Remembered:
    """Keys and values of the tokens that one layer has seen."""

    def __init__(self) -> None:
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def joined(self, keys_BGTE: Tensor, values_BGTE: Tensor) -> tuple[Tensor, Tensor]:
        """With those of new tokens, which are kept."""
        if self.keys is not None and self.values is not None:
            keys_BGTE = torch.cat([self.keys, keys_BGTE], dim=2)
            values_BGTE = torch.cat([self.values, values_BGTE], dim=2)
        self.keys, self.values = keys_BGTE, values_BGTE
        return keys_BGTE, values_BGTE


def remembering(
    module: nn.Module,
    query_BHTE: Tensor,
    key_BGTE: Tensor,
    value_BGTE: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    remembered: Remembered | None = None,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    """softmax(q kᵀ · scaling + mask) v over all tokens so far, as transformers calls it.

    Args:
        module: The layer's own attention.
        query_BHTE: Queries.
        key_BGTE: Keys.
        value_BGTE: Values.
        attention_mask: What is added to the scores.
        scaling: By default 1/√E.
        dropout: Share of the weights that is dropped.
        remembered: Of the tokens before.
    """
    if remembered is not None:
        key_BGTE, value_BGTE = remembered.joined(key_BGTE, value_BGTE)
    groups = query_BHTE.shape[1] // key_BGTE.shape[1]
    key_BHSE, value_BHSE = (each.repeat_interleave(groups, dim=1) for each in (key_BGTE, value_BGTE))
    scores_BHTS = query_BHTE @ key_BHSE.transpose(2, 3) * (scaling or query_BHTE.shape[-1] ** -0.5)
    if attention_mask is not None:
        scores_BHTS = scores_BHTS + attention_mask
    weights_BHTS = nn.functional.softmax(scores_BHTS, dim=-1, dtype=torch.float32).to(query_BHTE.dtype)
    weights_BHTS = nn.functional.dropout(weights_BHTS, p=dropout, training=module.training)
    return (weights_BHTS @ value_BHSE).transpose(1, 2).contiguous(), weights_BHTS


AttentionInterface.register(REMEMBERING, remembering)
AttentionMaskInterface.register(REMEMBERING, eager_mask)
