"""Calling autograd functions with hand-written backward passes: torch leaves `apply` without types."""

from typing import Any

from torch.autograd import Function


def call(function: type[Function], *inputs: object) -> Any:
    """What `function.forward` returns for `inputs`, with its backward pass behind it."""
    return function.apply(*inputs)  # type: ignore[no-untyped-call]
