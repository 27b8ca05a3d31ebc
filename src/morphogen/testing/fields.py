"""Parts drawn from the fields of their kind, as pydantic knows them, and so a new kind needs no strategy."""

import math
import types
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from hypothesis import strategies as st
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from morphogen.parts.contract.frozen import Frozen
from morphogen.parts.contract.part import Part

#: Whole numbers are drawn up to so far above the least, so that models stay small.
SPAN = 12
#: Numbers are drawn out of so many between their bounds, or around their default where they have none.
STEPS = 8


def parts_of(cls: type[Part], kind: str | None = None) -> st.SearchStrategy[Any]:
    """Valid parts of a class: of all its fields, those that can be varied from what their types and bounds say."""
    return frozen_of(cls, {} if kind is None else {"kind": st.just(kind)})


def frozen_of(cls: type[Frozen], given: Mapping[str, st.SearchStrategy[Any]] = {}) -> st.SearchStrategy[Any]:
    """Likewise data that is no part. given: fields that are drawn otherwise."""
    fields = {name: _values(field) for name, field in cls.model_fields.items() if name not in given}
    whole = st.fixed_dictionaries({**fields, **given})
    return whole.map(lambda drawn: _valid(cls, drawn)).filter(lambda part: part is not None)


def _valid(cls: type[Frozen], drawn: dict[str, Any]) -> Frozen | None:
    try:
        return cls.model_validate(drawn)
    except ValidationError:
        return None


def _values(field: FieldInfo) -> st.SearchStrategy[Any]:
    default = None if field.is_required() else field.get_default(call_default_factory=True)
    found = _of_type(field.annotation, field.metadata, default)
    if found is None:
        if field.is_required():
            raise TypeError(f"cannot draw a {field.annotation}: give the field a default, or draw the kind yourself")
        return st.just(default)
    return found


def _of_type(annotation: Any, metadata: Sequence[Any], default: Any) -> st.SearchStrategy[Any] | None:
    """Values of a type under the bounds of its metadata; None for a type that is not varied."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _of_type(inner[0], [*inner[1:], *metadata], default)
    if origin is Literal:
        return st.sampled_from(inner)
    if origin in (Union, types.UnionType):
        found = [_of_type(arg, metadata, default) for arg in inner if arg is not type(None)]
        nothing = [st.none()] * (type(None) in inner)
        return None if None in found else st.one_of(*nothing, *[each for each in found if each is not None])
    if annotation is bool:
        return st.booleans()
    if annotation is int:
        low, high = _bounds(metadata, step=1)
        low = 0 if low == -math.inf else int(low)
        return st.integers(low, int(min(high, low + SPAN)))
    if annotation is float:
        return _numbers(*_bounds(metadata, step=0), default)
    if isinstance(annotation, type) and issubclass(annotation, Frozen):
        return parts_of(annotation) if issubclass(annotation, Part) else None
    return None


def _bounds(metadata: Sequence[Any], step: int) -> tuple[float, float]:
    """The least and the greatest value that is allowed. step: what a strict bound leaves out."""
    low, high = -math.inf, math.inf
    for bound in metadata:
        match bound:
            case FieldInfo():
                inner = _bounds(bound.metadata, step)
                low, high = max(low, inner[0]), min(high, inner[1])
            case Ge(ge=least):
                low = max(low, float(str(least)))
            case Gt(gt=below):
                low = max(low, float(str(below)) + step)
            case Le(le=most):
                high = min(high, float(str(most)))
            case Lt(lt=above):
                high = min(high, float(str(above)) - step)
    return low, high


def _numbers(low: float, high: float, default: float | None) -> st.SearchStrategy[float]:
    """A few numbers strictly between the bounds, and the default."""
    if low == -math.inf or high == math.inf:
        middle = 1.0 if default is None else default
        low, high = max(low, middle - 1.0), min(high, middle + 1.0)
    between = [low + (high - low) * step / STEPS for step in range(1, STEPS)]
    return st.sampled_from([*([] if default is None else [default]), *between])
