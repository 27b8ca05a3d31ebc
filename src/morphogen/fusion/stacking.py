"""Layers as a caller names them, stacked: the models' folders, the blueprint, and weights of what joins them.

`FusionModel` calls it.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from morphogen.blueprint.schema import Blueprint
from morphogen.blueprint.tensors import specs
from morphogen.errors import InputError, unknown
from morphogen.parts.foreign.foreign import Foreign
from morphogen.paths import user_path

#: A layer by the name of its model and its number there.
Named = tuple[str, int]


def model_folders(models: Mapping[str, str] | Sequence[str]) -> dict[str, str]:
    """Name -> where the model is; local folders absolute."""
    if isinstance(models, str) or not isinstance(models, Mapping | Sequence):
        raise InputError(f"models: got {models!r}, expected a list of models or names to models")
    given = dict(models) if isinstance(models, Mapping) else dict(zip(model_names(models), models, strict=True))
    if not given:
        raise InputError("models: got none, expected at least one")
    found = {}
    for name, source in given.items():
        path = user_path(str(source), f"models: {name}")
        found[str(name)] = str(path.absolute()) if path.is_dir() else str(source)
    return found


def model_names(sources: Sequence[str]) -> list[str]:
    """What models are called that have no names: as their folders, or numbered where those are alike."""
    names, found = [Path(str(source)).name for source in sources], list[str]()
    for i, name in enumerate(names):
        numbered = (f"{name}_{n}" for n in range(i, i + 2 * len(names)))
        free = (each for each in numbered if each not in names and each not in found)
        found.append(name if names.count(name) == 1 else next(free))
    return found


def stages(
    layers: Sequence[Sequence[Named] | Named], folders: Mapping[str, str], fields: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """A block for every stage of layers. fields: of their parts; a router is for those of several layers alone.

    InputError for none, and for what is no layer of the models in `folders`.
    """
    blocks = []
    for place, stage in enumerate(layers):
        experts = [_layer(f"layers[{place}]", one, folders) for one in _stage(f"layers[{place}]", stage)]
        lone = {} if len(experts) > 1 else {"router": "none"}
        part = {"kind": "foreign", "experts": experts, "normed": False, **fields, **lone}
        blocks.append({"extras": [part]})
    if not blocks:
        raise InputError("layers: got none, expected at least one block of layers")
    return blocks


def _stage(place: str, stage: Any) -> list[Any]:
    """The layers of one block, which may be one alone."""
    match stage:
        case (str(), int(number)) if not isinstance(number, bool):
            return [stage]
        case [*several]:
            return several
    raise InputError(f"{place}: got {stage!r}, expected layers, each a pair of a model's name and a layer's number")


def _layer(place: str, named: Any, folders: Mapping[str, str]) -> dict[str, Any]:
    try:
        name, number = named
    except (TypeError, ValueError):
        raise InputError(f"{place}: got {named!r}, expected a pair of a model's name and a layer's number") from None
    if isinstance(number, bool) or not isinstance(number, int):
        raise InputError(f"{place}: got {named!r}, expected a pair of a model's name and a layer's number")
    if str(name) not in folders:
        raise InputError(unknown(f"{place}: model", str(name), folders))
    return {"model": folders[str(name)], "layer": number}


def stacked(data: Mapping[str, Any]) -> Blueprint:
    """The blueprint. InputError, by its place among `layers` or by the option, for what does not fit."""
    try:
        return Blueprint.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise InputError(f"{_place(first['loc'])}: {first['msg'].removeprefix('Value error, ')}") from None


def _place(loc: Sequence[str | int]) -> str:
    """A place in the blueprint as the caller knows it: a layer by its place in `layers`, an option by its name."""
    match loc:
        case ["blocks", stage, "extras", _, _, "experts", int(place), *_]:
            return f"layers[{stage}][{place}]"
        case ["blocks", stage, "extras", _, _, "experts"] | ["blocks", stage, "extras", _, _]:
            return f"layers[{stage}]"
        case ["blocks", _, "extras", _, _, *field]:
            return ".".join(str(step) for step in field)
    return "layers"


def ways_out(blueprint: Blueprint, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Matrices that undo the ways in, so that what a layer changes arrives whole: √E times the transpose. Bottlenecks,
    which cannot, are silent."""
    found = {}
    for name, (gene, own, _) in specs(blueprint).items():
        if isinstance(gene.part, Foreign) and own.startswith("write."):
            lanes, place = gene.part.lanes(), int(own.split(".")[1])
            way_ED = state[gene.tensor(f"read.{place}.weight")]
            while (before := lanes[place].after) is not None:  # down to the stream, through the lanes that it reads
                way_ED, place = way_ED @ state[gene.tensor(f"read.{before}.weight")], before
            found[name] = way_ED.t().contiguous() * math.sqrt(way_ED.shape[0])
        elif isinstance(gene.part, Foreign) and own.startswith("write_up."):
            found[name] = torch.zeros_like(state[name])
    return found
