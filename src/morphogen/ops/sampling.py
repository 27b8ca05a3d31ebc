"""Drawing the next token from logits. `network` calls it. B batch, T tokens, V vocabulary."""

import torch
from torch import Tensor

from morphogen.errors import InputError


def check_sampling(prompt_ids_BT: Tensor, tokens: int, temperature: float, top_k: int | None) -> None:
    """InputError for an empty prompt or a number out of range."""
    if prompt_ids_BT.dim() != 2 or prompt_ids_BT.shape[1] < 1:
        raise InputError(f"generate: got a prompt of shape {tuple(prompt_ids_BT.shape)}, expected (B, T) with T ≥ 1")
    if tokens < 0:
        raise InputError(f"generate: got tokens {tokens}, expected at least 0")
    if not 0.0 <= temperature < float("inf"):
        raise InputError(f"generate: got temperature {temperature}, expected a finite number of at least 0")
    if top_k is not None and top_k < 1:
        raise InputError(f"generate: got top_k {top_k}, expected at least 1")


def sampled(logits_BV: Tensor, temperature: float, top_k: int | None, noise: torch.Generator) -> Tensor:
    """One token per row, (B, 1). temperature: divides the logits; 0 takes the likeliest. top_k: of so many alone."""
    if temperature == 0.0:
        return logits_BV.argmax(-1, keepdim=True)
    if top_k is not None and top_k < logits_BV.shape[-1]:
        least_B1 = logits_BV.topk(top_k).values[:, -1:]
        logits_BV = logits_BV.masked_fill(logits_BV < least_B1, -torch.inf)
    # the likeliest is at 0 and stays there, however small the temperature
    logits_BV = logits_BV - logits_BV.amax(-1, keepdim=True)
    scaled_BV = logits_BV / max(temperature, torch.finfo(logits_BV.dtype).tiny)
    return torch.multinomial(scaled_BV.softmax(-1), 1, generator=noise)
