"""Frozen, strict data: what parts, blueprints and experiments are made of."""

import functools
from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Self, TypeVar, TypeVarTuple

from pydantic import AliasChoices, ConfigDict, Field, ValidationError

from morphogen.documented import Documented
from morphogen.errors import unknown

#: How often something is drawn or how much of it is taken, relative to others. More than a million to one makes no
#: difference that could be seen, and sums of weights without a bound need not be numbers.
Weight = Annotated[float, Field(ge=0.0, le=1e6)]
PositiveWeight = Annotated[float, Field(gt=0.0, le=1e6)]


P = TypeVarTuple("P")
R = TypeVar("R")

SCALARS = frozenset({bool, int, float, str, type(None)})


class Frozen(Documented):
    """Frozen, strict data. `evolve` is how operators make a changed copy.

    Attributes:
        later: Fields that came when digests were on record already: at their default they count as not there.
    """

    later: ClassVar[frozenset[str]] = frozenset()
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, allow_inf_nan=False)

    @classmethod
    def names(cls) -> dict[str, str]:
        """Every name that a field is understood by on input -> its own."""
        found = {name: name for name in cls.model_fields}
        for name, field in cls.model_fields.items():
            if isinstance(field.validation_alias, AliasChoices):
                found |= {str(alias): name for alias in field.validation_alias.choices}
        return found

    def unsaid(self) -> dict[str, Any]:
        """What to leave out of a dump, itself and all it holds, for fields that came `later` to change no digest."""
        found: dict[str, Any] = {}
        for name, value in vars(self).items():
            if type(value) in SCALARS and name not in self.later:
                continue
            if name in self.later and value == type(self).model_fields[name].default:
                found[name] = True
            elif isinstance(value, Frozen) and (inner := value.unsaid()):
                found[name] = inner
            elif isinstance(value, tuple):
                several = {i: each.unsaid() for i, each in enumerate(value) if isinstance(each, Frozen)}
                found |= {name: kept} if (kept := {i: inner for i, inner in several.items() if inner}) else {}
        return found

    def evolve(self, **changes: object) -> Self | None:
        """A validated copy with `changes`; None where that would be invalid, or where nothing would differ.

        Raises TypeError for a field that does not exist: whoever wrote the call meant another.
        """
        names = self.names()
        for name in changes:
            if name not in names:
                raise TypeError(unknown(f"{type(self).__name__}.evolve", name, names))
        try:
            child = type(self).model_validate({**dict(self), **{names[name]: value for name, value in changes.items()}})
        except ValidationError:
            return None
        return None if child == self else child


def remembered(function: Callable[[*P], R]) -> Callable[[*P], R]:
    """A function of frozen data that remembers what it gave, which nobody may change.

    Of data that cannot be hashed, as the dicts of plug-ins, nothing is remembered: it may change.
    """
    kept = functools.lru_cache(maxsize=1024)(function)

    @functools.wraps(function)
    def asked(*args: *P) -> R:
        try:
            hash(args)
        except TypeError:
            return function(*args)
        return kept(*args)

    return asked
