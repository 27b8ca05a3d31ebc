"""A fast function against a plain one: outputs and all gradients, tensor by tensor."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def outcome(function: Callable[..., tuple[Tensor, ...]], inputs: Sequence[Tensor]) -> list[Tensor]:
    """Runs a function forwards and backwards.

    Args:
        function: Tensors to a tuple of tensors.
        inputs: What it is called with; each must take a gradient.

    Returns:
        Its outputs, then the gradient of every input under fixed random gradients of all outputs.
    """
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    results = function(*leaves)
    draw = torch.Generator().manual_seed(1)
    grads = [torch.randn(r.shape, generator=draw, dtype=torch.float64).to(r.dtype) for r in results]
    return [r.detach() for r in results] + list(torch.autograd.grad(results, leaves, grads))


def relative_error(want: Tensor, got: Tensor) -> float:
    """The root mean square of the difference over that of what is right.

    Args:
        want: What is right.
        got: What is in question.
    """
    off, scale = (want.double() - got.double()).square().mean().sqrt(), want.double().square().mean().sqrt()
    return float(off / scale.clamp(min=1e-30))


def assert_agree(want: Sequence[Tensor], got: Sequence[Tensor], bound: float, names: Sequence[str] = ()) -> None:
    """Fails unless two outcomes agree, each tensor for itself.

    Args:
        want: What is right.
        got: What is in question.
        bound: The largest relative error.
        names: Of the tensors, for the message.

    Raises:
        AssertionError: One differs by more, or there are not as many.
    """
    assert len(want) == len(got)
    for i, (a, b) in enumerate(zip(want, got, strict=True)):
        name = names[i] if i < len(names) else f"tensor {i}"
        assert a.shape == b.shape, f"{name}: got shape {tuple(b.shape)}, expected {tuple(a.shape)}"
        off = relative_error(a, b)
        assert off <= bound, f"{name}: relative error {off:.2e}, expected at most {bound:.0e}"
