"""Weights of other models in a checkpoint: named with their content's hash, and read from those models again.

So a layer that a hundred candidates have lies on the disk once, where it was.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from morphogen.blueprint.schema import Blueprint
from morphogen.blueprint.tensors import specs
from morphogen.candidate import DonorLayer
from morphogen.errors import InputError
from morphogen.parts.contract.initial import draw
from morphogen.parts.contract.tensors import Spec
from morphogen.store.places import with_donors

#: In the metadata: the layers of other models that the weights hold or need, as JSON.
DONORS = "donors"
_TOLD: TypeAdapter[tuple[DonorLayer, ...]] = TypeAdapter(tuple[DonorLayer, ...])


def donors_of(blueprint: Blueprint, state: Mapping[str, Tensor]) -> tuple[DonorLayer, ...]:
    """The layers of other models in it, trained here or not, as they are now.

    InputError where one cannot be read, or one that is frozen in `state` is no longer what its model holds.
    """
    found = _as_they_are(spec for _, _, spec in specs(blueprint).values() if spec.init.name == "donated")
    if found:
        _still_theirs(blueprint, state)
    return found


def _still_theirs(blueprint: Blueprint, state: Mapping[str, Tensor]) -> None:
    """Nothing of a model has to be read whose files look as they always did."""
    from morphogen.parts.foreign.donors.opened import has_changed

    changed = {donor.model: has_changed(donor.model) for donor in _as_they_are(borrowed(blueprint).values())}
    for name, spec in borrowed(blueprint).items():
        model, layer, _ = spec.init.args
        if not changed[str(model)] or name not in state:
            continue
        now = draw(spec.init, spec.shape, torch.Generator())
        if not torch.equal(state[name].detach().cpu(), now.to(state[name].dtype)):
            raise InputError(
                f"{model}: layer {layer} has changed since it was read, so that what was made with it cannot be found "
                "again; expected the files as they were"
            )


def borrowed(blueprint: Blueprint) -> dict[str, Spec]:
    """Those of a model's tensors that no checkpoint of it holds."""
    return {name: spec for name, (_, _, spec) in specs(blueprint).items() if spec.borrowed}


def donors_told(path: Path, metadata: Mapping[str, str], now: Mapping[str, str]) -> tuple[DonorLayer, ...]:
    """What the checkpoint at `path` says of layers of other models. now: where models are that were moved. InputError
    where that cannot be read."""
    try:
        return _TOLD.validate_json(
            json.dumps(with_donors({DONORS: json.loads(metadata.get(DONORS, "[]"))}, now)[DONORS])
        )
    except (ValidationError, ValueError, RecursionError):
        raise InputError(f"{path}: what it says of layers of other models cannot be read") from None


def read_borrowed(
    path: Path, blueprint: Blueprint, told: Sequence[DonorLayer], dtype: torch.dtype
) -> dict[str, Tensor]:
    """The tensors that the checkpoint at `path` leaves out.

    told: what it says of layers of other models. dtype: of its other weights. InputError where one cannot be read, or
    is not as it was when the checkpoint was written.
    """
    wanted = borrowed(blueprint)
    known = {(donor.model, donor.layer): donor.sha256 for donor in told}
    for found in _as_they_are(wanted.values()):
        was = known.get((found.model, found.layer))
        if found.sha256 != was:
            raise InputError(
                f"{path}: needs layer {found.layer} of {found.model} as it was, with SHA-256 {was}, but it has "
                f"changed: found {found.sha256}"
            )
    generator = torch.Generator()
    return {name: draw(spec.init, spec.shape, generator).to(dtype) for name, spec in wanted.items()}


def _as_they_are(of: Iterable[Spec]) -> tuple[DonorLayer, ...]:
    """The layers that tensors are of, each once."""
    layers = list(dict.fromkeys((str(spec.init.args[0]), int(spec.init.args[1])) for spec in of))
    if not layers:
        return ()
    from morphogen.parts.foreign.donors.opened import checksum_of  # brings transformers, which nothing else here needs

    return tuple(DonorLayer(model=model, layer=layer, sha256=checksum_of(model, layer)) for model, layer in layers)
