"""The cache folder: where what is made of text is kept, and files in it that tell whether they are damaged.

The whole folder may be deleted at any time. Called by `store` and `prepare`.
"""

import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from morphogen.errors import InputError
from morphogen.paths import user_path
from morphogen.store.files import atomic

if TYPE_CHECKING:
    from morphogen.experiment import Shard


def cache_folder() -> Path:
    """`$MORPHOGEN_CACHE`, or `morphogen` in the platform's cache folder."""
    if chosen := os.environ.get("MORPHOGEN_CACHE"):
        return user_path(chosen, "MORPHOGEN_CACHE")
    try:
        if sys.platform == "win32":
            base = os.environ.get("LOCALAPPDATA") or str(Path.home() / "AppData" / "Local")
        elif sys.platform == "darwin":
            base = str(Path.home() / "Library" / "Caches")
        else:
            base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    except RuntimeError:  # no HOME, and nobody of this number among the machine's users
        return _cache_without_home()
    return Path(base) / "morphogen"


def _cache_without_home() -> Path:
    """A folder of this user's own among the temporary ones; InputError where somebody else has it."""
    folder = Path(tempfile.gettempdir()) / f"morphogen-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise InputError(f"{folder}: belongs to somebody else; set MORPHOGEN_CACHE to a folder for caches")
    return folder


def shard_folder(shard: "Shard") -> Path:
    """Where this shard's files are kept."""
    return cache_folder() if shard.cache_path is None else user_path(shard.cache_path, "cache_path")


@contextmanager
def cached(path: Path) -> Iterator[IO[bytes]]:
    """A file of the cache to write, as `atomic`. InputError when the folder cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic(path) as file:
            yield file
    except OSError as error:
        raise InputError(
            f"cache folder {path.parent}: cannot write {path.name} ({error.strerror or error}); set MORPHOGEN_CACHE or "
            "data.shards[].cache_path to a folder that can be written"
        ) from error


def write_checked(path: Path, payload: dict[str, Any]) -> None:
    """Write JSON with its own hash, so that `read_checked` can tell a damaged file."""
    text = json.dumps(payload, sort_keys=True)
    with cached(path) as file:
        file.write(json.dumps({"sha256": hashlib.sha256(text.encode()).hexdigest(), "payload": payload}).encode())


def read_checked(path: Path) -> dict[str, Any] | None:
    """What `write_checked` wrote; None when there is no such file, or it is damaged."""
    try:
        found = json.loads(path.read_bytes())
        payload: dict[str, Any] = found["payload"]
        text = json.dumps(payload, sort_keys=True)
        return payload if found["sha256"] == hashlib.sha256(text.encode()).hexdigest() else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
