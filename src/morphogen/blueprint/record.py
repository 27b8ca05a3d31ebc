"""Blueprints and experiments as ledgers and checkpoints hold them: plain data that may come from anywhere."""

import copy
from collections.abc import Iterable
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from morphogen.blueprint.mistakes import what
from morphogen.errors import InputError
from morphogen.parts.contract.registry import TAG

M = TypeVar("M", bound=BaseModel)


def understood(cls: type[M], data: Any, place: str) -> tuple[M, list[tuple[str, Any]]]:
    """`data` as a `cls`, and (path, value) of the settings in it that an earlier version had and this one has no more.

    InputError as `recorded` for anything else that does not fit.
    """
    data = copy.deepcopy(data)
    removed: list[tuple[str, Any]] = []
    try:
        return cls.model_validate(data), removed
    except ValidationError as error:
        for detail in error.errors(include_url=False):
            if detail["type"] == "extra_forbidden":
                steps = [step for step in detail["loc"] if not str(step).startswith(TAG)]
                holder = data
                for step in steps[:-1]:
                    holder = holder[step]
                removed.append((_dotted(steps), holder.pop(steps[-1])))
    return recorded(cls, data, place), removed


def recorded(cls: type[M], data: Any, place: str) -> M:
    """`data` as a `cls`. InputError with the `place` it was recorded in, the path below it, and what is wrong there."""
    try:
        return cls.model_validate(data)
    except ValidationError as error:
        details = error.errors(include_url=False)
        # a field that is missing may only be mistyped, which the unknown one tells
        first = next((detail for detail in details if detail["type"] == "extra_forbidden"), details[0])
        path = _dotted(step for step in first["loc"] if not str(step).startswith(TAG))
        said = what(cls, first, first["loc"])
        raise InputError(f"{place}: {path}: {said}" if path else f"{place}: {said}") from None


def _dotted(steps: Iterable[int | str]) -> str:
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps).lstrip(".")
