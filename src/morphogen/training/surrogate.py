"""Evaluating one candidate: a Job in, a Report out."""

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from pydantic import ValidationError

from morphogen import cost
from morphogen.blueprint.schema import Blueprint
from morphogen.candidate import Job, Report, Status, StopReason, Tokens, stream
from morphogen.data.mixture import Mixture, Trained, unique_tokens
from morphogen.data.prepare import PreparedData, prepare
from morphogen.errors import CandidateError, DeviceError, DivergedError, InputError, RunError
from morphogen.experiment import Experiment
from morphogen.figures import Bounds
from morphogen.inherit.checkpoint import save_checkpoint, save_moments
from morphogen.inherit.provenance import Provenance
from morphogen.metrics.measuring import Subject, measured
from morphogen.metrics.perplexity import SAMPLE_BATCHES, evaluate, held_out, sample_bpb
from morphogen.metrics.throughput import tokens_per_second
from morphogen.network import assemble
from morphogen.training.allocator import memory_kept
from morphogen.training.loop import Progress, StepInfo, Trainer, choose_device
from morphogen.training.start import starting_weights

__all__ = ["Progress", "StepInfo", "evaluate", "run_surrogate"]


def run_surrogate(job: Job, progress: Progress | None = None, prepared: PreparedData | None = None) -> Report:
    """Build the candidate, give it its weights, train it stage by stage, measure it on the eval split, save it.

    prepared: the experiment's data where the caller has it ready. Nothing depends on the clock or on global state but
    `Report.timed`. What is the candidate's own fault (out of memory, numbers that are not finite, a blueprint or budget
    that cannot be trained) makes a report with status FAILED and one line of reason; everything else is raised.
    InputError or RunError for what is not its fault: text, weights or a device that cannot be used now.
    """
    trial = None
    try:
        with memory_kept():
            trial = _Trial(job, prepared)
            with _its_own():
                return trial.run(progress)
    except DivergedError as error:
        return _failed(job, trial, str(error), StopReason.NOT_FINITE)
    except CandidateError as error:
        return _failed(job, trial, str(error))
    except (MemoryError, RuntimeError) as error:
        if _out_of_memory(error):
            return _failed(job, trial, f"out of memory on {job.device}: {_first_line(error)}")
        if not _answers(job.device):
            raise DeviceError(f"device {job.device} no longer answers: {_first_line(error)}") from error
        raise


@contextmanager
def _its_own() -> Iterator[None]:
    """Bad input that comes up in here lies in the candidate itself."""
    try:
        yield
    except InputError as error:
        raise CandidateError(str(error)) from error


def _failed(job: Job, trial: "_Trial | None", reason: str, stop_reason: StopReason = StopReason.FULL_RUN) -> Report:
    known = Report(id=job.candidate.id, status=Status.FAILED) if trial is None else trial.report(Status.FAILED)
    diverged = stop_reason is StopReason.NOT_FINITE
    return known.replace(reason=reason, stop_reason=stop_reason, nan_seen=known.nan_seen or diverged)


class _Trial:
    """One candidate, built and spliced, on its way from job to report."""

    def __init__(self, job: Job, prepared: PreparedData | None) -> None:
        self.started = time.perf_counter()
        device = choose_device(job.device)
        if not _answers(job.device):
            raise RunError(f"device {job.device} does not answer")
        self.experiment = _experiment(job)
        self.prepared = prepare(self.experiment.data) if prepared is None else prepared
        self.job = _with_vocab(job, self.prepared.vocab_size)
        self.before = Report(id=job.candidate.id, status=Status.PROPOSED) if job.before is None else job.before
        self.blueprint = Blueprint.model_validate(self.job.candidate.blueprint)
        self.stages = self._stages()
        start = starting_weights(self.job, self.experiment, self.prepared, self._seed("weights"))
        self.inheritance, self.begun = start.report, start.begun
        self.vocabulary = self.prepared.vocabulary()
        with _its_own():
            self.model = assemble(self.blueprint, start.state).to(device)
        self.mixture = Mixture(self.prepared, self._data_seed(job.candidate.index))
        self.inherits = job.before is None and self.inheritance.inherited + self.inheritance.resized > 0
        total_steps = self.stages[-1][1]
        self.healing_steps = 0
        if self.inherits and not self.inheritance.exact:
            self.healing_steps = min(self.experiment.data.healing_tokens // self.prepared.tokens_per_step, total_steps)
        self.trainer = Trainer(
            self.model,
            self.experiment.train,
            total_steps=total_steps,
            tokens_per_step=self.prepared.tokens_per_step,
            seed=self._seed("dropout" if job.before is None else f"dropout/{self.stages[0][0]}"),
            moments=start.moments,
        )
        self.rung = -1
        self.metrics = {name: value for name, value in self.before.metrics.items() if name == "bpb_inherited"}
        self.timed: dict[str, float] = {}
        self.eval_seconds = 0.0

    def run(self, progress: Progress | None) -> Report:
        """Train and measure, stage by stage. DivergedError when a number is not finite."""
        if self.inherits:
            self.metrics["bpb_inherited"] = self._sample()
        threshold = self.experiment.train.ppl_stop_threshold
        allowed = math.inf if threshold is None else threshold
        stop: StopReason | None = None
        for rung, until_step in self.stages:
            stop = self._train(until_step, progress)
            gates = self.experiment.evolution.rung1_gates
            at_gate = rung == 1 and self._gated
            if at_gate or stop is not None or until_step == self.stages[-1][1]:
                self._measure()
                self.rung = rung
            if at_gate and self.metrics["ppl"] > allowed:
                reason = f"held-out perplexity {self.metrics['ppl']:.4g} after rung 1, allowed {allowed:g}"
                return self.report(Status.GATED, reason, StopReason.PPL_GATE)
            if at_gate and (reason := self._complaints(gates)):
                return self.report(Status.GATED, reason, StopReason.METRIC_GATE)
            if stop is not None:
                break
        return self.report(Status.TRAINED, stop_reason=stop or StopReason.FULL_RUN, checkpoint=self._save())

    def _complaints(self, gates: Mapping[str, Bounds]) -> str:
        """What a candidate that was measured at rung 1 has outside its gates; a figure it lacks is."""
        found = []
        for name, limits in gates.items():
            value = self.report(Status.TRAINED).value(name)
            place = f"rung1_gates.{name}"
            found.append(f"{name} was not measured" if value is None else limits.complaint(name, value, place))
        return "; ".join(complaint for complaint in found if complaint)

    @property
    def _gated(self) -> bool:
        """Whether there are gates after rung 1."""
        return self.experiment.train.ppl_stop_threshold is not None or len(self.experiment.evolution.rung1_gates) > 0

    def _stages(self) -> list[tuple[int, int]]:
        """(rung, the step it ends at) of every stage that trains at all, under `train.max_tokens`.

        Rung 1 is a batch at least where gates stand after it, at the expense of rung 2: the tokens that a costly
        candidate has under `budget: flops` may give less, and it would pass unmeasured.
        """
        per_step, equal_flops = self.prepared.tokens_per_step, self.experiment.evolution.budget == "flops"
        most_tokens = self.experiment.train.max_tokens - self.before.tokens.own
        whole_tokens = sum(stage.budget_tokens for stage in self.job.stages)
        last = min(whole_tokens, most_tokens) // per_step
        if last < 1:
            raise CandidateError(
                f"evolution.rung1_tokens and rung2_tokens: got {whole_tokens} tokens in all"
                f"{' for as many FLOPs as the root has' if equal_flops else ''} (train.max_tokens leaves "
                f"{most_tokens}), expected at least one batch of {per_step}"
            )
        stages: list[tuple[int, int]] = []
        budget_tokens = done = 0
        for stage in self.job.stages:
            budget_tokens += stage.budget_tokens
            until = min(budget_tokens, most_tokens) // per_step
            if stage.rung == 1 and self._gated:
                until = max(1, until)
            if until > done:
                stages.append((stage.rung, until))
                done = until
        return stages

    def _train(self, until_step: int, progress: Progress | None) -> StopReason | None:
        """Up to `until_step`: healing text first where it is due, then the mixture."""
        trainer, healing, mixture = self.trainer, self.healing_steps, self.mixture
        stop = None
        if trainer.step < healing:
            stop = trainer.run(mixture.healing_batch, min(healing, until_step), progress)
            if trainer.step == healing:
                trainer.guards.new_text()
        if stop is None and trainer.step < until_step:
            first = self.before.steps - healing
            stop = trainer.run(lambda step: mixture.batch(first + step), until_step, progress)
        if stop is StopReason.NOT_FINITE:
            loss, norm = trainer.trace.losses[-1], trainer.trace.grad_norms[-1]
            raise DivergedError(f"training diverged at step {trainer.step}: loss {loss}, gradient norm {norm}")
        return stop

    def _sample(self) -> float:
        """Bits per byte of the model as it is now, on the first batches of every shard."""
        start = time.perf_counter()
        data, bf16 = self.experiment.data, self.experiment.train.bf16
        scores = held_out(self.model, self.mixture, data.eval_tokens, limit_batches=SAMPLE_BATCHES, bf16=bf16)
        self.eval_seconds += time.perf_counter() - start
        return sample_bpb(scores, self.prepared.eval_weights)

    def _measure(self) -> None:
        """Every figure of the model as it is now."""
        start, trace, own_text = time.perf_counter(), self.trainer.trace, slice(self.healing_steps, None)
        subject = Subject(
            model=self.model,
            device=self.trainer.device,
            mixture=self.mixture,
            eval_tokens=self.experiment.data.eval_tokens,
            bf16=self.experiment.train.bf16,
            losses=trace.losses[own_text],
            grad_norms=trace.grad_norms[own_text],
            recorded=trace.figures,
        )
        metrics, timed = measured(subject)
        self.metrics |= metrics
        self.timed |= timed
        self.eval_seconds += time.perf_counter() - start

    def _save(self) -> str:
        # of a job that goes on from a checkpoint the result lies beside it, so that the job can be done again
        name = self.job.candidate.id + ("" if self.job.before is None else f"-rung{self.rung}")
        where = f"checkpoints/{name}.safetensors"
        if self.experiment.evolution.inherit_optimizer:  # first: where there are weights, there are moments
            save_moments(Path(self.job.run_dir) / where, self.trainer.updater.moments())
        digest, called = self.prepared.tokenizer_digest, self.prepared.tokenizer
        behind = Provenance(digest, called, self.vocabulary, self._tokens(), self.begun)
        extra = {"candidate": self.job.candidate.id, "steps": str(self.trainer.step), **behind.to_metadata()}
        save_checkpoint(Path(self.job.run_dir) / where, self.model.state_dict(), self.blueprint, extra)
        return where

    def report(
        self,
        status: Status,
        reason: str = "",
        stop_reason: StopReason = StopReason.FULL_RUN,
        checkpoint: str | None = None,
    ) -> Report:
        """What is known of the candidate. `steps` are those on the training shards, healing left out."""
        trainer, seq_len, per_step = self.trainer, self.prepared.seq_len, self.prepared.tokens_per_step
        tokens = self._tokens()
        timed = {**self.timed, "train_seconds": sum(trainer.trace.seconds), "eval_seconds": self.eval_seconds}
        if trainer.trace.seconds:
            timed["throughput"] = tokens_per_second(per_step, trainer.trace.seconds)
        if trainer.memory.bytes:
            timed["peak_memory_bytes"] = float(trainer.memory.bytes)
        return Report(
            id=self.job.candidate.id,
            status=status,
            reason=reason,
            rung=self.rung,
            metrics={**self.metrics, **self._share(tokens)},
            timed={**timed, "seconds": time.perf_counter() - self.started},
            costs=cost.costs(self.blueprint, seq_len, cost.Step.of(self.experiment.train, self.experiment.data)),
            tokens=tokens,
            steps=self.before.steps + max(0, trainer.step - self.healing_steps),
            flops=cost.train_flops(self.blueprint, seq_len, tokens.own),
            inheritance=self.inheritance,
            checkpoint=checkpoint,
            stop_reason=stop_reason,
            nan_seen=trainer.guards.nan_seen,
            loss_spike=trainer.guards.loss_spike,
        )

    def _tokens(self) -> Tokens:
        """Own, lineage's and unique tokens. Ancestors count where their weights were inherited, and so do the tokens
        behind an `init_checkpoint`; which text those were nobody can tell, so that none of it counts as seen twice."""
        per_step, steps = self.prepared.tokens_per_step, self.trainer.step
        healing = min(self.healing_steps, steps)
        ancestors = self.job.ancestors if self.experiment.evolution.weight_inheritance == "parent" else ()
        earlier, healed = self.before.steps, self.before.tokens.own // per_step - self.before.steps
        mine = Trained(self._data_seed(self.job.candidate.index), earlier + steps - healing, healed + healing)
        runs = [mine]
        # an ancestor's `steps` are those on the training shards; what else its tokens tell of was healing
        runs += [Trained(self._data_seed(a.index), a.steps, a.tokens // per_step - a.steps) for a in ancestors]
        own = self.before.tokens.own + steps * per_step
        lineage = own + sum(ancestor.tokens for ancestor in ancestors) + self.begun.lineage
        return Tokens(own=own, lineage=lineage, unique=unique_tokens(self.prepared, runs) + self.begun.unique)

    def _share(self, tokens: Tokens) -> dict[str, float]:
        """How much of the budget that is equal for all this candidate has had; there is nothing to say without one."""
        return {"budget_share": tokens.own / self.job.budget_tokens} if self.job.budget_tokens else {}

    def _data_seed(self, index: int) -> int:
        return int(stream(self.job.seed, index, "data").integers(2**63))

    def _seed(self, purpose: str) -> int:
        """Of one purpose of this candidate; `train.seed` gives other repeats of the same search."""
        rng = stream(self.job.seed, self.job.candidate.index, f"{purpose}/{self.experiment.train.seed}")
        return int(rng.integers(2**31))


def _with_vocab(job: Job, vocab: int) -> Job:
    """The job with the tokenizer's vocabulary size filled in where a blueprint leaves it open."""

    def filled(blueprint: Mapping[str, object]) -> dict[str, object]:
        return Blueprint.model_validate(blueprint).with_vocab(vocab).to_json()

    candidate = job.candidate.replace(blueprint=filled(job.candidate.blueprint))
    return job.replace(
        candidate=candidate,
        parents=tuple(parent.replace(blueprint=filled(parent.blueprint)) for parent in job.parents),
    )


def _experiment(job: Job) -> Experiment:
    """The experiment with what the candidate trains with. InputError where it, or the blueprint, means nothing here."""
    try:
        Blueprint.model_validate(job.candidate.blueprint)
        return Experiment.model_validate(job.experiment).with_train(job.candidate.train)
    except ValidationError as error:
        what = error.errors(include_url=False)[0]
        place = ".".join(str(step) for step in what["loc"])
        raise InputError(
            f"candidate {job.candidate.id} cannot be read where it is to be trained: {place}: {what['msg']}"
        ) from None


def _answers(device: str) -> bool:
    """Whether this process can compute on the device. After some errors an accelerator refuses a process for good."""
    if device == "cpu":
        return True
    try:
        return torch.ones(2, device=choose_device(device)).sum().item() == 2.0
    except (InputError, RuntimeError) as error:
        return _out_of_memory(error)


def _out_of_memory(error: BaseException) -> bool:
    """Python's, an accelerator's, or the CPU allocator's, which torch raises as a plain RuntimeError."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error)


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
