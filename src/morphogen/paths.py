"""Paths as users write them. Nothing heavy is imported here."""

import os
from pathlib import Path

from morphogen.errors import InputError


def user_path(path: str | os.PathLike[str], place: str) -> Path:
    """`path` with `~` and `~somebody` filled in. InputError, named by `place`, where nobody has that home folder, for a
    NUL, which no path holds, for nothing, which a variable that is not set makes of a path, and for what is no text."""
    text = os.fspath(path) if isinstance(path, str | os.PathLike) else path
    if not isinstance(text, str) or not text.strip() or "\0" in text:
        raise InputError(f"{place}: got {text!r}, expected a path")
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise InputError(f"{place}: got {text!r}, but nobody has that home folder") from None


def absolute_path(text: str, place: str, folder: Path | None = None) -> Path:
    """The absolute path that `text` means.

    Args:
        text: A path as a user wrote it; `~` is filled in.
        place: What messages call it by.
        folder: What a relative one is meant from; the working directory by default.

    Raises:
        InputError: The text is empty, holds a NUL, or names the home of nobody known here.
    """
    if not text.strip() or "\0" in text:
        raise InputError(f"{place}: got {text!r}, expected a path")
    path = user_path(text, place)
    if not path.is_absolute():
        # resolved first: `..` goes up from where a linked folder really lies, as the system itself understands it
        path = (Path.cwd() if folder is None else folder).resolve() / path
    return Path(os.path.normpath(path))
