"""Parts of other packages: a plug-in is a class, named in a blueprint by its entry point or as `module:Class`.

B batch, T tokens, D model dim
"""

import importlib
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, ClassVar, Literal, Self

import numpy as np
from pydantic import JsonValue, PrivateAttr, ValidationError, model_validator
from torch import nn

from morphogen.errors import unknown
from morphogen.parts.alignment import Alignment
from morphogen.parts.base import Context, Cost, NormKind, Part, block_operator, operator, pick
from morphogen.parts.tensors import Axes, Spec

#: Entry points of this group are plug-ins; an entry point's name is the plug-in's.
GROUP = "morphogen.parts"


class Plugin(Part):
    """What a plug-in inherits from: a residual branch in the slot `extra`, described as every other part is.

    A subclass declares its fields, each with a default, and as for `Part`: `axes`, `writers`, `zero_init`, `initial`,
    `buffers`, `size_fields`, `sizes`, `build` (a `parts.branch.Branch`) and `cost`. Nothing else is needed: it is
    initialised, inherited, widened and crossed over from these. It must be causal; the contract test in
    `tests/test_contract.py` says what else. Writers are zero at insertion, so a plug-in enters a trained model without
    a jump.

    In a blueprint it is `{kind: custom, name: "mine.parts:Mixer", params: {width: 64}}`; or `name: mixer`, where the
    package `mine` has in its pyproject.toml

        [project.entry-points."morphogen.parts"]
        mixer = "mine.parts:Mixer"

    and then evolution puts it in by itself (`insert_custom_module`).
    """

    slot: ClassVar = "extra"
    #: Whether `tune` leaves the function as it is.
    tune_preserves: ClassVar[bool] = False

    def tune(self, ctx: Context, rng: np.random.Generator) -> Self | None:
        """A changed copy, for evolution; None when there is nothing to change."""
        return None


class Custom(Part):
    """A plug-in with its parameters. Naming one in a blueprint imports its module: name only what you trust."""

    slot: ClassVar = "extra"

    kind: Literal["custom"] = "custom"
    name: str
    params: dict[str, JsonValue] = {}
    _plugin: Plugin = PrivateAttr()

    @model_validator(mode="after")
    def _resolved(self) -> Self:
        try:
            self._plugin = find_plugin(self.name).model_validate(self.params)
        except ValidationError as error:
            found = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
            raise ValueError(f"params of {self.name}: {found}") from None
        return self

    @property
    def plugin(self) -> Plugin:
        """The plug-in, its parameters read."""
        return self._plugin

    @property
    def axes(self) -> Mapping[str, Axes]:  # type: ignore[override]
        """The plug-in's."""
        return self._plugin.axes

    @property
    def zero_init(self) -> Mapping[str, tuple[str, ...]]:  # type: ignore[override]
        """The plug-in's."""
        return self._plugin.zero_init

    @property
    def writers(self) -> frozenset[str]:  # type: ignore[override]
        """The plug-in's."""
        return self._plugin.writers

    @property
    def pointwise(self) -> bool:  # type: ignore[override]
        """The plug-in's."""
        return self._plugin.pointwise

    @property
    def buffers(self) -> frozenset[str]:  # type: ignore[override]
        """The plug-in's."""
        return self._plugin.buffers

    def writes(self, name: str) -> bool:
        """The plug-in's."""
        return self._plugin.writes(name)

    def neutral(self) -> bool:
        """The plug-in's."""
        return self._plugin.neutral()

    def norms(self, ctx: Context) -> Mapping[str, tuple[str, NormKind]]:
        """The plug-in's."""
        return self._plugin.norms(ctx)

    def sizes(self, ctx: Context) -> dict[str, int]:
        """The plug-in's."""
        return self._plugin.sizes(ctx)

    def specs(self, ctx: Context) -> dict[str, Spec]:
        """The plug-in's."""
        return self._plugin.specs(ctx)

    def build(self, ctx: Context) -> nn.Module:
        """The plug-in's module, (B, T, D) to (B, T, D)."""
        return self._plugin.build(ctx)

    def cost(self, ctx: Context) -> Cost:
        """The plug-in's."""
        return self._plugin.cost(ctx)

    def align(self, parent: Part, ctx: Context, parent_ctx: Context) -> Alignment | None:
        """As the plug-in aligns; nothing is carried from another plug-in."""
        if not isinstance(parent, Custom):
            return None
        aligned = self._plugin.align(parent.plugin, ctx, parent_ctx)
        if aligned is None:
            note = f"plug-in {parent.name} became {self.name}"
            return Alignment(sources=dict.fromkeys(self.specs(ctx)), exact=False, note=note)
        return aligned


def find_plugin(name: str) -> type[Plugin]:
    """The plug-in class of an entry point or `module:Class`. ValueError where there is none, with the nearest name."""
    if ":" in name:
        module_name, _, class_name = name.partition(":")
        found = vars(_imported(name, module_name, importlib.import_module)).get(class_name)
    else:
        points = _installed(entry_points, tuple(sys.path))
        if not points:
            raise ValueError(f"plug-in {name}: no entry point of group {GROUP} is installed, expected module:Class")
        if name not in points:
            raise ValueError(unknown(f"plug-in of entry point group {GROUP}", name, points))
        found = _imported(name, points[name].value, lambda _: points[name].load())
    if not (isinstance(found, type) and issubclass(found, Plugin)):
        raise ValueError(f"plug-in {name}: got {found!r}, expected a class that inherits from morphogen's Plugin")
    return found


def _imported(name: str, place: str, load: Callable[[str], Any]) -> Any:
    """`load(place)`; ValueError whatever goes wrong in it, as a plug-in's module is anybody's code."""
    try:
        return load(place)
    except Exception as error:
        reason = str(error) if isinstance(error, ImportError) else f"{type(error).__name__}: {error}"
        raise ValueError(f"plug-in {name}: cannot import {place} ({reason})") from None


def installed() -> list[str]:
    """Names of the installed plug-ins, in order."""
    return sorted(_installed(entry_points, tuple(sys.path)))


def ready_made() -> list["Custom"]:
    """The installed plug-ins with their defaults, in order; those that cannot be imported or have none are left out."""
    found = []
    for name in installed():
        try:
            found.append(Custom(name=name))
        except ValidationError:
            continue
    return found


@lru_cache(maxsize=2)
def _installed(find: Callable[..., Iterable[EntryPoint]], path: tuple[str, ...]) -> dict[str, EntryPoint]:
    """What is installed on a Python path; looking takes milliseconds, and a search asks for every child."""
    return {point.name: point for point in find(group=GROUP)}


# --------------------------------------------------------------------------------------------------- operators


@block_operator(preserves=True)
def insert_custom_module(block: Any, ctx: Context, rng: np.random.Generator) -> Any:
    """An installed plug-in with its defaults; its output starts at zero."""
    present = {extra.name for extra in block.extras if isinstance(extra, Custom)}
    new = pick(rng, [plugin for plugin in ready_made() if plugin.name not in present])
    return None if new is None else block.evolve(extras=(*block.extras, new))


@operator(Custom, preserves=lambda part, ctx: part.plugin.tune_preserves)
def tune_custom_module(part: Custom, ctx: Context, rng: np.random.Generator) -> Custom | None:
    """What the plug-in itself offers as a change."""
    tuned = part.plugin.tune(ctx, rng)
    return None if tuned is None else part.evolve(params=tuned.model_dump(mode="json"))
