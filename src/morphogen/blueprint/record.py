"""Blueprints and experiments as ledgers and checkpoints hold them: plain data that may come from anywhere."""

from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from morphogen.blueprint.mistakes import what
from morphogen.errors import InputError
from morphogen.parts.contract.registry import TAG

M = TypeVar("M", bound=BaseModel)


def recorded(cls: type[M], data: Any, place: str) -> M:
    """`data` as a `cls`. InputError with the `place` it was recorded in, the path below it, and what is wrong there."""
    try:
        return cls.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        steps = (step for step in first["loc"] if not str(step).startswith(TAG))
        path = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps).lstrip(".")
        raise InputError(f"{place}: {path}: {what(cls, first, first['loc'])}") from None
