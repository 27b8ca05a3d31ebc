"""The one atomic writer: files written whole or not at all; and JSON whose bytes depend on the data alone.

Whoever writes holds a lock on what is temporary of it, so that others can tell a file in the making from one that a
process left when it was killed, on whatever machine that was.
"""

import contextlib
import fcntl
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from pydantic_core import from_json

from morphogen.errors import RunError
from morphogen.escape import whole_characters

#: How temporary files end, and what their names are like: `.<name>.<process>-<eight digits>.tmp`.
TEMPORARY = ".tmp"
_OURS = re.compile(r"\..*\.[0-9]+-[0-9a-f]{8}\.tmp", re.DOTALL)
#: In a temporary folder: locked as long as somebody uses it.
IN_USE = ".in-use"
#: A temporary file is named after the first letters of the file's name, which may itself be as long as names can be.
NAME_CHARS = 40


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[IO[bytes]]:
    """A file to write that appears at `path` whole, or not at all: beside it first, then fsync, rename, fsync of the
    folder. It can be read by whom the umask allows.

    Raises:
        OSError: It could not be written; what was at `path` is intact, and nothing temporary stays behind.
    """
    temporary, descriptor = _fresh(path)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    sync_folder(path.parent)


def write_atomic(path: Path, data: bytes) -> None:
    """Puts `data` at `path`, or leaves what was there.

    Raises RunError (read-only folder, full disk, ...) with one message; the old file is then intact and no temporary
    file stays behind.
    """
    try:
        with atomic(path) as file:
            file.write(data)
    except OSError as error:
        raise RunError(f"{path}: cannot write {len(data)} bytes: {error.strerror or error}") from error


def _fresh(path: Path) -> tuple[Path, int]:
    """A new temporary file for `path`, open and locked."""
    while True:
        temporary = path.with_name(f".{path.name[:NAME_CHARS]}.{os.getpid()}-{os.urandom(4).hex()}{TEMPORARY}")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            lock(descriptor)
            if os.fstat(descriptor).st_nlink:  # else it was taken for a stale one before it was locked
                return temporary, descriptor
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            os.close(descriptor)
            raise
        os.close(descriptor)


def lock(descriptor: int) -> bool:
    """Locks an open file until it is closed; False where another holds it. Where a file system has no locks, it goes
    without one, and nobody takes for stale what is there."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def remove_stale(folder: Path) -> None:
    """Removes temporary files directly in `folder` that no process is writing; what cannot be looked at stays."""
    for path in folder.glob(f".*{TEMPORARY}"):
        if _OURS.fullmatch(path.name) and _abandoned(path):
            with contextlib.suppress(OSError):
                path.unlink()


def _abandoned(path: Path) -> bool:
    """Whether nobody holds the file any more."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        return lock(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def scratch(prefix: str) -> Iterator[Path]:
    """A folder for what is temporary, gone afterwards. Those of the same prefix that killed processes left go first."""
    for left in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        if _abandoned(left / IN_USE):
            shutil.rmtree(left, ignore_errors=True)
    with (
        tempfile.TemporaryDirectory(prefix=prefix, ignore_cleanup_errors=True) as name,
        (Path(name) / IN_USE).open("wb") as mark,
    ):
        lock(mark.fileno())
        yield Path(name)


def sync_folder(folder: Path) -> None:
    """Makes renames and new files in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def parsed_json(raw: bytes) -> Any:
    """The data of JSON text. ValueError where it is none, or holds halves of characters, which no file could hold;
    RecursionError where it is nested beyond all use."""
    data = json.loads(raw)
    if b"\\ud" in raw.lower():
        from_json(raw)
    return data


def canonical_json(value: Any, indent: int | None = None, *, sort_keys: bool = True) -> str:
    """Valid JSON with sorted keys (unless their order says something) and shortest exact floats; the same data gives
    the same text.

    JSON has no NaN or infinities: they stand as the strings "NaN", "Infinity", "-Infinity", which pydantic reads back
    into float fields.
    """
    value = _plain(value)
    if indent is None:
        separators = (",", ":")
        text = json.dumps(value, sort_keys=sort_keys, separators=separators, ensure_ascii=False, allow_nan=False)
    else:
        text = _indented(value, "\n", " " * indent, sort_keys)
    return whole_characters(text)


_scalar = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode


def _indented(value: Any, line: str, step: str, sort_keys: bool) -> str:
    """What `json.dumps` writes with an indent, in a third of its time. line: the end of the line before."""
    if not value or not isinstance(value, dict | list):
        return _scalar(value)
    inner = line + step
    if isinstance(value, list):
        return f"[{inner}{f',{inner}'.join([_indented(item, inner, step, sort_keys) for item in value])}{line}]"
    items = sorted(value.items()) if sort_keys else value.items()
    names = ((key if isinstance(key, str) else _scalar(key), item) for key, item in items)
    told = [f"{_scalar(name)}: {_indented(item, inner, step, sort_keys)}" for name, item in names]
    return f"{{{inner}{f',{inner}'.join(told)}{line}}}"


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
