"""Weights of other models in a checkpoint: named with their content's hash, and read from those models again.

So a layer that a hundred candidates have lies on the disk once, where it was.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
from morphogen.store.files import canonical_json
from morphogen.store.places import with_donors

#: In the metadata: the layers of other models that the weights hold or need, as JSON.
DONORS = "donors"
_TOLD: TypeAdapter[tuple[DonorLayer, ...]] = TypeAdapter(tuple[DonorLayer, ...])


def donors_of(
    blueprint: Blueprint, state: Mapping[str, Tensor], taken: Sequence[DonorLayer] = ()
) -> tuple[DonorLayer, ...]:
    """The layers of other models in it: what was taken, and of those that are trained here what they are in `state`.

    taken: what is known of layers that were trained before; others were taken as their models hold them now.
    InputError where one cannot be read, or one that is frozen in `state` is no longer what its model holds.
    """
    found = _as_they_are(borrowed(blueprint).values())
    if found:
        _still_theirs(blueprint, state)
    was = {(donor.model, donor.layer): donor.sha256 for donor in reversed(taken)}
    return (*found, *_as_they_became(_trained(blueprint, state), was))


def _trained(blueprint: Blueprint, state: Mapping[str, Tensor]) -> dict[tuple[str, int, str], dict[str, Tensor]]:
    """What is trained of other models: model, layer, and which part of which gene it is -> its tensors by the names
    that they had there."""
    found: dict[tuple[str, int, str], dict[str, Tensor]] = {}
    for name, (_, _, spec) in specs(blueprint).items():
        if spec.init.name == "donated" and spec.trained:
            model, layer, theirs = (str(arg) for arg in spec.init.args)
            found.setdefault((model, int(layer), name.removesuffix(theirs)), {})[theirs] = state[name]
    return found


def _as_they_became(
    trained: Mapping[tuple[str, int, str], Mapping[str, Tensor]], was: Mapping[tuple[str, int], str]
) -> Iterator[DonorLayer]:
    if not trained:
        return
    from morphogen.parts.foreign.donors.donor import digest
    from morphogen.parts.foreign.donors.opened import checksum_of

    for (model, layer, _), tensors in trained.items():
        taken = was.get((model, layer)) or checksum_of(model, layer)
        yield DonorLayer(model=model, layer=layer, sha256=taken, became=digest(tensors))


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


def donors_told(path: Path, metadata: Mapping[str, str], now: Mapping[str, str] = {}) -> tuple[DonorLayer, ...]:
    """What the checkpoint at `path` says of layers of other models. now: where models are that were moved. InputError
    where that cannot be read."""
    try:
        told = with_donors({DONORS: json.loads(metadata.get(DONORS, "[]"))}, now)[DONORS]
        return _TOLD.validate_json(json.dumps(told))
    except (ValidationError, ValueError, RecursionError):
        raise InputError(f"{path}: what it says of layers of other models cannot be read") from None


def to_metadata(donors: Sequence[DonorLayer]) -> dict[str, str]:
    """As a checkpoint says it."""
    return {DONORS: canonical_json([donor.model_dump() for donor in donors])} if donors else {}


def read_borrowed(
    path: Path, blueprint: Blueprint, told: Sequence[DonorLayer], dtype: torch.dtype
) -> dict[str, Tensor]:
    """The tensors that the checkpoint at `path` leaves out.

    told: what it says of layers of other models. dtype: of its other weights. InputError where one cannot be read, or
    is not as it was when the checkpoint was written.
    """
    wanted = borrowed(blueprint)
    known = {(donor.model, donor.layer): donor.sha256 for donor in told if donor.became is None}
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
