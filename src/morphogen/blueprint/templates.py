"""Templates: compound edits as data, as they stand in YAML. `variation.template` applies, makes up and varies them."""

from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    Discriminator,
    Field,
    JsonValue,
    NonNegativeInt,
    PositiveInt,
    Tag,
    model_validator,
)

import morphogen.blueprint.schema  # noqa: F401  (registers every kind)
from morphogen.errors import unknown
from morphogen.parts.contract.frozen import Frozen, PositiveWeight
from morphogen.parts.contract.part import REGISTRY, TRAITS
from morphogen.parts.contract.registry import TAG

#: A template of more edits would leave nothing of the parent.
MOST_ACTIONS = 32


def features() -> frozenset[str]:
    """What a blueprint may have or lack: a slot, a kind, a trait, a recurrence."""
    places = [place for place in REGISTRY if place[0] != "stem"]
    return frozenset({name for place in places for name in place} | {*TRAITS, "recurrence"})


def _feature(name: str) -> str:
    if name not in features():
        raise ValueError(unknown("feature", name, features()).removeprefix("feature: "))
    return name


Feature = Annotated[str, AfterValidator(_feature)]


class Conditions(Frozen):
    """What must hold of a blueprint for a template to apply; bounds are inclusive, what is not given holds.

    has, lacks: slots (`attn`, `ssm`, `ffn`, `extra`), kinds (`GQA`, `moe`, `mamba2`, ...), or what gates count
    (`moe`, `selector`, `memory`, `recurrence`), anywhere in it and nowhere in it.
    """

    min_blocks: NonNegativeInt | None = None
    max_blocks: PositiveInt | None = None
    min_params: NonNegativeInt | None = None
    max_params: PositiveInt | None = None
    has: tuple[Feature, ...] = ()
    lacks: tuple[Feature, ...] = ()

    @model_validator(mode="after")
    def _possible(self) -> Self:
        for what, least, most in (
            ("blocks", self.min_blocks, self.max_blocks),
            ("params", self.min_params, self.max_params),
        ):
            if least is not None and most is not None and least > most:
                raise ValueError(f"min_{what} is {least}, above max_{what} {most}: no blueprint fits")
        if both := sorted(set(self.has) & set(self.lacks)):
            raise ValueError(f"has and lacks both name {', '.join(both)}: no blueprint fits")
        return self


def _target_tag(value: Any) -> str:
    return TAG + ("position" if isinstance(value, int) else "word")


class Action(Frozen):
    """One step of a template: an operator, where it acts, and the fields that what it makes shall have.

    target: `any` place where it applies, the `first` or the `last` of them in order of depth, the `same` block in which
    the action before acted, or a block by its position, from the end where negative. set: fields of the one part that
    the operator put in or changed.
    """

    operator: str
    target: Annotated[
        Annotated[Literal["any", "first", "last", "same"], Tag(TAG + "word")] | Annotated[int, Tag(TAG + "position")],
        Discriminator(_target_tag),
    ] = "any"
    set: dict[str, JsonValue] = {}


class Template(Frozen):
    """Several edits that are made together or not at all. weight: how often it is drawn, relative to the others."""

    name: Annotated[str, Field(min_length=1, max_length=60)]
    weight: PositiveWeight = 1.0
    conditions: Conditions = Conditions()
    actions: Annotated[tuple[Action, ...], Field(min_length=1, max_length=MOST_ACTIONS)]

    @model_validator(mode="after")
    def _same_as_what(self) -> Self:
        if self.actions[0].target == "same":
            raise ValueError("actions[0].target: got 'same', but there is no action before it")
        return self


class TemplateFile(Frozen):
    """A file of templates."""

    templates: Annotated[tuple[Template, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _names(self) -> Self:
        names = [template.name for template in self.templates]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"templates share the name {', '.join(repeated)}, expected every name once")
        return self
