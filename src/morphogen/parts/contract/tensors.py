"""A part's tensors as data: their named, factored axes, the shapes these give, and how fresh entries start."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

#: One entry per tensor dimension: an axis name, or several when the dimension is a product (slowest first).
Axes = tuple[str | tuple[str, ...], ...]


@dataclass(frozen=True)
class Init:
    """How fresh entries are drawn: the name of an initialiser in `contract.initial`, and its arguments."""

    name: str
    args: tuple[float, ...] = ()


NORMAL = Init("fan_in_normal", (1.0,))
ZEROS = Init("zeros")
ONES = Init("ones")


@dataclass(frozen=True)
class Spec:
    """One tensor of a part: its factored axes, the shape they give, how it starts, whether training changes it."""

    axes: Axes
    shape: tuple[int, ...]
    init: Init
    buffer: bool = False


def flat(axes: Axes) -> Iterator[tuple[str, ...]]:
    """Each dimension's factors, slowest first."""
    for axis in axes:
        yield (axis,) if isinstance(axis, str) else axis


def shape_of(axes: Axes, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """The tensor shape that factored axes give."""
    return tuple(math.prod(sizes[name] for name in factors) for factors in flat(axes))
