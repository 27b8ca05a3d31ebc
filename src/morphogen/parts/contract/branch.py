"""The torch side of a part: the modules of branches and of modifiers, and what they remember and report."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from morphogen.parts.contract.layers import Layer

#: What a branch remembers of a sequence while decoding, by name; empty at the start. Batch is the first dimension.
State = dict[str, Tensor]


class Record:
    """What branches report of the forward passes made while it is open (`LanguageModel.recording`).

    losses: auxiliary losses by name, with their graph, so a record must not outlive its step. figures: numbers to
    watch, by name. tallies: counts that a branch wants back after the optimizer's step.
    """

    def __init__(self) -> None:
        self.losses: dict[str, list[Tensor]] = {}
        self.figures: dict[str, list[Tensor]] = {}
        self.tallies: dict[Branch, Tensor] = {}

    def add_loss(self, name: str, loss: Tensor) -> None:
        """One branch's auxiliary loss, a scalar times its coefficient in the blueprint."""
        self.losses.setdefault(name, []).append(loss)

    def add_figure(self, name: str, value: Tensor) -> None:
        """One branch's figure, a scalar."""
        self.figures.setdefault(name, []).append(value.detach())

    def add_tally(self, branch: "Branch", counts: Tensor) -> None:
        """Counts, added up over the passes of a branch that runs more than once."""
        self.tallies[branch] = self.tallies[branch] + counts if branch in self.tallies else counts

    def loss(self, coefficients: Mapping[str, float]) -> Tensor | None:
        """The sum of all losses, each times the coefficient of its name (1 where none is given); None without any."""
        terms = [
            coefficients.get(name, 1.0) * torch.stack(losses).sum()
            for name, losses in self.losses.items()
            if coefficients.get(name, 1.0) != 0.0
        ]
        return torch.stack(terms).sum() if terms else None

    def means(self) -> dict[str, Tensor]:
        """Every figure, the mean over branches, in order of name."""
        return {name: torch.stack(values).mean() for name, values in sorted(self.figures.items())}

    def give_back(self) -> None:
        """Give the branches their tallies; after the optimizer's step, once."""
        for branch, counts in self.tallies.items():
            branch.take_back(counts)


class Branch(Layer):
    """A residual branch's module: `forward` normalises and calls `mix`. B batch, T tokens, D residual width.

    record: where to report auxiliary losses and figures while a recording is open, else None.
    """

    norm: Layer
    record: Record | None = None

    def __getstate__(self) -> dict[str, Any]:
        """A copy records nothing."""
        return {**self.__dict__, "record": None}

    def take_back(self, counts: Tensor) -> None:
        """Change buffers by what was tallied over a training step."""
        raise NotImplementedError(f"{type(self).__name__} has no take_back")  # only for kinds that tally

    def mix(self, x_BTD: Tensor) -> Tensor:
        """The branch proper, on normalised input; (B, T, D) to (B, T, D)."""
        raise NotImplementedError(f"{type(self).__name__} has no mix")  # every kind has its own

    def mix_on(self, x_BTD: Tensor, state: State) -> Tensor:
        """As `mix`, for tokens that follow those `state` remembers; updates `state` in place."""
        raise NotImplementedError(f"{type(self).__name__} has no mix_on")  # every kind has its own

    def forward(self, x_BTD: Tensor) -> Tensor:
        """`mix(norm(x))`; the caller adds the residual."""
        return self.mix(self.norm(x_BTD))

    def extend(self, x_BTD: Tensor, state: State) -> Tensor:
        """`forward` for the next tokens of a sequence."""
        return self.mix_on(self.norm(x_BTD), state)


class Modulation(nn.Module):
    """A modifier's module. What it does to a token may depend on that token of the block's input, on no other."""

    def look(self, x_BTD: Tensor) -> Tensor | None:
        """What it takes from the block's input, once for all branches; None when that is nothing."""
        return None

    def modulate(self, slot: str, y_BTD: Tensor, seen: Tensor | None) -> Tensor:
        """The changed output `y` of branch `slot`; `seen` is what `look` returned."""
        raise NotImplementedError(f"{type(self).__name__} has no modulate")  # every kind has its own
