"""Figures: what every number of a candidate is, declared once, and what an experiment may say of them.

Whoever measures, times or computes a number declares it where it is made (`declare`); whoever compares numbers reads
what was declared (`find`, `direction`). An experiment may bound figures, cut them into bins, and make others of them.
"""

import importlib
import math
import pkgutil
import re
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from morphogen import plugins
from morphogen.candidate import Record
from morphogen.errors import InputError

Direction = Literal["min", "max"]
Better = Literal["min", "max", "none"]
Sort = Literal["metric", "timed", "cost", "search"]

#: Packages and modules of ours that declare figures when they are imported.
HOMES = ("morphogen.metrics", "morphogen.parts", "morphogen.cost", "morphogen.search.novelty")

#: What a figure can need of an experiment, in words. Anything else is a kind of part, or a plug-in's class.
NEEDS: Mapping[str, str] = {
    "probe": "a probe among the data's shards, such as {source: 'probe:passkey'}",
    "mqar": "the recall probe among the data's shards: {source: 'probe:mqar'}",
    "math": "the probe of sums among the data's shards: {source: 'probe:math'}",
    "weights": "weights to start from: a parent's, or of train.init_checkpoint",
    "recurrence": "a recurrence in the model",
    "moe": "a mixture of experts in the model, an ffn of kind moe",
    "foreign": "layers of other models in the model, an extra of kind foreign, with a router",
    "gpus": "candidates that are placed on GPUs, by --device cuda and --workers",
}


@dataclass(frozen=True)
class Figure:
    """What one number of a candidate is.

    Attributes:
        name: As in reports. In it `<shard>` stands for the name of any measured text, `<probe>` for that of any probe,
            and `<n>`, `<length>` and `<depth>` for any whole number, so that one declaration holds for a family.
        unit: Of the number.
        better: Which way it is; `none` where neither is.
        sort: `metric` is measured of a trained model and repeats; `timed` depends on the machine's clock or memory;
            `cost` follows from the blueprint; `search` is of a candidate among others, and a training from scratch has
            none.
        summary: What it says, in a sentence.
        needs: Of the root's experiment, as in `NEEDS`; without it the figure is not there.
        score: What a weight may call it besides its name.
        column: Whether tables show it beside the objectives.
        chance: The figure that says what a model without the ability gets; a value that is not shown to be better
            counts as that one. Of a family it may name the probe too.
    """

    name: str
    unit: str
    better: Better
    sort: Sort
    summary: str
    needs: tuple[str, ...] = ()
    score: str = ""
    column: bool = False
    chance: str = ""

    def covers(self, name: str) -> bool:
        """Whether `name` is this figure's, or one of its family."""
        return name == self.name or ("<" in self.name and _pattern(self.name).fullmatch(name) is not None)

    def chance_of(self, name: str) -> str:
        """The figure of chance of one of the family; empty where there is none."""
        found = _pattern(self.name).fullmatch(name) if "<probe>" in self.chance else None
        return self.chance if found is None else self.chance.replace("<probe>", found[1])


@cache
def _pattern(name: str) -> re.Pattern[str]:
    return re.compile(re.sub("<(shard|probe)>", "(.+)", re.sub("<(n|length|depth)>", "([0-9]+)", re.escape(name))))


_DECLARED: dict[str, Figure] = {}


def declare(*figures: Figure) -> None:
    """Makes figures known.

    Args:
        figures: What they are.

    Raises:
        RuntimeError: Another figure has the name of one.
    """
    for figure in figures:
        if _DECLARED.setdefault(figure.name, figure) != figure:
            raise RuntimeError(f"two figures are called {figure.name}; give yours another name")


def known() -> Mapping[str, Figure]:
    """Every figure by name, with those of installed packages that can be imported."""
    import_homes()
    if not plugins.only_looked_at():
        _import_installed(tuple(sys.path))
    return _DECLARED


@cache
def import_homes() -> None:
    """Declares all of ours."""
    for home in HOMES:
        module = importlib.import_module(home)
        for inner in pkgutil.iter_modules(vars(module).get("__path__", ())):
            importlib.import_module(f"{home}.{inner.name}")


@lru_cache(maxsize=1)
def _import_installed(path: tuple[str, ...]) -> None:
    for name in plugins.names(plugins.FIGURES):
        with suppress(InputError):
            plugins.find(plugins.FIGURES, name)


def find(name: str) -> Figure | None:
    """Finds what was declared of a figure.

    Args:
        name: As in reports.

    Returns:
        The figure of that name, or the family that it is of (of two families the one that says more of the name); None
        where nobody declared one.
    """
    if name in _DECLARED:
        return _DECLARED[name]
    families = [figure for figure in known().values() if figure.covers(name)]
    return max(families, key=lambda figure: len(re.sub("<[a-z]+>", "", figure.name)), default=None)


def figure_called(name: str) -> str:
    """The figure's own name, of that or of what a weight may call it; `-` and `_` are the same."""
    key = name.replace("-", "_")
    if find(key) is not None:
        return key
    return next((figure.name for figure in known().values() if figure.score == key), name)


#: Which way figures are better where an experiment says it; None for one of its own of which it does not.
Said = Mapping[str, Direction | None]


def direction(name: str, said: Said, place: str) -> Direction:
    """Which way a figure is better.

    Args:
        name: As in reports.
        said: What an experiment says of its figures; that comes before what was declared.
        place: Where it is asked for, for the message.

    Raises:
        InputError: Neither the experiment nor a declaration tells.
    """
    if name in said:
        better, why = said[name], "it is a composite metric without `better`"
    elif (figure := find(name)) is None:
        better, why = None, "nobody declared this figure"
    else:
        better, why = None if figure.better == "none" else figure.better, "its declaration leaves that open"
    if better is None:
        made = f"{{op: weighted_sum, of: {{{name}: 1.0}}, better: max}}"
        how = "say `better: min` or `better: max` there" if name in said else f"make one that says it, such as {made}"
        raise InputError(f"{place}: which way is {name!r} better? {why}; {how} (evolution.composite_metrics)")
    return better


class Noise(Record):
    """Which differences of measured figures count."""

    model_config = ConfigDict(allow_inf_nan=False)

    z: Annotated[float, Field(ge=0.0, le=100.0)] = 1.96
    """A difference within so many standard errors is a tie; 0: every difference counts."""
    training: Annotated[float, Field(ge=0.0, le=1.0)] = 0.001
    """Standard deviation of such a figure between trainings that differ by luck alone, as a share of its value."""


#: Of a linear axis, the last bin.
FARTHEST = 2.0**62


class Bounds(Record):
    """Bounds on one figure, both included; at least one of them."""

    model_config = ConfigDict(allow_inf_nan=False)

    min: float | None = None
    """The least allowed; null: no bound."""
    max: float | None = None
    """The most allowed; null: no bound."""

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        if self.min is None and self.max is None:
            raise ValueError("neither min nor max is set")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min:g} is above max {self.max:g}")
        return self

    def violation(self, value: float, within: float = 0.0) -> float:
        """How far `value` is outside, in units of the bound's size (of 1 where that is zero); 0 inside, and where it is
        outside by no more than `within`, which its error allows. Whoever is further outside has no use of an error."""
        below = 0.0 if self.min is None or value >= self.min - within else (self.min - value) / (abs(self.min) or 1.0)
        above = 0.0 if self.max is None or value <= self.max + within else (value - self.max) / (abs(self.max) or 1.0)
        return max(below, above)

    def complaint(self, name: str, value: float, place: str, within: float = 0.0) -> str:
        """What is wrong with `value`, as in "params is 12, above rung0_thresholds.params 10"; empty when nothing is, or
        no more than its error allows."""
        if self.min is not None and value < self.min - within:
            return f"{name} is {value:.12g}, below {place} {self.min:.12g}"
        if self.max is not None and value > self.max + within:
            return f"{name} is {value:.12g}, above {place} {self.max:.12g}"
        return ""


class Descriptor(Record):
    """One axis of a grid of behaviours: the figure it is named after, cut into bins."""

    model_config = ConfigDict(allow_inf_nan=False)

    scale: Literal["linear", "log"] = "log"
    """Whether bins are even in the figure itself or in its logarithm."""
    width: float = Field(default=1.5, gt=0.0)
    """Of a bin, in the figure's own units (`linear`), or the ratio of its ends (`log`), above 1."""

    @model_validator(mode="after")
    def _has_ends(self) -> Self:
        if self.scale == "log" and self.width <= 1.0:
            raise ValueError(f"width is {self.width:g}, expected more than 1 with log: the ratio of a bin's ends")
        return self

    def bin(self, value: float) -> int:
        """The bin that `value` falls into. On a `log` axis everything up to 0 shares one, on a `linear` axis all that
        is too far from 0 to be counted."""
        if self.scale == "linear":
            return math.floor(min(max(value / self.width, -FARTHEST), FARTHEST))
        return math.floor(math.log(value) / math.log(self.width)) if value > 0.0 else -(2**31)


class _Composite(Record):
    """A figure made of others."""

    model_config = ConfigDict(allow_inf_nan=False)

    better: Direction | None = None
    """Which way it is; null where an objective says so or nothing compares it."""


class Ratio(_Composite):
    """The first figure divided by the second; not a number where the second is 0."""

    op: Literal["ratio"]
    """Which way figures are put together."""
    of: tuple[str, str]
    """Names of the figure that is divided, and of its divisor."""
    epsilon: Annotated[float, Field(ge=0.0)] = 0.0
    """A divisor nearer to 0 than this counts as this far from it, on its own side; 0 is on the positive one."""

    def value(self, figures: Mapping[str, float]) -> float:
        """Of figures that hold every name in `names`."""
        above, below = (figures[name] for name in self.of)
        if abs(below) < self.epsilon:
            below = math.copysign(self.epsilon, below or 1.0)
        return above / below if below else math.nan

    @property
    def names(self) -> tuple[str, ...]:
        """The figures it is made of."""
        return self.of


class Product(_Composite):
    """Figures multiplied."""

    op: Literal["product"]
    """Which way figures are put together."""
    of: Annotated[tuple[str, ...], Field(min_length=2)]
    """Names of the figures that are multiplied."""

    def value(self, figures: Mapping[str, float]) -> float:
        """Of figures that hold every name in `names`."""
        return math.prod(figures[name] for name in self.of)

    @property
    def names(self) -> tuple[str, ...]:
        """The figures it is made of."""
        return self.of


class WeightedSum(_Composite):
    """Figures times their weights, added up."""

    op: Literal["weighted_sum"]
    """Which way figures are put together."""
    of: Annotated[dict[str, float], Field(min_length=1)]
    """Figure to weight."""

    def value(self, figures: Mapping[str, float]) -> float:
        """Of figures that hold every name in `names`."""
        return sum(weight * figures[name] for name, weight in self.of.items())

    @property
    def names(self) -> tuple[str, ...]:
        """The figures it is made of."""
        return tuple(self.of)


Composite = Annotated[Ratio | Product | WeightedSum, Field(discriminator="op")]
