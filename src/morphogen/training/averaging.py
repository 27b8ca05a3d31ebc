"""Averaged weights: what is measured of a training at a constant rate. The trainer keeps them beside the weights.

At a constant rate the weights wander about a minimum, and their average lies nearer to it than they do: it measures
about what a decay of the rate would have led to, without ending the training. Ref: arXiv 2306.03241, 2405.18392.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

#: The average reaches back over this share of all steps behind the weights, but over at most so many.
SHARE = 1 / 8
MOST = 33.0


def window(steps: int) -> float:
    """Steps that the average reaches back over, `steps` after the lineage began: a decay of 1 − 1/window a step.

    That is 0.9 after 80 steps and 0.97 after 264: while the weights still move far, older ones are no part of them.
    """
    return min(max(steps * SHARE, 1.0), MOST)


class Averaging:
    """A moving average of parameters. While there are fewer steps than its window, it is their plain mean.

    earlier: steps behind the parameters as they are now. The average begins with the next step's.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], earlier: int) -> None:
        self._parameters: list[Tensor] = list(parameters)
        self._earlier = earlier
        self._taken = 0
        self.averages: list[Tensor] = [parameter.detach().clone() for parameter in parameters]

    def state(self) -> dict[str, int]:
        """How far the averages have come."""
        return {"earlier": self._earlier, "taken": self._taken}

    @torch.no_grad()
    def restore(self, state: Mapping[str, int], averages: Sequence[Tensor]) -> None:
        """Goes on from what `state` gave, with the averages that there were then."""
        self._earlier, self._taken = state["earlier"], state["taken"]
        for own, average in zip(self.averages, averages, strict=True):
            own.copy_(average)

    @torch.no_grad()
    def update(self) -> None:
        """Takes in the parameters after a step."""
        self._taken += 1
        share = 1.0 / min(self._taken, window(self._earlier + self._taken))
        torch._foreach_lerp_(self.averages, self._parameters, share)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Meanwhile the parameters hold their averages."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for average, parameter in zip(self.averages, self._parameters, strict=True):
            weights = parameter.detach().clone()
            parameter.copy_(average)
            average.copy_(weights)
