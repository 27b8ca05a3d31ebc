"""Checkpoints: safetensors only, written whole or not at all, checked when read."""

import json
import os
import tempfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from morphogen.blueprint.schema import Blueprint
from morphogen.errors import InputError, RunError
from morphogen.network import specs

FORMAT = "morphogen-checkpoint-1"


def save_checkpoint(path: Path, state: Mapping[str, Tensor], blueprint: Blueprint, extra: Mapping[str, str]) -> None:
    """Write weights with their blueprint: to a temporary file in the same folder, synced, renamed.

    RunError when the disk is full or the folder cannot be written; a file that was there stays as it was.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    metadata = {**extra, "format": FORMAT, "blueprint": json.dumps(blueprint.to_json(), sort_keys=True)}
    data = save(tensors, {**metadata, "crc32": str(checksum(tensors, metadata))})
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            temporary = file.name
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise RunError(f"{path}: the checkpoint cannot be written: {error.strerror}") from None


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], Blueprint, dict[str, str]]:
    """State dict, blueprint and the extra metadata. InputError when missing, damaged, or not one of ours."""
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = dict(file.metadata() or {})
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: not a readable checkpoint: {_first_line(error)}") from None
    if (found := metadata.get("format")) != FORMAT:
        raise InputError(f"{path}: format is {found!r}, expected {FORMAT!r}; it was not written by morphogen")
    if metadata.pop("crc32", None) != str(checksum(state, metadata)):
        raise InputError(f"{path}: the weights do not match their checksum; the file is damaged")
    del metadata["format"]
    try:
        blueprint = Blueprint.model_validate_json(metadata.pop("blueprint", ""))
    except ValidationError as error:
        raise InputError(f"{path}: its blueprint cannot be read: {error.errors()[0]['msg']}") from None
    wanted = {name: spec.shape for name, (_, _, spec) in specs(blueprint).items()}
    if wanted != {name: tuple(tensor.shape) for name, tensor in state.items()}:
        raise InputError(f"{path}: the weights are not those of its blueprint")
    return {name: state[name] for name in wanted}, blueprint, metadata


def checksum(state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> int:
    """CRC-32 over the metadata and the tensors' bytes, by name. A flipped byte changes it wherever it is."""
    total = zlib.crc32(json.dumps(dict(metadata), sort_keys=True).encode())
    for name in sorted(state):
        total = zlib.crc32(state[name].reshape(-1).view(torch.uint8).numpy().data, total)
    return total


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]
