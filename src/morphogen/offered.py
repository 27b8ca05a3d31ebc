"""Fields of an experiment that name one of ours, or what an installed package offers under a name of its own."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from morphogen import plugins
from morphogen.errors import InputError


@dataclass(frozen=True, eq=False)
class Offered:
    """Marks a field that holds a name of `own`, or one in the entry-point `group`.

    Only the package that a file names is imported, when the file is read, so that what is wrong with it is told with
    the line where it stands.
    """

    group: str
    own: Mapping[str, Callable[..., Any]]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self._read)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"type": "string", "enum": sorted({*self.own, *plugins.names(self.group)})}

    def _read(self, name: object) -> str:
        if isinstance(name, str) and plugins.only_looked_at():
            return name
        try:
            plugins.choose(self.group, self.own, name)
        except InputError as error:
            raise ValueError(str(error)) from None
        return str(name)
