"""The learning rate over the steps of a training, as a share of its highest. The trainer asks it at every step."""

import math
from dataclasses import dataclass
from typing import Self

from morphogen.experiment import Train

#: The learning rate's end, as a share of its peak.
FINAL_SCALE = 0.1


@dataclass(frozen=True)
class Schedule:
    """Linear from 1/(warmup + 1) to 1, then half a cosine to `FINAL_SCALE` at the last step. Ref: arXiv 1608.03983.

    steps: from the first to the last. warmup: how many of them lead to the highest rate.
    """

    steps: int
    warmup: int

    @classmethod
    def of(cls, train: Train, steps: int) -> Self:
        """As `train` says: its warm-up, but never more than half of a short run."""
        return cls(steps, min(train.warmup, steps // 2))

    def scale(self, step: int) -> float:
        """The share at a step, the first of which is 0."""
        if step < self.warmup:
            return (step + 1) / (self.warmup + 1)
        share = (step - self.warmup) / max(1, self.steps - 1 - self.warmup)
        return FINAL_SCALE + (1.0 - FINAL_SCALE) * 0.5 * (1.0 + math.cos(math.pi * share))
