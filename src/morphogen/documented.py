"""What fields mean: the sentence under each, read from the source when a schema is asked for, never on import."""

import ast
import inspect
import textwrap
from functools import cache
from itertools import pairwise

from pydantic import BaseModel, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema


class Documented(BaseModel):
    """Data whose fields are explained by a docstring each, which JSON Schemas show as their descriptions."""

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        found = handler(schema)
        properties = handler.resolve_ref_schema(found).get("properties", {})
        for name, meaning in meanings(cls).items():
            if name in properties:
                properties[name]["description"] = meaning
        return found


def meanings(model: type[BaseModel]) -> dict[str, str]:
    """Field -> what it means, those of the classes it is made from included."""
    found: dict[str, str] = {}
    for base in reversed(model.__mro__):
        if issubclass(base, Documented):
            found |= _own(base)
    return found


@cache
def _own(model: type[BaseModel]) -> dict[str, str]:
    try:
        source = inspect.getsource(model)
    except (OSError, TypeError):  # a class of a console, or of a package without its source, says nothing
        return {}
    found: dict[str, str] = {}
    (definition,) = ast.parse(textwrap.dedent(source)).body
    for field, meaning in pairwise(ast.iter_child_nodes(definition)):
        match field, meaning:
            case ast.AnnAssign(target=ast.Name(name)), ast.Expr(ast.Constant(str(text))):
                found[name] = " ".join(text.split())
    return found
