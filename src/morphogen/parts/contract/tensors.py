"""A part's tensors as data: named, factored axes, the shapes these give, and how entries start. No torch."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

#: A dimension's name, or several names when it is a product (slowest first).
Axis = str | tuple[str, ...]
#: One entry per tensor dimension.
Axes = tuple[Axis, ...]


@dataclass(frozen=True)
class Init:
    """How fresh entries are drawn: the name of an initialiser in `contract.initial`, and its arguments."""

    name: str
    args: tuple[float | str, ...] = ()


NORMAL = Init("fan_in_normal", (1.0,))
ZEROS = Init("zeros")
ONES = Init("ones")


def stored(path: str, tensor: str) -> Init:
    """Starts as a tensor of a safetensors file, which is read when the entries are drawn and not before."""
    return Init("stored", (path, tensor))


@dataclass(frozen=True)
class Tensor:
    """One tensor that a part declares.

    axes: factored. init: how fresh entries start. fresh_zero: axes along which new entries of an inherited tensor start
    at zero, so that a new unit changes nothing. writes: whether its `dim` axis is added to the residual stream; it then
    starts at the gain of output projections, and at zero where the part is put into a trained model. trained: whether
    the optimizer may change it; one that it may not is a buffer of the module, or a parameter that gets no gradient.
    """

    axes: Axes
    init: Init = NORMAL
    fresh_zero: tuple[str, ...] = ()
    writes: bool = False
    trained: bool = True


@dataclass(frozen=True, kw_only=True)
class Spec(Tensor):
    """A tensor with the shape that its axes give in a model."""

    shape: tuple[int, ...]


def flat(axes: Axes) -> Iterator[tuple[str, ...]]:
    """Each dimension's factors, slowest first."""
    for axis in axes:
        yield (axis,) if isinstance(axis, str) else axis


def shape_of(axes: Axes, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """The tensor shape that factored axes give."""
    return tuple(math.prod(sizes[name] for name in factors) for factors in flat(axes))
