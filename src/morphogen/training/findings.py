"""What a candidate's training has come to so far, and the report that tells of it. Called by `trial`."""

from typing import NamedTuple

from morphogen import cost
from morphogen.candidate import DonorLayer, GrowthEvent, Inheritance, Report, Status, Tokens
from morphogen.estimates import known_of
from morphogen.inherit.borrowed import donors_of
from morphogen.metrics.throughput import SHARE, tokens_per_second
from morphogen.training import accounts
from morphogen.training.assignment import Assignment
from morphogen.training.growing import Growing
from morphogen.training.measurement import Measurement
from morphogen.training.range_test import Found
from morphogen.training.trace import thinned


class Findings(NamedTuple):
    """Who knows what of a candidate in training.

    begun: tokens behind the checkpoint that its lineage began with. taken: layers of other models, as its weights had
    them when it began. healing_steps: on healing text, which it began with. searched: what it took to find a rate.
    """

    assignment: Assignment
    growing: Growing
    measurement: Measurement
    inheritance: Inheritance
    begun: Tokens
    taken: tuple[DonorLayer, ...]
    healing_steps: int
    searched: Found | None

    def report(self, status: Status, seconds: float) -> Report:
        """What is known now, after so many seconds. `steps` are those on the training shards, healing left out."""
        trainer, job, before = self.growing.trainer, self.assignment.job, self.assignment.before
        experiment, seq_len = self.assignment.experiment, self.assignment.prepared.seq_len
        blueprint, tokens = self.growing.blueprint, self.tokens()
        as_trained = blueprint.to_json()
        return Report(
            id=job.candidate.id,
            status=status,
            **known_of(self.measurement.metrics | self._share(tokens)),
            timed={**self._timed(), "seconds": seconds},
            costs=cost.costs(blueprint, seq_len, cost.Step.of(experiment.train, experiment.data.batch_size)),
            tokens=tokens,
            steps=before.steps + max(0, trainer.step - self.healing_steps),
            flops=self._flops(),
            tokens_beside=before.tokens_beside + (0 if self.searched is None else self.searched.tokens),
            inheritance=self.inheritance,
            blueprint=None if as_trained == job.candidate.blueprint else as_trained,
            growth=self.grown_by(),
            losses=thinned(trainer.trace.losses, before.losses),
            donors=donors_of(blueprint, trainer.model.state_dict(), self.taken),
            nan_seen=trainer.guards.nan_seen,
            loss_spike=trainer.guards.loss_spike,
            micro_batches=trainer.micro_batches,
        )

    def grown_by(self) -> tuple[GrowthEvent, ...]:
        """How it has grown so far, in earlier jobs too."""
        return (*self.assignment.before.growth, *self.growing.events)

    def tokens(self) -> Tokens:
        """Those behind the weights as they are now."""
        steps = self.growing.trainer.step
        return accounts.tokens(self.assignment, steps, min(self.healing_steps, steps), self.begun)

    def _timed(self) -> dict[str, float]:
        """What the clock and the memory say."""
        trainer, measurement = self.growing.trainer, self.measurement
        taken = {"train_seconds": sum(trainer.trace.seconds), "eval_seconds": measurement.seconds}
        if trainer.trace.seconds:
            taken["throughput"] = tokens_per_second(trainer.tokens_per_step, trainer.trace.seconds)
        if trainer.memory.bytes:
            taken["peak_memory_bytes"] = float(trainer.memory.bytes)
        return {**measurement.timed, **taken}

    def _flops(self) -> float:
        """Of its training, what keeps it from forgetting included."""
        growing, searched = self.growing, 0.0 if self.searched is None else self.searched.flops
        trained = accounts.flops(self.assignment.prepared, growing.segments, growing.totals(), growing.trainer.step)
        anchored = 0.0 if growing.anchoring is None else growing.anchoring.flops
        return self.assignment.before.flops + searched + trained + anchored

    def _share(self, tokens: Tokens) -> dict[str, float]:
        """How much of the budget that is equal for all this candidate has had; there is nothing to say without one."""
        if not self.assignment.job.budget_tokens:
            return {}
        growing = self.growing
        return {SHARE: accounts.share(self.assignment, growing.segments, tokens.own, growing.trainer.step)}
