"""Experiments to begin with, as they lie beside this file: what `morphogen init` writes where a user stands."""

from importlib import resources
from typing import Final

from morphogen.errors import InputError, unknown

#: Name -> what it is, in a line.
STARTERS: Final = {
    "smoke": "a few minutes on two CPU cores, no download",
    "phi": "about 100 million parameters, for one GPU",
    "growth": "one model that grows while it trains",
    "fusion": "a search that begins with a trained model",
}


def starter(name: str) -> str:
    """The text of one. InputError, with the nearest name, where there is none."""
    if name not in STARTERS:
        raise InputError(unknown("--from", name, STARTERS))
    return resources.files(__name__).joinpath(f"{name}.yaml").read_text(encoding="utf-8")
