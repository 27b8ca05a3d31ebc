"""What callers from Python hand over, looked at before anything is done with it. Nothing heavy is imported here."""

import operator
from typing import Any, SupportsIndex

from morphogen.errors import InputError


def whole(place: str, value: object, least: int = 0) -> int:
    """A whole number of at least `least`, numpy's too, as a plain one; InputError for anything else."""
    if isinstance(value, bool) or not isinstance(value, SupportsIndex):
        raise InputError(f"{place}: got {value!r}, expected a whole number of at least {least}")
    if (number := operator.index(value)) < least:
        raise InputError(f"{place}: got {value!r}, expected at least {least}")
    return number


def expected(place: str, value: object, kind: type[Any] | tuple[type[Any], ...], hint: str = "") -> None:
    """InputError for a value that is of no such kind.

    hint: where one finds what was meant.
    """
    if not isinstance(value, kind):
        kinds = " or ".join(_a(each.__name__) for each in (kind if isinstance(kind, tuple) else (kind,)))
        tail = f"; {hint}" if hint else ""
        raise InputError(f"{place}: got {_shown(value)}, expected {kinds}{tail}")


def _shown(value: object) -> str:
    if value is None or isinstance(value, str | int | float):
        return repr(value)
    return _a(type(value).__name__)


def _a(name: str) -> str:
    return f"an {name}" if name[0] in "AEIOUaeiou" else f"a {name}"
