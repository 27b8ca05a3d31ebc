"""What is measured of a candidate in training, and the gates that its figures have to pass."""

import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from morphogen.candidate import Report, StopReason
from morphogen.data.mixture import Mixture
from morphogen.estimates import Estimate
from morphogen.experiment import RATE_FOUND, Experiment
from morphogen.metrics.measuring import Subject, measured
from morphogen.metrics.perplexity import SAMPLE_BATCHES, held_out, sample_bpb
from morphogen.network import LanguageModel
from morphogen.training.trainer import Trainer

#: Of weights as they were inherited, measured before training.
BEFORE_TRAINING = "bpb_inherited"
#: What a candidate's first job finds, and stays on record however long its training goes on.
LASTING = (BEFORE_TRAINING, RATE_FOUND)
#: The same of the weights that children will inherit, which are no averaged ones.
AS_INHERITED = "bpb_sample"


class Measurement:
    """Takes a candidate's figures. metrics: those that repeat. timed: those of the clock. seconds: that it took."""

    def __init__(self, experiment: Experiment, mixture: Mixture, before: Report) -> None:
        """before: what earlier jobs found of the candidate."""
        self._experiment = experiment
        self._mixture = mixture
        self.metrics = {name: value for name, value in before.estimates.items() if name in LASTING}
        self.timed: dict[str, float] = {}
        self.seconds = 0.0

    def before_training(self, model: LanguageModel) -> None:
        """Bits per byte of inherited weights, on the first batches of every shard."""
        start = time.perf_counter()
        self.metrics[BEFORE_TRAINING] = self._sample(model)
        self.seconds += time.perf_counter() - start

    def _sample(self, model: LanguageModel) -> float:
        data, bf16 = self._experiment.data, self._experiment.train.in_bf16
        scores = held_out(model, self._mixture, data.eval_tokens, limit_batches=SAMPLE_BATCHES, bf16=bf16)
        return sample_bpb(scores, self._mixture.prepared.eval_weights)

    def state(self) -> list[list[Any]]:
        """The figures so far, as JSON: name, value, and the influence of every part that it was measured of."""
        return [
            [name, repr(float(value)), value.influence_U.tolist() if isinstance(value, Estimate) else None]
            for name, value in self.metrics.items()
        ]

    def restore(self, state: Sequence[Sequence[Any]]) -> None:
        """Goes on from what `state` gave."""
        self.metrics = {
            name: float(value) if influence is None else Estimate(float(value), np.asarray(influence, np.float64))
            for name, value, influence in state
        }

    def take(self, trainer: Trainer, first_step: int) -> None:
        """Every figure of the model as it is now, of its averaged weights where there are such.

        first_step: from which on the training was on the training shards.
        """
        start, trace = time.perf_counter(), trainer.trace
        with trainer.measurable() as model:
            subject = Subject(
                model=model,
                device=trainer.device,
                mixture=self._mixture,
                eval_tokens=self._experiment.data.eval_tokens,
                bf16=self._experiment.train.in_bf16,
                losses=trace.losses[first_step:],
                grad_norms=trace.grad_norms[first_step:],
                recorded=trace.figures,
            )
            metrics, timed = measured(subject)
        self.metrics |= metrics
        self.metrics[AS_INHERITED] = self._sample(trainer.model)
        self.timed |= timed
        self.seconds += time.perf_counter() - start


def turned_away(experiment: Experiment, report: Report) -> tuple[StopReason, str] | None:
    """Why a candidate that was measured at rung 1 goes no further; None where it passes all gates.

    A figure that it lacks is outside its gate; one that is no further outside than its error allows is not.
    """
    z = experiment.evolution.noise.z
    threshold = experiment.train.ppl_stop_threshold
    allowed = math.inf if threshold is None else threshold
    if report.metrics["ppl"] - z * report.errors.get("ppl", 0.0) > allowed:
        reason = f"held-out perplexity {report.metrics['ppl']:.4g} after rung 1, allowed {allowed:g}"
        return StopReason.PPL_GATE, reason
    report = report.with_composites(experiment.evolution.composite_metrics)
    complaints = []
    for name, limits in experiment.evolution.rung1_gates.items():
        value, place = report.value(name), f"rung1_gates.{name}"
        within = z * report.errors.get(name, 0.0)
        complaints.append(f"{name} was not measured" if value is None else limits.complaint(name, value, place, within))
    reason = "; ".join(complaint for complaint in complaints if complaint)
    return (StopReason.METRIC_GATE, reason) if reason else None
