"""Fields that hold a part of any registered kind, told apart by its name; kinds of installed packages among them."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler, SerializationInfo, TypeAdapter
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from morphogen import plugins
from morphogen.errors import InputError
from morphogen.parts.contract.part import REGISTRY, Context, Modifier, Part, kinds_of

#: How a union's tag looks in a pydantic error location, so that messages can leave it out.
TAG = "kind="
#: Kinds that evolution puts in by operators of their own alone. Every other kind, whoever wrote it, is also drawn by
#: the operators that choose among kinds (`PartIn.newcomers`), so that a new kind need not be entered anywhere.
SETTLED = frozenset(
    {
        *(("attn", kind) for kind in ("MHA", "GQA", "MQA", "MLA", "LINEAR")),
        *(("ssm", kind) for kind in ("mamba", "mamba2")),
        *(("ffn", kind) for kind in ("dense", "moe")),
        *(("extra", kind) for kind in ("custom", "foreign", "short_conv")),
        *(("extra", kind) for kind in ("branch_router", "gated", "layer_scale", "linear_silu")),
        *(("extra", kind) for kind in ("assoc_memory", "chunk_memory", "memory_tokens", "retro")),
    }
)


def registered(slot: str) -> dict[str, type[Part]]:
    """kind -> class, for every kind that may stand in `slot`."""
    return {kind: cls for (where, kind), cls in REGISTRY.items() if where == slot}


@dataclass(frozen=True)
class PartIn:
    """Marks a field that holds a registered part, told apart by `kind` (or `type`).

    slot: where it may stand. also: further slots whose branches it may be. without: kinds that it may not be. A class
    that has such a field itself is built late, when every kind is registered (pydantic's `defer_build`).
    """

    slot: str
    also: tuple[str, ...] = ()
    without: frozenset[str] = frozenset()

    def choices(self) -> dict[str, type[Part]]:
        """kind -> class."""
        more = {
            kind: cls for slot in self.also for kind, cls in registered(slot).items() if not issubclass(cls, Modifier)
        }
        return {kind: cls for kind, cls in (registered(self.slot) | more).items() if kind not in self.without}

    def newcomers(self, ctx: Context) -> list[Part]:
        """A new part of every kind here that is not `SETTLED` and changes nothing when put in, by name."""
        new = {kind: cls for kind, cls in sorted(self.choices().items()) if (cls.slot, kind) not in SETTLED}
        made = (cls.anew(kind, ctx) for kind, cls in new.items())
        return [part for part in made if part is not None and part.neutral()]

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        own = self.choices()
        union = core_schema.tagged_union_schema({TAG + kind: handler.generate_schema(own[kind]) for kind in own}, _tag)

        def read(value: object, among_own: core_schema.ValidatorFunctionWrapHandler) -> object:
            wider = self._wider(own, _tag(value))
            return among_own(value) if wider is None else wider.validate_python(value)

        def write(part: Part, among_own: core_schema.SerializerFunctionWrapHandler, info: SerializationInfo) -> object:
            if part.label in own:
                return among_own(part)
            return part.model_dump(mode=info.mode, exclude_defaults=info.exclude_defaults)

        writing = core_schema.wrap_serializer_function_ser_schema(write, info_arg=True, schema=union)
        return core_schema.no_info_wrap_validator_function(read, union, serialization=writing)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        assert schema["type"] == "function-wrap"
        union = schema["schema"]
        assert union["type"] == "tagged-union"  # as `__get_pydantic_core_schema__` has made them
        own = union["choices"]
        load_kinds()
        more = [handler(cls.__pydantic_core_schema__) for kind, cls in self.choices().items() if TAG + kind not in own]
        return {"oneOf": [handler(schema), *more]} if more else handler(schema)

    def _wider(self, own: Mapping[str, type[Part]], tag: str | None) -> "TypeAdapter[Part] | None":
        """What reads a part that is of none of the `own` kinds: with those of installed packages, which are imported
        only now. None where there are no more. ValueError where the kind's package cannot be imported."""
        if tag is None or (kind := tag.removeprefix(TAG)) in own:
            return None
        if kind in plugins.names(plugins.PARTS):
            load_kind(kind)
        else:
            load_kinds()  # the message lists them
        choices = self.choices()
        return None if choices.keys() == own.keys() else _union(self, tuple(choices.items()))


def _tag(value: object) -> str | None:
    """The tag by which a part, or the data of one, is told apart."""
    if isinstance(value, Part):
        return TAG + value.label
    kind = value.get("kind", value.get("type")) if isinstance(value, Mapping) else None
    return None if kind is None else TAG + str(kind)


@lru_cache(maxsize=64)
def _union(place: PartIn, kinds: tuple[tuple[str, type[Part]], ...]) -> TypeAdapter[Part]:
    """Reads a part of any of the `kinds` that are registered for a place by now."""
    return TypeAdapter(Annotated[Part, place])


def load_kind(name: str) -> None:
    """Imports the plug-in that an installed package offers as a kind, by which it is registered. ValueError where that
    fails, or what is found is no part of that kind."""
    try:
        found = plugins.find(plugins.PARTS, name)
    except InputError as error:
        raise ValueError(str(error)) from None
    if not (isinstance(found, type) and issubclass(found, Part)):
        raise ValueError(f"plug-in {name}: got {found!r}, expected a class that inherits from morphogen's Part")
    if "kind" not in found.model_fields:
        raise ValueError(f"plug-in {name}: has no kind of its own; it is {{kind: custom, name: {name}}}")
    if name not in kinds_of(found):
        raise ValueError(f"plug-in {name}: its kind is {', '.join(kinds_of(found))}, expected {name}")


def load_kinds() -> None:
    """Imports every plug-in of installed packages that can be; the kinds and operators they define are registered."""
    for name in plugins.names(plugins.PARTS):
        with suppress(ValueError):
            load_kind(name)
