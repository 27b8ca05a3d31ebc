"""Every error morphogen raises on purpose. One root, so that a caller can catch them all."""

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class MorphogenError(Exception):
    """Something a user can act on; the command line prints its text alone and exits with `exit_code`."""

    exit_code = 2


class InputError(MorphogenError):
    """A file, flag, checkpoint or blueprint that cannot be used as it is."""


class CandidateError(InputError):
    """A candidate that cannot be trained as it is, whatever the machine: the only bad input that is its own failure."""


class OperatorError(MorphogenError):
    """An operator that does not exist, or does not apply to the blueprint at hand."""


class RunError(MorphogenError):
    """A run folder that cannot be written, read or resumed."""


class DeviceError(RunError):
    """An accelerator that no longer answers this process: another one may still use it, or it is gone."""


class MemoryShortError(RunError):
    """Too little memory on a device that others use at the same time: alone on one a candidate may have enough."""


class DivergedError(MorphogenError):
    """Training produced numbers that are not finite."""


def nearest(name: object, allowed: Iterable[str]) -> str | None:
    """The allowed name closest to `name`, or None when nothing is close."""
    close = difflib.get_close_matches(str(name).lower(), (found := {a.lower(): a for a in allowed}), n=1, cutoff=0.6)
    return found[close[0]] if close else None


#: A message lists at most this many allowed names; of more, those closest to what was found.
SHOWN = 30


def unknown(place: str, got: object, allowed: Iterable[str]) -> str:
    """`place: got 'x', expected one of a, b; did you mean 'a'?`"""
    names = sorted(allowed)
    hint = nearest(got, names)
    tail = f"; did you mean {hint!r}?" if hint else ""
    if len(names) > SHOWN:
        close = difflib.get_close_matches(str(got), names, n=8, cutoff=0.0)
        return f"{place}: got {got!r}, expected one of {len(names)} names, the closest are {', '.join(close)}{tail}"
    return f"{place}: got {got!r}, expected one of {', '.join(names)}{tail}"


@contextmanager
def anybodys(what: str, kind: type[MorphogenError]) -> Iterator[None]:
    """Within runs what may be code of others: what fails in it is of a kind, and told in one line that names it."""
    try:
        yield
    except MorphogenError:
        raise
    except Exception as error:
        raise kind(f"{what}: {raised(error)}") from error


def raised(error: BaseException) -> str:
    """`ValueError: its first line (function:line)`, of an error that nobody raised on purpose."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = f" ({trace.tb_frame.f_code.co_qualname}:{trace.tb_lineno})" if trace is not None else ""
    return f"{type(error).__name__}: {first_line(error)}{where}"


def first_line(error: BaseException) -> str:
    """Of what an error says."""
    return (str(error) or "no message").splitlines()[0]
