"""When to stop training early. A pure state machine: numbers in, a decision out."""

import math
import statistics
from collections import deque
from collections.abc import Mapping
from typing import Any

from morphogen.candidate import StopReason
from morphogen.experiment import Train

#: A check (of entropy and of improvement) is made every so many steps, on the mean loss since the last one.
CHECK_EVERY = 10
#: Steps whose median stands for "now": long enough that single batches do not matter.
WINDOW = 16
#: A loss this many times the median of the last `WINDOW` is a spike.
SPIKE = 1.5


class Guards:
    """Fed once per step; says why training should stop, or None.

    not_finite: the loss or the gradient norm is NaN or infinite. high_grad: the median gradient norm, before clipping,
    over the last `WINDOW` steps after the warm-up is above `instability_threshold`; single spikes do not stop a run.
    low_entropy: the entropy of the predictions (nats) is below `entropy_threshold` at `entropy_patience` checks in a
    row. no_improve: `no_improve_patience` checks in a row have not brought the mean training loss below the best by a
    factor of 1 − `improvement_tolerance`.
    `nan_seen` and `loss_spike` are only recorded.
    """

    def __init__(self, train: Train, warmup_steps: int) -> None:
        self.train = train
        self.warmup_steps = warmup_steps
        self.steps = 0
        self.nan_seen = False
        self.loss_spike = False
        self._norms: deque[float] = deque(maxlen=WINDOW)
        self.new_text()

    def new_text(self) -> None:
        """Forget the losses so far: the batches come from other text from here on."""
        self._losses: deque[float] = deque(maxlen=WINDOW)
        self._since_check: list[float] = []
        self._best = math.inf
        self._checks_without_gain = 0
        self._checks_of_low_entropy = 0

    def state(self) -> dict[str, Any]:
        """All that they remember, as strict JSON."""
        return {
            "steps": self.steps,
            "nan_seen": self.nan_seen,
            "loss_spike": self.loss_spike,
            "norms": list(self._norms),
            "losses": list(self._losses),
            "since_check": list(self._since_check),
            "best": self._best if math.isfinite(self._best) else None,
            "checks_without_gain": self._checks_without_gain,
            "checks_of_low_entropy": self._checks_of_low_entropy,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on from what `state` gave."""
        self.steps, self.nan_seen, self.loss_spike = state["steps"], state["nan_seen"], state["loss_spike"]
        self._norms = deque(state["norms"], maxlen=WINDOW)
        self._losses = deque(state["losses"], maxlen=WINDOW)
        self._since_check = list(state["since_check"])
        self._best = math.inf if state["best"] is None else state["best"]
        self._checks_without_gain = state["checks_without_gain"]
        self._checks_of_low_entropy = state["checks_of_low_entropy"]

    def observe(self, loss: float, grad_norm: float, entropy: float | None) -> StopReason | None:
        """One step: its loss (nats per token), gradient norm before clipping, and entropy (nats) where sampled."""
        self.steps += 1
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            self.nan_seen = True
            return StopReason.NOT_FINITE
        full = len(self._losses) == WINDOW
        self.loss_spike |= full and loss > SPIKE * statistics.median(self._losses)
        self._losses.append(loss)
        self._since_check.append(loss)
        if self._high_grad(grad_norm):
            return StopReason.HIGH_GRAD
        return None if entropy is None else self._check(entropy)

    def _high_grad(self, grad_norm: float) -> bool:
        if self.steps <= self.warmup_steps:
            return False
        self._norms.append(grad_norm)
        return len(self._norms) == WINDOW and statistics.median(self._norms) > self.train.instability_threshold

    def _check(self, entropy: float) -> StopReason | None:
        low = entropy < self.train.entropy_threshold
        self._checks_of_low_entropy = self._checks_of_low_entropy + 1 if low else 0
        mean = statistics.fmean(self._since_check)
        self._since_check = []
        if mean < self._best * (1.0 - self.train.improvement_tolerance):
            self._best, self._checks_without_gain = mean, 0
        else:
            self._checks_without_gain += 1
        if self._checks_of_low_entropy >= self.train.entropy_patience:
            return StopReason.LOW_ENTROPY
        if self._checks_without_gain >= self.train.no_improve_patience:
            return StopReason.NO_IMPROVE
        return None
