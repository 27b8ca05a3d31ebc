"""Ordinary files only: what lies in a stranger's folder may be a link out of it, a pipe that never ends, a device."""

import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import IO, Literal

from morphogen.errors import RunError

KINDS = {
    stat.S_IFLNK: "a link",
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


@contextmanager
def open_ordinary(path: Path) -> Iterator[BufferedReader]:
    """A file's bytes. OSError where it cannot be opened, or is no ordinary file, which might never begin or end."""
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        if (kind := stat.S_IFMT(os.fstat(file.fileno()).st_mode)) != stat.S_IFREG:
            raise OSError(0, f"is {KINDS.get(kind, 'something else')}, expected an ordinary file")
        yield file


def read_ordinary(path: Path) -> bytes:
    """All bytes of a file. OSError as `open_ordinary`."""
    with open_ordinary(path) as file:
        return file.read()


def open_own(path: Path, mode: Literal["a", "a+"]) -> IO[str]:
    """Opens a file to add to, made where it is missing. RunError for a link and all else that is written elsewhere too,
    OSError where it cannot be opened."""
    check_own(path.parent, [path.name])
    flag = os.O_NOFOLLOW | os.O_NONBLOCK
    return open(path, mode, encoding="utf-8", opener=lambda name, flags: os.open(name, flags | flag, 0o666))


def check_own(folder: Path, files: Iterable[str] = (), folders: Iterable[str] = ()) -> None:
    """RunError unless these, where they are there, are files and folders in `folder` itself: not links out of it, not
    pipes, nor files with another name elsewhere, which writing would change too."""
    for name, wanted in [*((name, stat.S_IFREG) for name in files), *((name, stat.S_IFDIR) for name in folders)]:
        path = folder / name
        try:
            found = path.lstat()
        except OSError:
            continue  # missing, or it cannot be looked at, and then not written either
        kind = stat.S_IFMT(found.st_mode)
        expected = "an ordinary file" if wanted == stat.S_IFREG else "a folder"
        if kind != wanted:
            to = f" to {os.readlink(path)}" if kind == stat.S_IFLNK else ""
            raise RunError(f"{path}: is {KINDS.get(kind, 'a file')}{to}, expected {expected} of the run's own")
        if wanted == stat.S_IFREG and found.st_nlink > 1:
            raise RunError(f"{path}: has another name elsewhere (a hard link), which a run would write to; copy it")
