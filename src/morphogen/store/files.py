"""Writing a file whole or not at all, and JSON whose bytes depend on the data alone."""

import contextlib
import json
import math
import os
from pathlib import Path
from typing import Any

from morphogen.errors import RunError


def write_atomic(path: Path, data: bytes) -> None:
    """Puts `data` at `path`, or leaves what was there: a temporary file beside it, fsync, rename, fsync of the folder.

    Raises RunError (read-only folder, full disk, ...) with one message; the old file is then intact and no temporary
    file stays behind.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        sync_folder(path.parent)
    except OSError as error:
        raise RunError(f"{path}: cannot write {len(data)} bytes: {error.strerror or error}") from error


def sync_folder(folder: Path) -> None:
    """Makes renames and new files in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def canonical_json(value: Any, indent: int | None = None) -> str:
    """Valid JSON with sorted keys and shortest exact floats; the same data gives the same text.

    JSON has no NaN or infinities: they stand as the strings "NaN", "Infinity", "-Infinity", which pydantic reads back
    into float fields.
    """
    separators = (",", ":") if indent is None else (",", ": ")
    return json.dumps(
        _plain(value), sort_keys=True, indent=indent, separators=separators, ensure_ascii=False, allow_nan=False
    )


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
