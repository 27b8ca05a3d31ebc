"""Which files a path stands for: links are followed, every file is met once, and what is left out is named.

Nothing is opened here, and what is neither file nor folder (a FIFO, a socket, a device) is never opened at all.
"""

import os
import stat
from collections import deque
from collections.abc import Callable
from pathlib import Path

from morphogen.data.document import Reader

#: Why a file of that name is not read; None for one that is.
Unfit = Callable[[Path], str | None]


def fit(path: Path) -> None:
    """Takes every file."""


def files_below(root: Path, reader: Reader, unfit: Unfit = fit) -> list[Path]:
    """The files in a folder and below, sorted by path; hidden ones and those that `unfit` has a reason for left out.

    A folder or file that several names lead to is taken once, under the one that is least deep. Raises InputError,
    unless the reader skips, for a folder that cannot be listed and for a link that leads nowhere.
    """
    found: list[Path] = []
    seen = {os.path.realpath(root)}
    folders = deque([root])
    while folders:
        folder = folders.popleft()
        try:
            paths = sorted(folder.iterdir())
        except OSError as error:
            said = f": the folder cannot be read ({error.strerror})"
            reader.refuse(str(folder), said, "folders that cannot be read")
            continue
        for path in paths:
            mode = _mode(path, root, reader, unfit)
            if mode is None:
                continue
            if (real := os.path.realpath(path)) in seen:
                reader.leave_out("links to what is read already", told(path, root))
                continue
            seen.add(real)
            (folders if stat.S_ISDIR(mode) else found).append(path)
    return sorted(found)


def _mode(path: Path, root: Path, reader: Reader, unfit: Unfit) -> int | None:
    """The mode of a file or folder to read; None for what is left out."""
    name = told(path, root)
    if path.name.startswith("."):
        reader.leave_out("hidden", name)
        return None
    why = unfit(path)
    try:
        mode = path.stat().st_mode
    except OSError as error:
        if why is not None and path.suffix:
            reader.leave_out(why, name)
        elif path.is_symlink():
            reader.refuse(str(path), ": the link leads nowhere", "links that lead nowhere")
        else:
            reader.refuse(str(path), f": cannot be looked at ({error.strerror})", "files that cannot be read")
        return None
    if stat.S_ISDIR(mode):
        return mode
    if not stat.S_ISREG(mode):
        why = f"not opened, as it is a {kind_of(mode)}"
    if why is not None:
        reader.leave_out(why, name)
        return None
    return mode


def kind_of(mode: int) -> str:
    """What something that is neither file nor folder is called."""
    return "FIFO" if stat.S_ISFIFO(mode) else "socket" if stat.S_ISSOCK(mode) else "device"


def told(path: Path, root: Path) -> str:
    """A path below `root` in the words of messages and keys."""
    return path.relative_to(root).as_posix()
