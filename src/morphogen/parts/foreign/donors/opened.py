"""Other models as the kind `foreign` knows them: opened once, and again where their files have changed.

B batch, T tokens, E width of the model
"""

import functools
import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from morphogen.errors import InputError, unknown
from morphogen.parts.contract.part import Cost
from morphogen.parts.foreign.donors.counting import counted, kept
from morphogen.parts.foreign.donors.donor import Donor, described_donor, digest, open_donor
from morphogen.parts.foreign.donors.probing import FAILURES
from morphogen.paths import user_path

#: What a model's files looked like: name, bytes, time of the last change; the folder first, of which that is not told.
Signature = tuple[tuple[str, int, int], ...]
#: Model -> all that its files looked like to this process.
_SEEN: dict[str, set[Signature]] = {}


#: What is known of models by their config alone: name -> config.
_DESCRIBED: dict[str, Mapping[str, Any]] = {}


def describe(model: str, config: Mapping[str, Any]) -> None:
    """Makes a model known by its config alone, under a name that says what it is (`described_name`): layers of it can
    be built from then on, and are filled by others."""
    _DESCRIBED[model] = config


def described_name(model: str, config: Mapping[str, Any]) -> str:
    """What a model is called that is known by its config alone: no name of a folder or of the hub."""
    told = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()
    return f"{Path(model).name}@{told[:8]}"


def donor_of(model: str) -> Donor:
    """The model, opened. InputError where that cannot be."""
    return _opened(model, _signature(model))


def width_of(model: str) -> int:
    """Channels of its residual stream."""
    return donor_of(model).dim


def shapes_of(model: str, layer: int) -> Mapping[str, tuple[int, ...]]:
    """Every tensor of a layer, and its shape."""
    return _shapes(model, layer, _signature(model))


def tensor_of(model: str, layer: int, name: str) -> Tensor:
    """One tensor of a layer, as it is stored."""
    signature = _signature(model)
    found = _read(model, layer, signature)
    _checksum(model, layer, signature)  # while it is at hand: whoever builds with a layer soon asks what it was
    if name not in found:
        raise InputError(unknown(f"{model}: layer {layer}: tensor", name, found))
    return found[name]


def checksum_of(model: str, layer: int) -> str:
    """What a layer's tensors are, as one SHA-256 in hexadecimal."""
    return _checksum(model, layer, _signature(model))


def cost_of(model: str, layer: int, seq_len: int) -> Cost:
    """What a layer costs per token, counted as it runs on the meta device: products of matrices, and its cache.

    InputError where it cannot be run on so many tokens.
    """
    return _cost(model, layer, seq_len, _signature(model))


def kept_of(model: str, layer: int, seq_len: int, *, trained: bool) -> float:
    """Numbers per token that a layer keeps for the backward pass. trained: whether its own weights are. InputError as
    `cost_of`."""
    return _kept(model, layer, seq_len, trained, _signature(model))


def has_changed(model: str) -> bool:
    """Whether its files are not, or have not always been, what this process first saw of them."""
    _signature(model)
    return len(_SEEN[model]) > 1


def _signature(model: str) -> Signature:
    found: Signature = ()
    with suppress(OSError, InputError):  # opening it says what is wrong
        folder = user_path(model, "MODEL").absolute()
        files = sorted(path for path in folder.iterdir() if path.suffix in (".json", ".safetensors"))
        stats = [(path.name, path.stat()) for path in files]
        found = ((str(folder), 0, 0), *((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats))
    _SEEN.setdefault(model, set()).add(found)
    return found


@functools.lru_cache(maxsize=16)
def _opened(model: str, signature: Signature) -> Donor:
    with torch.device("cpu"):  # also where who asks is building a model on the meta device
        return described_donor(model, _DESCRIBED[model]) if model in _DESCRIBED else open_donor(model)


@functools.lru_cache(maxsize=512)
def _shapes(model: str, layer: int, signature: Signature) -> Mapping[str, tuple[int, ...]]:
    return _opened(model, signature).shapes(layer)


@functools.lru_cache(maxsize=1)
def _read(model: str, layer: int, signature: Signature) -> Mapping[str, Tensor]:
    """A layer's tensors. Those of the last one wait for whoever asks for them one after the other."""
    return _opened(model, signature).read(layer)


@functools.lru_cache(maxsize=512)
def _checksum(model: str, layer: int, signature: Signature) -> str:
    return digest(_read(model, layer, signature))


@functools.lru_cache(maxsize=512)
def _cost(model: str, layer: int, seq_len: int, signature: Signature) -> Cost:
    donor = _opened(model, signature)
    with _countable(model, layer, seq_len):
        return counted(donor.layer_to_count(layer), donor.dim, seq_len)


@functools.lru_cache(maxsize=512)
def _kept(model: str, layer: int, seq_len: int, trained: bool, signature: Signature) -> float:
    donor = _opened(model, signature)
    with _countable(model, layer, seq_len):
        return kept(donor.layer_to_count(layer), donor.dim, seq_len, trained=trained)


@contextmanager
def _countable(model: str, layer: int, seq_len: int) -> Iterator[None]:
    try:
        yield
    except FAILURES as error:
        why = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"{model}: layer {layer} cannot be counted on {seq_len} tokens: {why}") from None
