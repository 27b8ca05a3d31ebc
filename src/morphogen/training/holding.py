"""Holding what is old of a model, its moments too, while what is new trains alone; then letting it go."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

#: What an optimizer keeps of a parameter.
State = Mapping[str, Any]


class Hold:
    """Old entries of parameters, held for `freeze_steps` steps; their rate then rises to its full over `tune_steps`.

    new: where the entries of a parameter are new; parameters that are not in it are old throughout. steps: taken since
    it began.
    """

    def __init__(
        self, parameters: Sequence[nn.Parameter], new: Mapping[nn.Parameter, Tensor], freeze_steps: int, tune_steps: int
    ) -> None:
        self.new = new
        self.freeze_steps, self.tune_steps = freeze_steps, tune_steps
        self.steps = 0
        self._old = [parameter for parameter in parameters if parameter not in new]
        self._mixed = [parameter for parameter, mask in new.items() if not bool(mask.all())]

    @property
    def frozen(self) -> bool:
        """Whether only what is new trains."""
        return self.steps < self.freeze_steps

    @property
    def over(self) -> bool:
        """Whether all trains at its full rate."""
        return self.steps >= self.freeze_steps + self.tune_steps

    @torch.no_grad()
    def drop_gradients(self) -> None:
        """Old entries have no gradient while they are held."""
        if not self.frozen:
            return
        for parameter in self._old:
            parameter.grad = None  # optimizers pass it over: neither decay nor moments
        for parameter in self._mixed:
            if parameter.grad is not None:
                parameter.grad.masked_fill_(~self.new[parameter], 0.0)

    @torch.no_grad()
    def around(self, update: Callable[[], None], state_of: Callable[[nn.Parameter], State]) -> None:
        """One update of an optimizer, after which what is held is as it was, or has gone part of the way."""
        changing = self._mixed if self.frozen else [*self._mixed, *self._old] if not self.over else []
        before = [(parameter, parameter.detach().clone(), _moments(parameter, state_of)) for parameter in changing]
        update()
        share = (self.steps - self.freeze_steps + 1) / (self.tune_steps + 1)
        for parameter, weights, moments in before:
            if not self.frozen:
                slowed = torch.lerp(weights, parameter, share)
                new = self.new.get(parameter)
                parameter.copy_(slowed if new is None else torch.where(new, parameter, slowed))
                continue
            _put_back(parameter, weights, self.new[parameter])
            for kind, now in _moments(parameter, state_of, copied=False).items():
                _put_back(now, moments.get(kind, torch.zeros_like(now)), self.new[parameter])
        self.steps += 1


def _put_back(now: Tensor, before: Tensor, new: Tensor) -> None:
    now.copy_(torch.where(new, now, before))


def _moments(
    parameter: nn.Parameter, state_of: Callable[[nn.Parameter], State], *, copied: bool = True
) -> dict[str, Tensor]:
    """An optimizer's moments of a parameter: what has its shape; a step count is of the whole parameter."""
    found = {
        kind: tensor
        for kind, tensor in state_of(parameter).items()
        if isinstance(tensor, Tensor) and tensor.shape == parameter.shape
    }
    return {kind: tensor.clone() for kind, tensor in found.items()} if copied else found
