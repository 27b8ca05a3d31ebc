"""Parts of other packages: a plug-in is a class, named in a blueprint by its entry point or as `module:Class`.

B batch, T tokens, D model dim
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal, Self

import numpy as np
from pydantic import JsonValue, PrivateAttr, ValidationError, field_validator, model_validator

from morphogen import plugins
from morphogen.errors import InputError
from morphogen.figures import Figure
from morphogen.parts.contract.alignment import Alignment
from morphogen.parts.contract.operator import BlockT, block_operator, operator, pick
from morphogen.parts.contract.part import Context, Cost, NormKind, Part
from morphogen.parts.contract.registry import PartIn
from morphogen.parts.contract.tensors import Axis, Tensor
from morphogen.parts.contract.widths import Width

if TYPE_CHECKING:
    from torch import nn


class Plugin(Part):
    """What a plug-in inherits from: a residual branch in the slot `extra`, described as every other part is.

    A subclass declares its fields, each with a default, and as for `Part`: `tensors`, `sizes`, `neutral_fields`,
    `build` (a `contract.branch.Branch`) and `cost`. Nothing else is needed: it is initialised, inherited, widened and
    crossed over from these. It must be causal; the contract test in `morphogen.testing` says what else. Tensors
    that write are zero at insertion, so a plug-in enters a trained model without a jump.

    In a blueprint it is `{kind: custom, name: mixer, params: {width: 64}}`, where the package `mine` has in its
    pyproject.toml

        [project.entry-points."morphogen.parts"]
        mixer = "mine.parts:Mixer"

    and then evolution puts it in by itself (`insert_custom_module`). Without a package its name is "mine.parts:Mixer",
    and that is imported only where the user allows code (`--allow-code`, `morphogen.allow_code`).
    """

    slot: ClassVar = "extra"
    #: Whether `tune` leaves the function as it is.
    tune_preserves: ClassVar[bool] = False

    def tune(self, ctx: Context, rng: np.random.Generator) -> Self | None:
        """A changed copy, for evolution; None when there is nothing to change."""
        return None


class Custom(Part):
    """A plug-in with its parameters."""

    slot: ClassVar = "extra"

    kind: Literal["custom"] = "custom"
    name: str
    """Of an entry point, or `module:Class` where the user allows code."""
    params: dict[str, JsonValue] = {}
    """Fields of the plug-in, each with its default when left out."""
    _plugin: Plugin | None = PrivateAttr(None)

    @field_validator("name")
    @classmethod
    def _allowed(cls, name: str) -> str:
        if not plugins.only_looked_at():
            try:
                plugins.check_allowed(plugins.PARTS, name)
            except InputError as error:
                raise ValueError(str(error)) from None
        return name

    @model_validator(mode="after")
    def _resolved(self) -> Self:
        if not plugins.only_looked_at():
            try:
                self._plugin = self._found()
            except InputError as error:
                raise ValueError(str(error)) from None
        return self

    @property
    def plugin(self) -> Plugin:
        """The plug-in, its parameters read. InputError where it was only looked at, and cannot be had."""
        return self._found() if self._plugin is None else self._plugin

    def _found(self) -> Plugin:
        try:
            return find_plugin(self.name).model_validate(self.params)
        except ValidationError as error:
            found = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
            raise InputError(f"params of {self.name}: {found}") from None

    @property
    def pointwise(self) -> bool:
        """The plug-in's."""
        return self.plugin.pointwise

    def tensors(self, ctx: Context) -> dict[str, Tensor]:
        """The plug-in's."""
        return self.plugin.tensors(ctx)

    def kept(self, ctx: Context) -> float:
        """The plug-in's."""
        return self.plugin.kept(ctx)

    def recorded(self) -> tuple[Figure, ...]:
        """The plug-in's."""
        return self.plugin.recorded()

    def neutral(self) -> bool:
        """The plug-in's."""
        return self.plugin.neutral()

    def counts_as(self) -> frozenset[str]:
        """The plug-in's."""
        return self.plugin.counts_as()

    def within(self, ctx: Context) -> Self | None:
        """With the plug-in's."""
        plain = self.plugin.within(ctx)
        read = None if plain is None else plain.model_dump(mode="json", exclude=set(plain.inert()))
        return None if read is None else self.model_copy(update={"params": read})

    def norms(self, ctx: Context) -> Mapping[str, tuple[Axis, NormKind]]:
        """The plug-in's."""
        return self.plugin.norms(ctx)

    def resized(self, target: Width, factor: float, ctx: Context) -> Self | None:
        """As the plug-in can be."""
        other = self.plugin.resized(target, factor, ctx)
        return None if other is None else self.evolve(params=other.model_dump(mode="json"))

    def sizes(self, ctx: Context) -> dict[str, int]:
        """The plug-in's."""
        return self.plugin.sizes(ctx)

    def build(self, ctx: Context) -> "nn.Module":
        """The plug-in's module, (B, T, D) to (B, T, D)."""
        return self.plugin.build(ctx)

    def cost(self, ctx: Context) -> Cost:
        """The plug-in's."""
        return self.plugin.cost(ctx)

    def align(self, parent: Part, ctx: Context, parent_ctx: Context) -> Alignment | None:
        """As the plug-in aligns; nothing is carried from another plug-in."""
        if not isinstance(parent, Custom):
            return None
        aligned = self.plugin.align(parent.plugin, ctx, parent_ctx)
        if aligned is None:
            note = f"plug-in {parent.name} became {self.name}"
            return Alignment(sources=dict.fromkeys(self.specs(ctx)), exact=False, note=note)
        return aligned


def find_plugin(name: str) -> type[Plugin]:
    """The plug-in class of an entry point or `module:Class`. InputError where there is none, or it may not be run."""
    found = plugins.find(plugins.PARTS, name)
    if not (isinstance(found, type) and issubclass(found, Plugin)):
        raise InputError(f"plug-in {name}: got {found!r}, expected a class that inherits from morphogen's Plugin")
    if "kind" in found.model_fields:
        raise InputError(f"plug-in {name}: has a kind of its own; it is {{kind: {name}}}")
    return found


def ready_made() -> list["Custom"]:
    """The installed plug-ins with their defaults, in order; those that cannot be imported or have none are left out."""
    found = []
    for name in plugins.names(plugins.PARTS):
        try:
            found.append(Custom(name=name))
        except ValidationError:
            continue
    return found


def offered_extras(ctx: Context) -> list[Part]:
    """Extras that no operator of morphogen's own puts in: plug-ins, and kinds, whoever wrote them."""
    return [*ready_made(), *PartIn("extra").newcomers(ctx)]


def _named(extra: Part) -> tuple[str, str]:
    """What extras of a block are told apart by."""
    return extra.label, extra.name if isinstance(extra, Custom) else ""


# --------------------------------------------------------------------------------------------------- operators


@block_operator(preserves=True)
def insert_custom_module(block: BlockT, ctx: Context, rng: np.random.Generator) -> BlockT | None:
    """An extra of an installed package, or of a kind without an operator of its own; its output starts at zero."""
    present = {_named(extra) for extra in block.extras}
    new = pick(rng, [extra for extra in offered_extras(ctx) if _named(extra) not in present])
    return None if new is None else block.evolve(extras=(*block.extras, new))


@operator(Custom, preserves=lambda part, ctx: part.plugin.tune_preserves)
def tune_custom_module(part: Custom, ctx: Context, rng: np.random.Generator) -> Custom | None:
    """What the plug-in itself offers as a change."""
    tuned = part.plugin.tune(ctx, rng)
    return None if tuned is None else part.evolve(params=tuned.model_dump(mode="json"))
