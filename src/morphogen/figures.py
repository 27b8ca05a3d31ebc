"""What an experiment may say of figures, measured or computed: bounds, bins, and figures made of others."""

import math
from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from morphogen.candidate import Record

#: Of a linear axis, the last bin.
FARTHEST = 2.0**62


class Bounds(Record):
    """Bounds on one figure, both included; at least one of them."""

    model_config = ConfigDict(allow_inf_nan=False)

    min: float | None = None
    max: float | None = None

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        if self.min is None and self.max is None:
            raise ValueError("neither min nor max is set")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min:g} is above max {self.max:g}")
        return self

    def violation(self, value: float) -> float:
        """How far `value` is outside, in units of the bound's size (of 1 where that is zero); 0 inside."""
        below = 0.0 if self.min is None else (self.min - value) / (abs(self.min) or 1.0)
        above = 0.0 if self.max is None else (value - self.max) / (abs(self.max) or 1.0)
        return max(0.0, below, above)

    def complaint(self, name: str, value: float, place: str) -> str:
        """What is wrong with `value`, as in "params is 12, above rung0_thresholds.params 10"; empty when nothing is."""
        if self.min is not None and value < self.min:
            return f"{name} is {value:.12g}, below {place} {self.min:.12g}"
        if self.max is not None and value > self.max:
            return f"{name} is {value:.12g}, above {place} {self.max:.12g}"
        return ""


class Descriptor(Record):
    """One axis of a grid of behaviours: the figure it is named after, cut into bins.

    width: of a bin, in the figure's own units (`linear`), or the ratio of its ends (`log`), above 1.
    """

    model_config = ConfigDict(allow_inf_nan=False)

    scale: Literal["linear", "log"] = "log"
    width: float = Field(default=1.5, gt=0.0)

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


class Ratio(Record):
    """The first figure divided by the second; not a number where the second is 0."""

    op: Literal["ratio"]
    of: tuple[str, str]

    def value(self, figures: Mapping[str, float]) -> float:
        """Of figures that hold every name in `names`."""
        above, below = (figures[name] for name in self.of)
        return above / below if below else math.nan

    @property
    def names(self) -> tuple[str, ...]:
        """The figures it is made of."""
        return self.of


class Product(Record):
    """Figures multiplied."""

    op: Literal["product"]
    of: Annotated[tuple[str, ...], Field(min_length=2)]

    def value(self, figures: Mapping[str, float]) -> float:
        """Of figures that hold every name in `names`."""
        return math.prod(figures[name] for name in self.of)

    @property
    def names(self) -> tuple[str, ...]:
        """The figures it is made of."""
        return self.of


class WeightedSum(Record):
    """Figures times their weights, added up."""

    op: Literal["weighted_sum"]
    of: Annotated[dict[str, float], Field(min_length=1)]

    def value(self, figures: Mapping[str, float]) -> float:
        """Of figures that hold every name in `names`."""
        return sum(weight * figures[name] for name, weight in self.of.items())

    @property
    def names(self) -> tuple[str, ...]:
        """The figures it is made of."""
        return tuple(self.of)


Composite = Annotated[Ratio | Product | WeightedSum, Field(discriminator="op")]
