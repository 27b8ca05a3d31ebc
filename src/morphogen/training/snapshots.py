"""Checkpoints of a training that goes on from them bit for bit: one file each, whole or not there at all."""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from morphogen.blueprint.schema import Blueprint
from morphogen.errors import InputError, RunError
from morphogen.inherit.checkpoint import load_whole, save_checkpoint
from morphogen.store.files import canonical_json, parsed_json, remove_stale
from morphogen.training.saved import Saved

FOLDER = "checkpoints"
#: In a checkpoint's metadata: what of a training is no tensor.
KEY = "training"
_NAME = re.compile(r"step-(\d{8,})\.safetensors")


class Snapshot(NamedTuple):
    """A training as it stood. id: of the training. step: of its optimizer. plain: what the training itself noted."""

    path: Path
    id: str
    step: int
    blueprint: Blueprint
    state: dict[str, Tensor]
    averages: dict[str, Tensor]
    saved: Saved
    metadata: dict[str, str]


def path_at(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step lies, in a training's folder."""
    return folder / FOLDER / f"step-{step:08}.safetensors"


def found(folder: Path) -> list[tuple[int, Path]]:
    """(step, path) of every checkpoint in a training's folder, the latest first."""
    names = ((_NAME.fullmatch(path.name), path) for path in (folder / FOLDER).glob("step-*.safetensors"))
    return sorted(((int(match[1]), path) for match, path in names if match), reverse=True)


def write(
    path: Path,
    id: str,
    step: int,
    blueprint: Blueprint,
    state: Mapping[str, Tensor],
    averages: Mapping[str, Tensor],
    saved: Saved,
    metadata: Mapping[str, str],
) -> None:
    """Writes the checkpoint of a step. RunError where it cannot be; what was there stays as it was."""
    told = canonical_json({"id": id, "step": step, "plain": saved.plain}, sort_keys=False)
    save_checkpoint(path, state, blueprint, {**metadata, KEY: told}, averages, saved.tensors)


@contextmanager
def understood(path: Path) -> Iterator[None]:
    """What is missing in a checkpoint that is sound, or is of another kind than expected, as one RunError."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, IndexError):
        raise RunError(f"{path}: what it says of its training cannot be read; take it away to go on without") from None


def read(path: Path) -> Snapshot:
    """A checkpoint of a training. InputError where it is damaged, or of no training."""
    state, averages, beside, blueprint, metadata = load_whole(path)
    # copies: how numbers lie in memory, which for a mapped file is anyhow, can change the last bits of what is computed
    state, averages, beside = ({name: x.clone() for name, x in of.items()} for of in (state, averages, beside))
    if KEY not in metadata:
        raise InputError(f"{path}: is no checkpoint of a training, but of a candidate or of a finished model")
    try:
        told: dict[str, Any] = parsed_json(metadata[KEY].encode())
        return Snapshot(
            path, told["id"], told["step"], blueprint, state, averages, Saved(beside, told["plain"]), metadata
        )
    except (ValueError, RecursionError, KeyError, TypeError):
        raise InputError(f"{path}: what it says of its training cannot be read") from None


def latest(folder: Path, id: str, say: Callable[[str], None]) -> Snapshot | None:
    """The latest sound checkpoint of the training called `id`; None where there is none. What is damaged is passed
    over, with a line to `say`. RunError for one of another training."""
    for _, path in found(folder):
        try:
            snapshot = read(path)
        except InputError as error:
            say(f"passed over: {error}")
            continue
        if snapshot.id != id:
            raise RunError(f"{path}: is a checkpoint of another training; take it away to go on from an earlier one")
        return snapshot
    return None


def tidy(folder: Path, keep: int) -> None:
    """Removes all but the latest `keep` checkpoints (0: removes none), and what was left half written."""
    remove_stale(folder / FOLDER)
    for _, path in found(folder)[keep:] if keep else ():
        with suppress(OSError):
            path.unlink()


def drop_later(folder: Path, step: int) -> None:
    """Removes checkpoints of later steps: those that were passed over."""
    for later, path in found(folder):
        if later > step:
            path.unlink()
