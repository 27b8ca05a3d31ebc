"""A part's tensors as data: named, factored axes, the shapes these give, and how entries start. No torch."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from morphogen.errors import InputError, unknown

#: A dimension's name, or several names when it is a product (slowest first).
Axis = str | tuple[str, ...]
#: One entry per tensor dimension.
Axes = tuple[Axis, ...]


@dataclass(frozen=True)
class Init:
    """How fresh entries are drawn: the name of an initialiser in `contract.initial`, and its arguments."""

    name: str
    args: tuple[float | str, ...] = ()


#: Added to a norm's variance at the start.
NORM_EPS = 1e-5
NORMAL = Init("fan_in_normal", (1.0,))
ZEROS = Init("zeros")
ONES = Init("ones")


def stored(path: str, tensor: str) -> Init:
    """Starts as a tensor of a safetensors file, which is read when the entries are drawn and not before."""
    return Init("stored", (path, tensor))


def donated(model: str, layer: int, tensor: str) -> Init:
    """Starts as a tensor of a layer of another model, likewise. model: its folder, or its name on the hub."""
    return Init("donated", (model, layer, tensor))


@dataclass(frozen=True)
class Tensor:
    """One tensor that a part declares.

    axes: factored. init: how fresh entries start. fresh_zero: axes along which new entries of an inherited tensor start
    at zero, so that a new unit changes nothing. writes: whether its `dim` axis is added to the residual stream; it then
    starts at the gain of output projections, and at zero where the part is put into a trained model. trained: whether
    the optimizer may change it; one that it may not is a buffer of the module, or a parameter that gets no gradient.
    rate: what its learning rate is, relative to that of the training. steady: whether it reads as many numbers in a
    wide model as in a narrow one (taps of a convolution, another model's channels, a row of a table), for which its
    rate need not fall.
    """

    axes: Axes
    init: Init = NORMAL
    fresh_zero: tuple[str, ...] = ()
    writes: bool = False
    trained: bool = True
    rate: float = 1.0
    steady: bool = False

    @property
    def borrowed(self) -> bool:
        """Whether it is always as another model has it: a checkpoint leaves it out, and names that model."""
        return not self.trained and self.init.name == "donated"


@dataclass(frozen=True, kw_only=True)
class Spec(Tensor):
    """A tensor with the shape that its axes give in a model."""

    shape: tuple[int, ...]


def flat(axes: Axes) -> Iterator[tuple[str, ...]]:
    """Each dimension's factors, slowest first."""
    for axis in axes:
        yield (axis,) if isinstance(axis, str) else axis


def decays(spec: Spec) -> bool:
    """Whether weight decay applies: matrices, but no vectors (norms, scales, biases) and nothing indexed by token."""
    return len(spec.shape) >= 2 and not any("vocab" in factors for factors in flat(spec.axes))


def moments(spec: Spec, optimizer: str) -> int:
    """How many numbers `train.optimizer.name` keeps for every entry: AdamW two, Lion one, Muon one of the decayed
    matrices, and of the rest, which it leaves to AdamW, two."""
    return 2 if optimizer == "adamw" or (optimizer == "muon" and not (decays(spec) and len(spec.shape) == 2)) else 1


def shape_of(axes: Axes, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """The tensor shape that factored axes give. InputError where one has no size."""
    try:
        return tuple(math.prod(sizes[name] for name in factors) for factors in flat(axes))
    except KeyError as error:
        raise InputError(unknown("axis without a size", error.args[0], sizes)) from None


def specified(
    norms: Mapping[str, tuple[Axis, str]], tensors: Mapping[str, Tensor], sizes: Mapping[str, int], output_gain: float
) -> dict[str, Spec]:
    """The tensors of norms by what each runs over and its kind, then others, with their shapes.

    output_gain: of fresh tensors that write into the residual stream.
    """
    table: dict[str, Tensor] = {}
    for name, (axis, kind) in norms.items():
        table[f"{name}.weight"] = Tensor((axis,), ONES)
        if kind == "layernorm":
            table[f"{name}.bias"] = Tensor((axis,), ZEROS)
        table[f"{name}.eps"] = Tensor((), Init("constant", (NORM_EPS,)), trained=False)
    for name, tensor in tensors.items():
        plain = not tensor.writes or tensor.init != NORMAL
        table[name] = tensor if plain else replace(tensor, init=Init("fan_in_normal", (output_gain,)))
    return {name: Spec(**vars(tensor), shape=shape_of(tensor.axes, sizes)) for name, tensor in table.items()}
