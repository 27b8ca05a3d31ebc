"""Drawing the next token from logits. `network` calls it. B batch, T tokens, V vocabulary."""

import torch
from torch import Tensor

from morphogen.arguments import expected, whole
from morphogen.errors import InputError


def check_sampling(prompt_ids_BT: Tensor, tokens: int, temperature: float, top_k: int | None, seed: int) -> None:
    """InputError for an empty prompt or a number out of range."""
    expected("generate: prompt", prompt_ids_BT, Tensor)
    if prompt_ids_BT.dim() != 2 or not prompt_ids_BT.numel():
        raise InputError(f"generate: got a prompt of shape {tuple(prompt_ids_BT.shape)}, expected (B, T) with T ≥ 1")
    if prompt_ids_BT.dtype not in (torch.int64, torch.int32):
        raise InputError(f"generate: got a prompt of {prompt_ids_BT.dtype}, expected tokens of torch.int64 or int32")
    whole("generate: tokens", tokens)
    if top_k is not None:
        whole("generate: top_k", top_k, least=1)
    if whole("generate: seed", seed, -(1 << 63)) >= 1 << 64:
        raise InputError(f"generate: got seed {seed}, expected one of at most 64 bits")
    if not 0.0 <= temperature < float("inf"):
        raise InputError(f"generate: got temperature {temperature}, expected a finite number of at least 0")


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
