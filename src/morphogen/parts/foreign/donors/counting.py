"""What a layer of another model costs, counted as it runs on the meta device.

T tokens, E width of the model
"""

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from morphogen.parts.contract.part import Cost
from morphogen.parts.foreign.donors.layers import ForeignLayer
from morphogen.parts.foreign.donors.remembered import tensors_of

#: Bytes of a number.
NUMBER = 4


def kept(module: ForeignLayer, dim: int, seq_len: int, *, trained: bool) -> float:
    """Numbers per token that it keeps for the backward pass, its input apart; its own weights, and rows of them that
    tokens choose, are not counted. trained: whether these have gradients."""
    module.requires_grad_(trained)
    x_TE = torch.empty(1, seq_len, dim, device="meta", requires_grad=True)
    weights = [*module.parameters(), *module.buffers()]
    storages = {each.untyped_storage()._cdata: each.untyped_storage() for each in [*weights, x_TE]}
    known, matrices = len(storages), {tuple(each.shape[-2:]) for each in weights if each.dim() == 3}

    def note(saved: Tensor) -> Tensor:
        chosen = saved.dim() == 3 and tuple(saved.shape[-2:]) in matrices
        if saved.is_floating_point() and not chosen:
            storages.setdefault(saved.untyped_storage()._cdata, saved.untyped_storage())
        return saved

    with torch.enable_grad(), saved_tensors_hooks(note, lambda saved: saved):
        module(x_TE, *_places(seq_len))
    return sum(each.nbytes() for each in [*storages.values()][known:]) / NUMBER / seq_len


def counted(module: ForeignLayer, dim: int, seq_len: int) -> Cost:
    """What a layer costs per token: products of matrices, and its cache."""
    x_BTE = torch.empty(1, seq_len, dim, device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(x_BTE, *_places(seq_len))
    half = max(1, seq_len // 2)
    fewer, all_of_it = (_held_bytes(module, x_BTE[:, :length]) for length in (half, seq_len))
    growth = (all_of_it - fewer) / max(1, seq_len - half)
    return Cost(counter.get_total_flops() / seq_len, growth, all_of_it - growth * seq_len)


def _held_bytes(module: ForeignLayer, x_BTE: Tensor) -> float:
    """What the layer remembers after some tokens, at 2 bytes a number."""
    cache = module.new_cache()
    with torch.no_grad():
        module(x_BTE, *_places(x_BTE.shape[1]), cache=cache)
    held = tensors_of(cache).values()
    return float(sum(x.numel() * (2 if x.is_floating_point() else x.element_size()) for x in held))


def _places(tokens: int) -> tuple[Tensor, Tensor]:
    """Where tokens stand, and that all are real: what decides about masks, which has to have numbers."""
    return torch.arange(tokens)[None], torch.ones(1, tokens, dtype=torch.bool)
