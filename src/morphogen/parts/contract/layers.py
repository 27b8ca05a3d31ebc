"""The layers parts are made of: norms, the linear map, rotary tables.

All leave their tensors uninitialised: `Part.specs` says how.

A norm's eps is a buffer, not a setting: growth in width changes it, so it is part of the state.
"""

import functools
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from morphogen.ops.elementwise import WholeRope, layer_norm, rms_norm, rope_rotations
from morphogen.parts.contract.context import NormKind


class Layer(nn.Module):
    """A module from one tensor to one tensor, typed so where torch lets calls take and return anything."""

    if TYPE_CHECKING:

        def __call__(self, x: Tensor) -> Tensor: ...


class RMSNorm(Layer):
    """x / √(mean(x²) + eps) · weight over the last axis. Ref: arXiv 1910.07467."""

    eps: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self.register_buffer("eps", torch.empty(()))

    def forward(self, x: Tensor) -> Tensor:
        """(..., size) to (..., size)."""
        return rms_norm(x, self.weight, self.eps)


class LayerNorm(Layer):
    """(x − mean(x)) / √(var(x) + eps) · weight + bias over the last axis. Ref: arXiv 1607.06450."""

    eps: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self.bias = nn.Parameter(torch.empty(size))
        self.register_buffer("eps", torch.empty(()))

    def forward(self, x: Tensor) -> Tensor:
        """(..., size) to (..., size)."""
        return layer_norm(x, self.weight, self.bias, self.eps)


class Unchanged(Layer):
    """Stands where nothing is done."""

    def forward(self, x: Tensor) -> Tensor:
        """What it is given."""
        return x


def make_norm(kind: NormKind, size: int) -> RMSNorm | LayerNorm:
    """A norm over `size` channels."""
    return RMSNorm(size) if kind == "rmsnorm" else LayerNorm(size)


class Linear(Layer):
    """x Wᵀ with W of shape (out, in); with `bias`, plus a vector."""

    def __init__(self, size_in: int, size_out: int, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size_out, size_in))
        self.bias = nn.Parameter(torch.empty(size_out)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        return F.linear(x, self.weight, self.bias)


def rotations(
    places: range,
    channels: int,
    theta: float,
    like: Tensor,
    *,
    kind: WholeRope = "standard",
    factor: float = 1.0,
    context: int = 2048,
) -> Tensor:
    """RoPE's rotations of consecutive tokens, (T, pairs) complex, the factor on queries and keys included.

    kind, factor, context: as for `ops.elementwise.rope_frequencies`. On the device of `like`, in the complex dtype of
    its precision, at least fp32. Tables are kept.
    """
    # a decoder that starts in mid-sequence would else need another table every token
    length = places.stop if places.start == 0 else 1 << (places.stop - 1).bit_length()
    dtype = torch.promote_types(like.dtype, torch.float32)
    return _table(length, channels, theta, kind, factor, context, dtype, like.device)[places.start : places.stop]


@functools.lru_cache(maxsize=64)
def _table(
    length: int,
    channels: int,
    theta: float,
    kind: WholeRope,
    factor: float,
    context: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    cis_TF, magnitude = rope_rotations(
        length, channels, theta=theta, kind=kind, factor=factor, context=context, device=device
    )
    return (cis_TF * magnitude).to(dtype.to_complex())
