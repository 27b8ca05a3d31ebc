"""Paths as users write them. Nothing heavy is imported here."""

import os
from pathlib import Path

from morphogen.errors import InputError


def user_path(path: str | os.PathLike[str], place: str) -> Path:
    """`path` with `~` and `~somebody` filled in. InputError, named by `place`, where nobody has that home folder."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise InputError(f"{place}: got {os.fspath(path)!r}, but nobody has that home folder") from None
