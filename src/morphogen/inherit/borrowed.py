"""Weights of other models in a checkpoint: named with their content's hash, and read from those models again.

So a layer that a hundred candidates have lies on the disk once, where it was.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from morphogen.blueprint.schema import Blueprint
from morphogen.blueprint.tensors import specs
from morphogen.errors import InputError
from morphogen.parts.contract.initial import draw
from morphogen.parts.contract.tensors import Spec

#: In the metadata: the layers of other models that the weights hold or need, with their hashes, as JSON.
DONORS = "donors"
#: A model and a layer of it.
Layer = tuple[str, int]


def donor_hashes(blueprint: Blueprint) -> dict[str, str]:
    """`<model>#<layer>` -> SHA-256 of its tensors, of every layer of another model, trained here or not. InputError
    where a model cannot be read."""
    wanted = {_layer(spec): None for _, _, spec in specs(blueprint).values() if spec.init.name == DONATED}
    return {_named(layer): _checksum(layer) for layer in wanted}


def borrowed(blueprint: Blueprint) -> dict[str, Spec]:
    """Those of a model's tensors that no checkpoint of it holds."""
    return {name: spec for name, (_, _, spec) in specs(blueprint).items() if spec.borrowed}


def read_borrowed(path: Path, blueprint: Blueprint, told: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors that the checkpoint at `path` leaves out.

    told: what its metadata says of donors. dtype: of its other weights. InputError where a model cannot be read, or is
    not as it was when the checkpoint was written.
    """
    wanted = borrowed(blueprint)
    hashes = _hashes(path, told)
    for layer in {_layer(spec): None for spec in wanted.values()}:
        found, known = _checksum(layer), hashes.get(_named(layer))
        if found != known:
            model, number = layer
            raise InputError(
                f"{path}: needs layer {number} of {model} as it was, with SHA-256 {known}, but it has changed: found "
                f"{found}"
            )
    generator = torch.Generator()
    return {name: draw(spec.init, spec.shape, generator).to(dtype) for name, spec in wanted.items()}


DONATED = "donated"


def _hashes(path: Path, told: str) -> Mapping[str, str]:
    try:
        found = json.loads(told or "{}")
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise InputError(f"{path}: what it says of layers of other models cannot be read")
    return found


def _layer(spec: Spec) -> Layer:
    model, layer, _ = spec.init.args
    return str(model), int(layer)


def _named(layer: Layer) -> str:
    return f"{layer[0]}#{layer[1]}"


def _checksum(layer: Layer) -> str:
    from morphogen.parts.foreign.donors.opened import checksum_of  # brings transformers, which nothing else here needs

    return checksum_of(*layer)
