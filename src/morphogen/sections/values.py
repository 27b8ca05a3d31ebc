"""What several sections of an experiment share: bounded numbers, and how a field tells its forms apart."""

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import Field

from morphogen.parts.contract.frozen import Frozen
from morphogen.parts.contract.registry import TAG

Share = Annotated[float, Field(ge=0.0, le=1.0)]
#: How much of a moment stays at each step; 1 would never learn.
Decay = Annotated[float, Field(ge=0.0, lt=1.0)]
#: A weight of w makes the best e^w times as likely as the worst, so that this is as good as always, or never.
ScoreWeight = Annotated[float, Field(ge=-1e6, le=1e6)]
#: Candidates of one kind or another: more would not end, or not fit into memory.
Count = Annotated[int, Field(ge=1, le=10_000)]


def changed(settings: Frozen) -> set[str]:
    """Fields that differ from their default. A resolved experiment names every field, so that being named says nothing
    of what a user asked for."""
    values = dict(settings)
    return {name for name, field in type(settings).model_fields.items() if values[name] != field.default}


def list_tag(a_list: str, other: str) -> Callable[[Any], str]:
    """Which of two forms a field has, as pydantic's discriminators tell them apart."""
    return lambda value: TAG + (a_list if isinstance(value, list | tuple) else other)
