"""Initialisers by name, so that a plan can say as plain data how fresh entries are drawn."""

import math
import zlib
from collections.abc import Callable

import torch
from torch import Tensor

from morphogen.parts.base import Init

Initialiser = Callable[..., Tensor]


def fan_in_normal(shape: tuple[int, ...], generator: torch.Generator, gain: float) -> Tensor:
    """Normal with standard deviation gain / √fan_in; the last dimension is the input's."""
    return torch.randn(shape, generator=generator) * (gain / math.sqrt(shape[-1]))


def normal(shape: tuple[int, ...], generator: torch.Generator, std: float) -> Tensor:
    """Normal with a given standard deviation."""
    return torch.randn(shape, generator=generator) * std


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


INITIALISERS: dict[str, Initialiser] = {f.__name__: f for f in (fan_in_normal, normal, zeros, ones, constant, vector)}


def stream(seed: int, gene: str, name: str) -> torch.Generator:
    """The generator of one tensor's fresh entries. All of the seed counts: torch's own reads its lower 32 bits only."""
    return torch.Generator().manual_seed(zlib.crc32(f"{seed}/{gene}/{name}".encode()))


def draw(init: Init, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """A fresh fp32 tensor."""
    return INITIALISERS[init.name](shape, generator, *init.args)
