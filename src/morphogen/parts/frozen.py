"""Frozen, strict data: what parts, blueprints and experiments are made of."""

from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError


class Frozen(BaseModel):
    """Frozen, strict data. `evolve` is how operators make a changed copy."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, allow_inf_nan=False)

    def evolve(self, **changes: Any) -> Self | None:
        """A validated copy with `changes`; None where that would be invalid, or where nothing would differ."""
        try:
            child = type(self).model_validate({**dict(self), **changes})
        except ValidationError:
            return None
        return None if child == self else child
