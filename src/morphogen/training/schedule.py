"""The learning rate over the steps of a training, as a share of its highest. The trainer asks it at every step."""

import math
from dataclasses import dataclass, replace
from typing import Literal, Self

from morphogen.experiment import Train

#: Where a cosine ends, as a share of the highest rate.
FINAL_SCALE = 0.1


@dataclass(frozen=True)
class Schedule:
    """A linear warm-up from 1/(warmup + 1) to 1, and then by `shape`:

    constant: 1. cosine: half a cosine to `FINAL_SCALE` at the last step. Ref: arXiv 1608.03983.
    wsd: 1, and over the last `decay` steps linear towards 0, which the step after the last would have.
    Ref: arXiv 2404.06395.

    steps: from the first to the last, the warm-up's included.
    """

    steps: int
    warmup: int
    shape: Literal["constant", "cosine", "wsd"] = "constant"
    decay: int = 0

    @classmethod
    def of(cls, train: Train, steps: int, *, begun: bool = False) -> Self:
        """As `train` says: its warm-up, but never more than half of a short run.

        begun: a training that goes on, moments and all: the warm-up is behind it.
        """
        warmup = 0 if begun else min(train.warmup, steps // 2)
        decay = math.ceil(train.decay_share * steps) if train.schedule == "wsd" else 0
        return cls(steps, warmup, train.schedule, min(decay, steps - warmup))

    def until(self, steps: int) -> Self:
        """The same shape over another number of steps: a decay has its share of them, the warm-up stays as it is."""
        decay = math.ceil(self.decay * steps / self.steps) if self.steps else 0
        return replace(self, steps=steps, decay=min(decay, max(0, steps - self.warmup)))

    def scale(self, step: int) -> float:
        """The share at a step, the first of which is 0."""
        if step < self.warmup:
            return (step + 1) / (self.warmup + 1)
        if self.shape == "cosine":
            share = (step - self.warmup) / max(1, self.steps - 1 - self.warmup)
            return FINAL_SCALE + (1.0 - FINAL_SCALE) * 0.5 * (1.0 + math.cos(math.pi * share))
        left = self.steps - step
        return left / (self.decay + 1) if self.shape == "wsd" and left <= self.decay else 1.0
