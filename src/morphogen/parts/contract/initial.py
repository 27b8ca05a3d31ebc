"""Initialisers by name, so that a plan can say as plain data how fresh entries are drawn."""

import math
import zlib
from collections.abc import Callable

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from morphogen.errors import InputError, unknown
from morphogen.parts.contract.tensors import Init

Initialiser = Callable[..., Tensor]


def fan_in_normal(shape: tuple[int, ...], generator: torch.Generator, gain: float) -> Tensor:
    """Normal with standard deviation gain / √fan_in; the last dimension is the input's."""
    return torch.randn(shape, generator=generator).mul_(gain / math.sqrt(shape[-1]))


def normal(shape: tuple[int, ...], generator: torch.Generator, std: float) -> Tensor:
    """Normal with a given standard deviation."""
    return torch.randn(shape, generator=generator).mul_(std)


def zeros(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """All zero."""
    return torch.zeros(shape)


def ones(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """All one."""
    return torch.ones(shape)


def constant(shape: tuple[int, ...], generator: torch.Generator, value: float) -> Tensor:
    """One value."""
    return torch.full(shape, value)


def vector(shape: tuple[int, ...], generator: torch.Generator, *values: float) -> Tensor:
    """The given values, in order."""
    return torch.tensor(values).reshape(shape)


def log_uniform(shape: tuple[int, ...], generator: torch.Generator, low: float, high: float) -> Tensor:
    """The logarithms of values uniform in [low, high)."""
    return torch.log(low + (high - low) * torch.rand(shape, generator=generator))


def log_count(shape: tuple[int, ...], generator: torch.Generator, count: float) -> Tensor:
    """The logarithms of 1 to `count`, each for an equal share of the entries, in order. S4D-real, 2206.11893."""
    steps = torch.arange(1, int(count) + 1, dtype=torch.float32).log()
    return steps.repeat_interleave(math.prod(shape) // int(count)).reshape(shape)


def softplus_inverse(shape: tuple[int, ...], generator: torch.Generator, low: float, high: float) -> Tensor:
    """What a softplus turns into values log-uniform in [low, high)."""
    value = torch.exp(math.log(low) + math.log(high / low) * torch.rand(shape, generator=generator))
    return value + torch.log(-torch.expm1(-value))


def stored(shape: tuple[int, ...], generator: torch.Generator, path: str, name: str) -> Tensor:
    """The tensor called `name` in a safetensors file; InputError where there is none of this shape."""
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            if name not in names:
                raise InputError(unknown(f"{path}: tensor", name, names))
            found = tuple(file.get_slice(name).get_shape())
            if found != shape:
                raise InputError(f"{path}: {name} has shape {found}, expected {shape}")
            tensor: Tensor = file.get_tensor(name)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: cannot be read as safetensors ({error})") from None
    return tensor.float()


def donated(shape: tuple[int, ...], generator: torch.Generator, model: str, layer: int, name: str) -> Tensor:
    """A tensor of a layer of another model; InputError where that has none of this shape."""
    from morphogen.parts.foreign.donors.opened import tensor_of  # brings transformers, which nothing else here needs

    tensor = tensor_of(model, int(layer), name)
    if tuple(tensor.shape) != shape:
        raise InputError(f"{model}: {name} of layer {layer} has shape {tuple(tensor.shape)}, expected {shape}")
    return tensor.float()


def semi_orthogonal(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Rows or columns of unit length, whichever are fewer, at right angles to each other; the identity where there are
    as many of both. What is mapped so keeps its length, or as much as fits. Ref: arXiv 1312.6120."""
    rows, columns = shape
    if rows == columns:
        return torch.eye(rows)
    tall = torch.randn(max(shape), min(shape), generator=generator)
    q, r = torch.linalg.qr(tall)
    q *= torch.sign(torch.diagonal(r))
    made: Tensor = q if rows > columns else q.T.contiguous()
    return made


INITIALISERS: dict[str, Initialiser] = {
    f.__name__: f
    for f in (
        *(fan_in_normal, normal, zeros, ones, constant, vector, log_uniform, log_count, softplus_inverse),
        *(stored, donated, semi_orthogonal),
    )
}


def stream(seed: int, gene: str, name: str) -> torch.Generator:
    """The generator of one tensor's fresh entries. All of the seed counts: torch's own reads its lower 32 bits only."""
    return torch.Generator().manual_seed(zlib.crc32(f"{seed}/{gene}/{name}".encode()))


#: Initialisers that draw every entry by its position.
BY_POSITION = frozenset(f.__name__ for f in (log_count, vector, stored, donated, semi_orthogonal))


def draw_some(init: Init, shape: tuple[int, ...], some: tuple[int, ...], generator: torch.Generator) -> Tensor | None:
    """As many fresh fp32 entries as shape `some` has, of a tensor of `shape`; None where entries differ by position."""
    if init.name in BY_POSITION:
        return None
    if init.name == fan_in_normal.__name__:
        return normal(some, generator, float(init.args[0]) / math.sqrt(shape[-1]))
    return draw(init, some, generator)


def draw(init: Init, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """A fresh fp32 tensor."""
    return INITIALISERS[init.name](shape, generator, *init.args)
