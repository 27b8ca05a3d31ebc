"""Fields that hold one of several classes, told apart by a field of theirs, such as a rule's `trigger`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel, GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from morphogen.parts.contract.registry import TAG

#: Fields that say what something is: they come first in a file, and are written even at their default.
TELLING = ("kind", "trigger", "action")


@dataclass(frozen=True)
class OneOf:
    """Marks a union of classes, each with one value for the field `by`. Tags in pydantic's locations look like those of
    parts, so that messages can tell them from fields."""

    by: str

    def choices(self, classes: Any) -> dict[str, type[BaseModel]]:
        """Value of the field -> class."""
        return {str(cls.model_fields[self.by].default): cls for cls in classes}

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        own = self.choices(get_args(source))
        return core_schema.tagged_union_schema(
            {TAG + name: handler.generate_schema(cls) for name, cls in own.items()}, self._tag
        )

    def _tag(self, value: object) -> str | None:
        if isinstance(value, BaseModel):
            return TAG + str(dict(value).get(self.by))
        told = value.get(self.by) if isinstance(value, Mapping) else None
        return None if told is None else TAG + str(told)
