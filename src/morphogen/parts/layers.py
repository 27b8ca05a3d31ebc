"""The layers parts are made of: norms and the linear map. All leave their tensors uninitialised: `Part.specs` says how.

A norm's eps is a buffer, not a setting: growth in width changes it, so it is part of the state.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from morphogen.ops.elementwise import layer_norm, rms_norm
from morphogen.parts.base import NormKind


class RMSNorm(nn.Module):
    """x / √(mean(x²) + eps) · weight over the last axis. Ref: arXiv 1910.07467."""

    eps: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self.register_buffer("eps", torch.empty(()))

    def forward(self, x: Tensor) -> Tensor:
        """(..., size) to (..., size)."""
        return rms_norm(x, self.weight, self.eps)


class LayerNorm(nn.Module):
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


def make_norm(kind: NormKind, size: int) -> RMSNorm | LayerNorm:
    """A norm over `size` channels."""
    return RMSNorm(size) if kind == "rmsnorm" else LayerNorm(size)


class Linear(nn.Module):
    """x Wᵀ with W of shape (out, in); no bias."""

    def __init__(self, size_in: int, size_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size_out, size_in))

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        return F.linear(x, self.weight)
