"""A fast function against a plain one: outputs and all gradients, tensor by tensor."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def outcome(function: Callable[..., tuple[Tensor, ...]], inputs: Sequence[Tensor]) -> list[Tensor]:
    """What `function` returns for `inputs`, and the gradient of every input under fixed random ones of all outputs."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    results = function(*leaves)
    draw = torch.Generator().manual_seed(1)
    grads = [torch.randn(r.shape, generator=draw, dtype=torch.float64).to(r.dtype) for r in results]
    return [r.detach() for r in results] + list(torch.autograd.grad(results, leaves, grads))


def relative_error(want: Tensor, got: Tensor) -> float:
    """Root mean square of the difference over that of `want`."""
    off, scale = (want.double() - got.double()).square().mean().sqrt(), want.double().square().mean().sqrt()
    return float(off / scale.clamp(min=1e-30))


def assert_agree(want: Sequence[Tensor], got: Sequence[Tensor], bound: float, names: Sequence[str] = ()) -> None:
    """Two outcomes agree within a relative error, each tensor for itself. names: of the tensors, for the message."""
    assert len(want) == len(got)
    for i, (a, b) in enumerate(zip(want, got, strict=True)):
        name = names[i] if i < len(names) else f"tensor {i}"
        assert a.shape == b.shape, f"{name}: got shape {tuple(b.shape)}, expected {tuple(a.shape)}"
        off = relative_error(a, b)
        assert off <= bound, f"{name}: relative error {off:.2e}, expected at most {bound:.0e}"
