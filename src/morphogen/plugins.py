"""Code of others: found by entry point, and otherwise run only where that is allowed.

An installed package offers what it has under a name, in an entry-point group such as `morphogen.parts`; whoever
installed it trusts it. A file can also name code outright, as `module:Class`. To read a file, a run's folder or a
checkpoint must never run code, so that such a name is refused unless the user allows it.
"""

import importlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache, lru_cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal, TypeVar

from morphogen.errors import InputError, unknown

#: Set to 1 in the environment, it allows what `--allow-code` allows.
VARIABLE = "MORPHOGEN_ALLOW_CODE"
#: Entry-point groups.
PARTS, OPERATORS, FIGURES = "morphogen.parts", "morphogen.operators", "morphogen.figures"
SELECTORS, SURVIVAL = "morphogen.selectors", "morphogen.survival"
CORPORA, TOKENIZERS, PROBES = "morphogen.corpora", "morphogen.tokenizers", "morphogen.probes"
#: Those whose modules register operators and figures by being imported.
REGISTERING = (PARTS, OPERATORS, FIGURES)

T = TypeVar("T")
Permission = Literal["refused", "looked at", "allowed"]
_PERMISSION: ContextVar[Permission] = ContextVar("permission", default="refused")


def code_allowed() -> bool:
    """Whether a name of the form `module:Class` may be imported."""
    return _PERMISSION.get() == "allowed" or os.environ.get(VARIABLE) == "1"


def only_looked_at() -> bool:
    """Whether blueprints are read to be shown alone, so that what they name need not be found."""
    return _PERMISSION.get() == "looked at"


@contextmanager
def allow_code(allowed: bool = True) -> Iterator[None]:
    """Within, blueprints may name code as `module:Class`, which is then imported.

    That holds in this thread, and in the workers of runs that are begun here.

    Args:
        allowed: Whether they may; False forbids again what was allowed around.
    """
    with _permitted("allowed" if allowed else "refused"):
        yield


@contextmanager
def looking() -> Iterator[None]:
    """Within, custom parts may name any plug-in, and none is imported; whatever then needs one raises InputError."""
    with _permitted("looked at"):
        yield


@contextmanager
def _permitted(what: Permission) -> Iterator[None]:
    token = _PERMISSION.set(what)
    try:
        yield
    finally:
        _PERMISSION.reset(token)


def names(group: str) -> list[str]:
    """The names in an entry-point group, in order. Nothing is imported."""
    return sorted(_points(group))


def find(group: str, name: str) -> Any:
    """What an entry point, or `module:Class`, names. InputError with the reason where it is not there, may not be
    imported, or cannot be."""
    if group in REGISTERING:
        _register_ours()
    if ":" in name:
        return _named_outright(group, name)
    points = _points(group)
    if name not in points:
        hint = unknown("", name, points).removeprefix(f": got {name!r}, ") if points else "none is installed"
        raise InputError(
            f"plug-in {name}: no installed package has it (entry points of group {group}: {hint}); install the package "
            "that does"
        )
    return _imported(name, points[name].value, points[name].load)


def choose(group: str, own: Mapping[str, Callable[..., T]], name: object) -> Callable[..., T]:
    """The function called `name` in `own`, else the one that an installed package offers in `group`. InputError with
    all that are there where none has the name, or the package's cannot be used."""
    if isinstance(name, str) and name in own:
        return own[name]
    if not isinstance(name, str) or name not in names(group):
        raise InputError(unknown("", name, {*own, *names(group)}).removeprefix(": "))
    found: Callable[..., T] = find(group, name)
    if not callable(found):
        raise InputError(f"plug-in {name}: got {found!r}, expected a function (entry points of group {group})")
    return found


def broken(*groups: str) -> list[str]:
    """Of all that installed packages offer in some groups, why it cannot be imported, where it cannot."""
    found = []
    for group in groups:
        for name in names(group):
            try:
                find(group, name)
            except InputError as error:
                found.append(str(error))
    return found


def missing(message: str, *groups: str) -> str:
    """What is said of a name that nobody has; with what is `broken`, as that may be where it stands."""
    return "; ".join([message, *broken(*groups)])


def version(group: str, name: str) -> str:
    """What tells one version of the code behind an entry point from another: where it is, and its package's version."""
    point = _points(group)[name]
    return f"{point.value} {'' if point.dist is None else point.dist.version}"


def check_allowed(group: str, name: str) -> None:
    """InputError for a name of the form `module:Class` that may not be imported."""
    if ":" in name and not code_allowed():
        raise InputError(
            f"plug-in {name}: names code, which no file may run unasked; where you trust it, allow it with "
            f"--allow-code or {VARIABLE}=1, or install it as an entry point of group {group}"
        )


@cache
def _register_ours() -> None:
    """Our operators and figures come before anybody's, so that of two of one name theirs is refused."""
    importlib.import_module("morphogen.variation")
    importlib.import_module("morphogen.figures").import_homes()


def _named_outright(group: str, name: str) -> Any:
    check_allowed(group, name)
    module, _, attribute = name.partition(":")
    return vars(_imported(name, module, lambda: importlib.import_module(module))).get(attribute)


def _imported(name: str, place: str, load: Callable[[], Any]) -> Any:
    """`load()`; InputError whatever goes wrong in it, as a plug-in's module is anybody's code."""
    try:
        return load()
    except (Exception, SystemExit) as error:
        reason = str(error) if isinstance(error, ImportError) else f"{type(error).__name__}: {error}"
        raise InputError(f"plug-in {name}: cannot import {place} ({reason})") from None


def _points(group: str) -> dict[str, EntryPoint]:
    return _installed(entry_points, group, tuple(sys.path))


@lru_cache(maxsize=32)
def _installed(look: Callable[..., Iterable[EntryPoint]], group: str, path: tuple[str, ...]) -> dict[str, EntryPoint]:
    """What is installed on a Python path; looking takes milliseconds, and a search asks for every child."""
    return {point.name: point for point in look(group=group)}
