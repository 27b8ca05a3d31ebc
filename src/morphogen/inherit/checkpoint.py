"""Checkpoints: safetensors only, written whole or not at all, checked when read."""

import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from morphogen.blueprint.schema import Blueprint
from morphogen.blueprint.tensors import specs
from morphogen.candidate import moments_path
from morphogen.continued import Continued
from morphogen.errors import InputError, RunError
from morphogen.inherit.borrowed import borrowed, donors_of, donors_told, read_borrowed, to_metadata
from morphogen.inherit.excerpts import CARRIED, carried_now
from morphogen.inherit.provenance import CONTINUES
from morphogen.store.files import atomic
from morphogen.store.places import moved_paths, with_donors

FORMAT = "morphogen-checkpoint-1"
MOMENTS_FORMAT = "morphogen-moments-1"
#: What the names of averaged weights begin with; those without it are the weights themselves.
AVERAGE = "average/"
#: And those of what a training needs besides, to go on from here.
BESIDE = "beside/"
#: Numbers that weights may be put away in, and are not used in.
THINNED = (torch.bfloat16, torch.float16)
#: In the metadata: the architecture that a training began with, and what it grew by, where it did.
BEGUN_AS, GREW_BY = "begun_as", "growth"


def save_checkpoint(
    path: Path,
    state: Mapping[str, Tensor],
    blueprint: Blueprint,
    extra: Mapping[str, str],
    averages: Mapping[str, Tensor] | None = None,
    beside: Mapping[str, Tensor] | None = None,
) -> None:
    """Write weights with their blueprint: to a temporary file in the same folder, synced, renamed.

    extra: may say what layers of other models were when they were taken, as another checkpoint of them does.

    averages: of weights, where these were measured in their place; they stand in the same file, marked by `AVERAGE`.
    beside: what a training needs besides to go on, marked by `BESIDE`. Frozen layers of other models are left out, and
    named with their hashes.
    RunError when the disk is full or the folder cannot be written; a file that was there stays as it was. InputError
    where a frozen layer of another model is no longer what that model holds.
    """
    marked = {f"{AVERAGE}{name}": tensor for name, tensor in (averages or {}).items()}
    marked |= {f"{BESIDE}{name}": tensor for name, tensor in (beside or {}).items()}
    metadata = {**extra, "blueprint": json.dumps(blueprint.to_json(), sort_keys=True)}
    metadata |= to_metadata(donors_of(blueprint, state, donors_told(path, extra)))
    left_out = borrowed(blueprint)
    own = {name: tensor for name, tensor in state.items() if name not in left_out}
    _write(path, FORMAT, {**own, **marked}, metadata)


def load_checkpoint(path: Path, *, measured: bool = False) -> tuple[dict[str, Tensor], Blueprint, dict[str, str]]:
    """State dict, blueprint and the extra metadata. InputError when missing, damaged, or not one of ours.

    measured: the weights as they were measured, averaged where the checkpoint has averages; else those that training
    goes on from. The tensors are views of the mapped file; what is written to them stays in memory.
    """
    state, averages, _, blueprint, metadata = load_whole(path)
    return state | (averages if measured else {}), blueprint, metadata


def continued(path: str | None) -> Continued | None:
    """The candidate of an earlier run that a checkpoint says it is; None where it says nothing, or there is no path.

    InputError where that cannot be read.
    """
    if path is None or not Path(path).is_file():
        return None
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            told = dict(file.metadata() or {}).get(CONTINUES)
        return None if told is None else Continued.model_validate_json(told)
    except (SafetensorError, OSError, ValidationError) as error:
        raise InputError(f"{path}: where its weights come from cannot be read: {_first_line(error)}") from None


class Whole(NamedTuple):
    """All that a checkpoint holds."""

    state: dict[str, Tensor]
    averages: dict[str, Tensor]
    beside: dict[str, Tensor]
    blueprint: Blueprint
    metadata: dict[str, str]


def load_whole(path: Path) -> Whole:
    """Weights, averages and what is beside them; what was put away in half precision is read as float32. InputError as
    `load_checkpoint`."""
    found, metadata = _read(path, FORMAT)
    found = {name: tensor.float() if tensor.dtype in THINNED else tensor for name, tensor in found.items()}
    averages, beside = (
        {name.removeprefix(mark): tensor for name, tensor in found.items() if name.startswith(mark)}
        for mark in (AVERAGE, BESIDE)
    )
    state = {name: tensor for name, tensor in found.items() if not name.startswith((AVERAGE, BESIDE))}
    if any(name not in state or state[name].shape != tensor.shape for name, tensor in averages.items()):
        raise InputError(f"{path}: its averages are not those of its weights")
    now = moved_paths(path.parent) or moved_paths(path.parent.parent)
    now |= carried_now(path, metadata)
    metadata.pop(CARRIED, None)
    try:
        told = metadata.pop("blueprint", "")
        blueprint = Blueprint.model_validate_json(json.dumps(with_donors(json.loads(told), now)) if now else told)
    except ValidationError as error:
        raise InputError(f"{path}: its blueprint cannot be read: {error.errors()[0]['msg']}") from None
    except ValueError:
        raise InputError(f"{path}: its blueprint cannot be read: it is not JSON") from None
    wanted = {name: spec.shape for name, (_, _, spec) in specs(blueprint).items()}
    dtype = next((tensor.dtype for tensor in state.values()), torch.float32)
    donors = donors_told(path, metadata, now)
    metadata |= to_metadata(donors)
    state |= read_borrowed(path, blueprint, donors, dtype)
    if wanted != {name: tuple(tensor.shape) for name, tensor in state.items()}:
        raise InputError(f"{path}: the weights are not those of its blueprint")
    if odd := [f"{name} of {tensor.dtype}" for name, tensor in state.items() if not tensor.is_floating_point()]:
        raise InputError(f"{path}: holds {odd[0]}, expected floating-point numbers")
    return Whole({name: state[name] for name in wanted}, averages, beside, blueprint, metadata)


#: What the kinds of tensors beside moments are called that say which entries are young, and where their rates stand.
YOUNG = "young"
#: Entries that came to be at once, while a model trained: what is known of their rate, and where they are.
Young = tuple[Mapping[str, Any], Mapping[str, Tensor]]


def save_moments(checkpoint: Path, moments: Mapping[str, Mapping[str, Tensor]], young: Sequence[Young] = ()) -> None:
    """Write the optimizer's moments (kind -> parameter -> tensor) beside a checkpoint, as `save_checkpoint` does.

    Moments of a parameter's shape are stored in bfloat16, whose 8 bits are finer than the noise of gradients; step
    counts as they are. young: entries with a rate of their own yet.
    """
    tensors = {
        f"{kind}/{name}": tensor.to(torch.bfloat16) if tensor.dim() else tensor
        for kind, of in moments.items()
        for name, tensor in of.items()
    }
    tensors |= {f"{YOUNG}{i}/{name}": mask for i, (_, masks) in enumerate(young) for name, mask in masks.items()}
    rates = json.dumps([dict(numbers) for numbers, _ in young])
    _write(moments_path(checkpoint), MOMENTS_FORMAT, tensors, {YOUNG: rates} if young else {})


def load_moments(checkpoint: Path, blueprint: Blueprint) -> dict[str, dict[str, Tensor]]:
    """The moments beside a checkpoint of `blueprint`, kind -> parameter -> tensor. InputError as `load_checkpoint`."""
    return load_optimizer(checkpoint, blueprint)[0]


def load_optimizer(checkpoint: Path, blueprint: Blueprint) -> tuple[dict[str, dict[str, Tensor]], list[Young]]:
    """The moments, and which entries are young yet. InputError as `load_checkpoint`."""
    path = moments_path(checkpoint)
    tensors, metadata = _read(path, MOMENTS_FORMAT)
    shapes = {name: spec.shape for name, (_, _, spec) in specs(blueprint).items() if spec.trained}
    moments: dict[str, dict[str, Tensor]] = {}
    for full, tensor in tensors.items():
        kind, _, name = full.partition("/")
        if name not in shapes or tuple(tensor.shape) not in ((), shapes[name]):
            raise InputError(f"{path}: {full} is no moment of a parameter of its checkpoint")
        moments.setdefault(kind, {})[name] = tensor if kind.startswith(YOUNG) else tensor.float()
    rates = json.loads(metadata.get(YOUNG, "[]"))
    return moments, [(numbers, moments.pop(f"{YOUNG}{i}", {})) for i, numbers in enumerate(rates)]


def _write(path: Path, form: str, state: Mapping[str, Tensor], extra: Mapping[str, str]) -> None:
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    metadata = {**extra, "format": form}
    data = save(tensors, {**metadata, "crc32": str(checksum(tensors, metadata))})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic(path) as file:
            file.write(data)
    except OSError as error:
        raise RunError(f"{path}: the checkpoint cannot be written: {error.strerror}") from None


def _read(path: Path, form: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a whole and undamaged file of ours."""
    try:
        if not path.is_file():
            raise InputError(f"{path}: no such checkpoint")
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = dict(file.metadata() or {})
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: not a readable checkpoint: {_first_line(error)}") from None
    if (found := metadata.get("format")) != form:
        raise InputError(f"{path}: format is {found!r}, expected {form!r}; it was not written by morphogen")
    if metadata.pop("crc32", None) != str(checksum(state, metadata)):
        raise InputError(f"{path}: the weights do not match their checksum; the file is damaged")
    del metadata["format"]
    return state, metadata


def checksum(state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> int:
    """CRC-32 over the metadata and the tensors' bytes, by name. A flipped byte changes it wherever it is."""
    total = zlib.crc32(json.dumps(dict(metadata), sort_keys=True).encode())
    for name in sorted(state):
        total = zlib.crc32(state[name].reshape(-1).view(torch.uint8).numpy().data, total)
    return total


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
