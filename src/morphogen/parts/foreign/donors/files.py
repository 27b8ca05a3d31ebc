"""The files of a trained model: a folder here, or a repository of the hub, fetched file by file as needed."""

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from morphogen.errors import InputError
from morphogen.paths import user_path
from morphogen.reach import unreachable

#: What is fetched of a whole model on the hub.
WHOLE: Final = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")
#: What is fetched to know which tensors it has.
TOLD: Final = ("config.json", "*.safetensors.index.json")


@dataclass(frozen=True)
class Files:
    """The files of a model. folder: where they lie. repository: its name on the hub, where they may yet be fetched."""

    folder: Path
    repository: str | None = None

    def has(self, name: str) -> bool:
        """Whether a file is there, or may be: where the hub does not tell, it is known when it is fetched."""
        if (self.folder / name).is_file():
            return True
        return self.repository is not None and name in (_listed(self.repository, self.folder.name) or (name,))

    def names(self) -> list[str]:
        """All files that are there, those included that the hub tells of."""
        here = [path.name for path in self.folder.iterdir() if path.is_file()]
        told = _listed(self.repository, self.folder.name) if self.repository is not None else None
        return sorted({*here, *(told or ())})

    def path(self, name: str) -> Path:
        """Where a file lies. InputError where it does not, and the hub does not give it."""
        path = self.folder / name
        if path.is_file():
            return path
        if self.repository is None:
            raise InputError(f"{path}: no such file")
        from huggingface_hub import hf_hub_download

        model, revision = self.repository, self.folder.name
        return _fetched(
            f"{model}/{name}",
            model,
            lambda offline: hf_hub_download(model, name, revision=revision, local_files_only=offline),
        )


def model_files(model: str, fetched: tuple[str, ...] = TOLD, place: str = "MODEL") -> Files:
    """The files of a model.

    Args:
        model: Its folder, or its name on the hub.
        fetched: Patterns of the files that are fetched of one on the hub.
        place: What messages call it by.

    Raises:
        InputError: There is no such folder, and no such model to be had from the hub.
    """
    path = user_path(model, place)
    try:
        here = path.exists()
    except OSError as error:
        raise InputError(f"{place}: {error.strerror}, expected a folder or the name of a model on the hub") from None
    if here or not hub_name(model):
        if not path.is_dir():
            raise InputError(
                f"{model}: no such folder, expected one with config.json, or the name of a model on the hub"
            )
        return Files(path)
    from huggingface_hub import snapshot_download

    patterns = list(fetched)
    folder = _fetched(
        f"{model}: no such folder, and",
        model,
        lambda offline: snapshot_download(model, allow_patterns=patterns, local_files_only=offline),
    )
    return Files(folder, model)


def _fetched(what: str, model: str, fetch: Callable[[bool], str]) -> Path:
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    unheard = unreachable("models", model)
    try:
        return Path(fetch(unheard is not None))
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError, ValueError) as error:
        why = unheard or str(error).splitlines()[0]
        raise InputError(f"{what} not to be had from the hub: {why}") from None


@functools.lru_cache(maxsize=64)
def _listed(model: str, revision: str) -> frozenset[str] | None:
    """The files of a model on the hub; None where it does not tell."""
    from huggingface_hub import list_repo_files
    from huggingface_hub.errors import HfHubHTTPError

    if unreachable("models", model):
        return None
    try:
        return frozenset(list_repo_files(model, revision=revision))
    except (HfHubHTTPError, OSError, ValueError):
        return None


def hub_name(model: str) -> bool:
    """Whether it could be the name of a model on the hub."""
    return (
        model.count("/") <= 1
        and "@" not in model
        and not model.startswith((".", "/", "~"))
        and not model.endswith((".json", ".yaml"))
    )


def read_json(path: Path) -> dict[str, Any]:
    """The object that a JSON file holds. InputError for any other file."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({error})") from None
    if not isinstance(found, dict):
        raise InputError(f"{path}: holds a {type(found).__name__}, expected an object")
    return found
