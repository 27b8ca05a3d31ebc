"""What a model needs of other models, copied beside it: their configs, and of their weights the layers that it has.

An excerpt is a folder that is opened as the model itself would be, but has no other layers. So what is put out with one
is loaded, trained further and merged where the model is not.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from safetensors.torch import save

from morphogen.blueprint.schema import Blueprint
from morphogen.errors import InputError, RunError
from morphogen.parts.foreign.foreign import Foreign
from morphogen.paths import absolute_path
from morphogen.store.files import write_atomic

#: The folder of excerpts, beside what needs them.
FOLDER: Final = "donors"
#: In a checkpoint's metadata: the models that its blueprint names -> their excerpts, as seen from the checkpoint.
CARRIED: Final = "carried"


def layers_taken(blueprints: Iterable[Blueprint]) -> dict[str, set[int]]:
    """Every model that blueprints have layers of, and which."""
    found: dict[str, set[int]] = {}
    for blueprint in blueprints:
        parts = (extra for block in blueprint.blocks for extra in block.extras if isinstance(extra, Foreign))
        for expert in (expert for part in parts for expert in part.experts):
            found.setdefault(expert.model, set()).add(expert.layer)
    return found


def excerpts(blueprints: Iterable[Blueprint], folder: Path) -> dict[str, str]:
    """Writes, below `folder`/donors, what blueprints need of other models; every model -> its excerpt, as seen from
    `folder`.

    Excerpts are called by what is in them, and lie there once. InputError where a model cannot be read, RunError where
    nothing can be written.
    """
    return {model: _excerpt(model, sorted(of), folder) for model, of in layers_taken(blueprints).items()}


def _excerpt(model: str, layers: list[int], folder: Path) -> str:
    from morphogen.parts.foreign.donors.donor import CONFIG
    from morphogen.parts.foreign.donors.opened import checksum_of, donor_of
    from morphogen.parts.foreign.donors.weights import WEIGHTS

    donor = donor_of(model)
    config = (donor.folder / CONFIG).read_bytes()
    told = [config, *(checksum_of(model, layer).encode() for layer in layers)]
    ending = f"-{hashlib.sha256(b''.join(told)).hexdigest()[:8]}"
    called = f"{FOLDER}/{Path(model).name.removesuffix(ending)}{ending}"
    place = folder / called
    if not all((place / name).is_file() for name in (CONFIG, WEIGHTS)):
        try:
            place.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"{place}: cannot be written: {error.strerror or error}") from None
        write_atomic(place / WEIGHTS, save(donor.stored(layers), {"format": "pt"}))
        write_atomic(place / CONFIG, config)
    return called


def carried_now(path: Path, metadata: Mapping[str, str]) -> dict[str, str]:
    """Where the excerpts are that the checkpoint at `path` says lie beside it: model -> folder. InputError where what
    it says cannot be read."""
    try:
        told = json.loads(metadata.get(CARRIED, "{}"))
        places = {str(model): absolute_path(str(seen), CARRIED, path.parent) for model, seen in told.items()}
    except (ValueError, AttributeError, RecursionError):
        raise InputError(f"{path}: what it says of models beside it cannot be read") from None
    return {model: str(place) for model, place in places.items() if place.is_dir()}
