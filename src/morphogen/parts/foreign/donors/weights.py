"""Tensors of a model's safetensors files, each read when it is asked for; no pickle is ever loaded."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from safetensors import SafetensorError, safe_open
from torch import Tensor

from morphogen.errors import InputError, unknown
from morphogen.parts.foreign.donors.files import Files, read_json

INDEX: Final = "model.safetensors.index.json"
WEIGHTS: Final = "model.safetensors"


class Weights:
    """The safetensors of a model, one file or several with an index; each tensor is read when it is asked for.

    bytes_read: of the tensors asked for so far.
    """

    def __init__(self, files: Files) -> None:
        self._files = files
        self._homes = _homes(files)
        self.bytes_read = 0

    def __iter__(self) -> Iterator[str]:
        return iter(self._homes)

    def __contains__(self, name: str) -> bool:
        return name in self._homes

    def __getitem__(self, name: str) -> Tensor:
        """One tensor. InputError where it is missing or unreadable, or holds no floating-point numbers of 16 bits or
        more, or any that is not finite."""
        path = self._home(name)
        with _opened(path, name) as file:
            tensor: Tensor = file.get_tensor(name)
        if not tensor.is_floating_point() or tensor.element_size() < 2:
            raise InputError(f"{path}: {name} is of {tensor.dtype}, expected floating-point numbers")
        if not bool(tensor.isfinite().all()):
            raise InputError(f"{path}: {name} holds numbers that are not finite")
        self.bytes_read += tensor.numel() * tensor.element_size()
        return tensor

    def _home(self, name: str) -> Path:
        if name not in self._homes:
            raise InputError(unknown(f"{self._files.folder}: tensor", name, self._homes))
        return self._files.path(self._homes[name])


@contextmanager
def _opened(path: Path, name: str) -> Iterator[Any]:
    with _readable(path), safe_open(path, framework="pt") as file:
        if name not in file.keys():  # noqa: SIM118
            raise InputError(f"{path}: has no tensor {name}, which {INDEX} says it has")
        yield file


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (SafetensorError, OSError) as error:
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path}: not a whole safetensors file ({said})") from None


def _homes(files: Files) -> dict[str, str]:
    """Every tensor of a model -> the file that holds it."""
    folder = files.folder
    if (index := folder / INDEX).is_file():
        found = read_json(index).get("weight_map")
        if not isinstance(found, dict) or not all(isinstance(each, str) for each in found.values()):
            raise InputError(f"{index}: has no weight_map, expected tensor names to file names")
        if odd := sorted(each for each in found.values() if Path(each).name != each):
            raise InputError(f"{index}: names the file {odd[0]!r}, expected one of the same folder")
        if gone := sorted(each for each in set(found.values()) if not files.has(each)):
            raise InputError(f"{folder / gone[0]}: no such file, but {INDEX} names it")
        return dict(found)
    known = files.names()
    safe = [name for name in known if name.endswith(".safetensors") and "/" not in name]
    named = [WEIGHTS] if files.has(WEIGHTS) else safe
    if len(named) > 1:
        raise InputError(f"{folder}: has {len(named)} safetensors files and no {INDEX}, expected one or the other")
    if not named:
        if pickled := [name for name in known if name.endswith((".bin", ".pt", ".pth", ".ckpt"))]:
            raise InputError(
                f"{folder}: has weights only as pickle ({pickled[0]}), which is never loaded; expected .safetensors"
            )
        raise InputError(f"{folder}: has no weights, expected {WEIGHTS} or {INDEX}")
    path = files.path(named[0])
    with _readable(path), safe_open(path, framework="pt") as file:
        return dict.fromkeys(file.keys(), named[0])
