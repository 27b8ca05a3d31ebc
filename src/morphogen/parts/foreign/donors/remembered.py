"""What a layer remembers, as tensors by name, batch first, and back: so a decoder's cache holds nothing else.

B batch, T tokens, S tokens with those before
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final

import torch
from torch import Tensor

from morphogen.parts.foreign.donors.layers import ForeignLayer, LayerCache

LENGTH: Final = "length"
#: The input of every token so far, of a layer that is run again on all of them.
INPUTS: Final = "inputs"


def tensors_of(cache: LayerCache) -> dict[str, Tensor]:
    """All that a cache holds after at least one token. Whole numbers and flags stand as one for each sequence."""
    assert cache.mask_BS is not None
    batch, device = cache.mask_BS.shape[0], cache.mask_BS.device
    found = {LENGTH: torch.full((batch,), cache.length, device=device)}
    if cache.inputs_BSD is not None:
        found[INPUTS] = cache.inputs_BSD
    for name, value in _held(cache):
        if isinstance(value, Tensor):
            if value.dim() and value.shape[0] == batch:
                found[name] = value
        elif isinstance(value, int):
            found[name] = torch.full((batch,), int(value), device=device)
    return found


def cache_of(tensors: Mapping[str, Tensor], layer: ForeignLayer) -> LayerCache:
    """The cache that `tensors_of` took apart; an empty one of nothing."""
    cache = layer.new_cache()
    if not tensors:
        return cache
    cache.length = length = int(tensors[LENGTH][0])
    (batch,), device = tensors[LENGTH].shape, tensors[LENGTH].device
    cache.mask_BS = torch.ones(batch, length, dtype=torch.bool, device=device)
    cache.positions_BS = torch.arange(length, device=device).expand(batch, length)
    if (own := cache.own) is None:
        cache.inputs_BSD = tensors[INPUTS]
        return cache
    for name, tensor in tensors.items():
        if name not in (LENGTH, INPUTS):
            _put(own, name, tensor)
    if (first := next((x for x in tensors.values() if x.is_floating_point()), None)) is not None:
        own.device, own.dtype = first.device, first.dtype
        for name, value in vars(own).items():
            if isinstance(value, Tensor):
                setattr(own, name, value.to(first.device))
    return cache


def _held(cache: LayerCache) -> Iterator[tuple[str, Any]]:
    """What the cache of the layer holds: its attributes, and what stands in those that are dictionaries."""
    if cache.own is None:
        return
    for name, value in vars(cache.own).items():
        if isinstance(value, dict):
            yield from ((f"{name}/{key}", inner) for key, inner in value.items())
        else:
            yield name, value


def _put(own: Any, name: str, tensor: Tensor) -> None:
    """Sets one of them. A whole number where the empty cache has one, or a flag; else the tensor."""
    attribute, _, key = name.partition("/")
    holder: Any = vars(own)[attribute] if key else vars(own)
    place: Any = int(key) if key else attribute
    counted = tensor.dim() == 1 and tensor.dtype == torch.int64
    value: Any = (bool if isinstance(holder[place], bool) else int)(tensor[0]) if counted else tensor
    holder[place] = value
