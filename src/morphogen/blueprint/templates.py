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
from morphogen.parts.contract.part import COUNTED, REGISTRY
from morphogen.parts.contract.registry import TAG

#: A template of more edits would leave nothing of the parent.
MOST_ACTIONS = 32


def features() -> frozenset[str]:
    """What a blueprint may have or lack: a slot, a kind, a trait, a recurrence."""
    places = [place for place in REGISTRY if place[0] != "stem"]
    return frozenset({name for place in places for name in place} | {*COUNTED, "recurrence"})


def _feature(name: str) -> str:
    if name not in features():
        raise ValueError(unknown("feature", name, features()).removeprefix("feature: "))
    return name


Feature = Annotated[str, AfterValidator(_feature)]


class Conditions(Frozen):
    """What must hold of a blueprint for a template to apply; bounds are inclusive, what is not given holds."""

    min_blocks: NonNegativeInt | None = None
    """Fewest blocks; null: any number."""
    max_blocks: PositiveInt | None = None
    """Most blocks; null: any number."""
    min_params: NonNegativeInt | None = None
    """Fewest trainable parameters; null: any number."""
    max_params: PositiveInt | None = None
    """Most trainable parameters; null: any number."""
    has: tuple[Feature, ...] = ()
    """Slots (`attn`, `ssm`, `ffn`, `extra`), kinds (`GQA`, `moe`, ...) or what gates count (`moe`, `selector`,
    `memory`, `recurrence`), each somewhere in it."""
    lacks: tuple[Feature, ...] = ()
    """The same, nowhere in it."""

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
    """One step of a template: an operator, where it acts, and the fields that what it makes shall have."""

    operator: str
    """Any operator but `template_mutation`."""
    target: Annotated[
        Annotated[Literal["any", "first", "last", "same"], Tag(TAG + "word")] | Annotated[int, Tag(TAG + "position")],
        Discriminator(_target_tag),
    ] = "any"
    """`any` place where it applies, the `first` or `last` of them in order of depth, the `same` block in which the
    action before acted, or a block by its position, from the end where negative."""
    set: dict[str, JsonValue] = {}
    """Fields of the one part that the operator put in or changed."""


class Template(Frozen):
    """Several edits that are made together or not at all."""

    name: Annotated[str, Field(min_length=1, max_length=60)]
    """What it is called in edits; every name once."""
    weight: PositiveWeight = 1.0
    """How often it is drawn, relative to the others."""
    conditions: Conditions = Conditions()
    """What must hold of a blueprint for it to apply."""
    actions: Annotated[tuple[Action, ...], Field(min_length=1, max_length=MOST_ACTIONS)]
    """Its edits, first to last."""

    @model_validator(mode="after")
    def _same_as_what(self) -> Self:
        if self.actions[0].target == "same":
            raise ValueError("actions[0].target: got 'same', but there is no action before it")
        return self


class TemplateFile(Frozen):
    """A file of templates."""

    templates: Annotated[tuple[Template, ...], Field(min_length=1)]
    """All of them."""

    @model_validator(mode="after")
    def _names(self) -> Self:
        names = [template.name for template in self.templates]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"templates share the name {', '.join(repeated)}, expected every name once")
        return self
