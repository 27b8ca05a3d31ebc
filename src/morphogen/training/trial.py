"""Evaluating one candidate: a Job in, a Report out. Executors call `run_surrogate`."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from morphogen.blueprint.schema import Blueprint
from morphogen.candidate import Job, Report, Status, StopReason
from morphogen.data.mixture import Mixture
from morphogen.data.prepare import PreparedData
from morphogen.errors import CandidateError, DeviceError, DivergedError, InputError, MemoryShortError
from morphogen.experiment import RATE_FOUND, Experiment
from morphogen.inherit.borrowed import donors_of
from morphogen.inherit.checkpoint import BEGUN_AS, GREW_BY, save_checkpoint, save_moments
from morphogen.inherit.provenance import Provenance
from morphogen.inherit.splice import StateDict
from morphogen.network import assemble
from morphogen.store.files import canonical_json
from morphogen.training import accounts
from morphogen.training.allocator import memory_kept
from morphogen.training.anchored import Anchoring, Earlier
from morphogen.training.assignment import Assignment
from morphogen.training.device import answers, choose_device, out_of_memory
from morphogen.training.findings import Findings
from morphogen.training.growing import NEVER, Behind, Growing
from morphogen.training.measurement import Measurement, turned_away
from morphogen.training.midway import Midway
from morphogen.training.range_test import Found, find_rate
from morphogen.training.saved import Saved
from morphogen.training.snapshots import Snapshot, understood
from morphogen.training.start import starting_weights
from morphogen.training.trace import Progress
from morphogen.training.trainer import Trainer
from morphogen.training.twin import twin_job, with_twin


def run_surrogate(job: Job, progress: Progress | None = None, prepared: PreparedData | None = None) -> Report:
    """Build the candidate, give it its weights, train it stage by stage, measure it on the eval split, save it; then
    its twin, where it is to have one.

    prepared: the experiment's data where the caller has it ready. Nothing depends on the clock or on global state but
    `Report.timed`. What is the candidate's own fault (out of memory, numbers that are not finite, a blueprint or budget
    that cannot be trained) makes a report with status FAILED and one line of reason; everything else is raised.
    InputError or RunError for what is not its fault: text, weights or a device that cannot be used now.
    """
    midway = Midway(job)
    report = midway.finished() or _attempt(job, midway, progress, prepared, keep=not job.repeat)
    if report.status is Status.TRAINED and (job.with_twin or (job.twin is not None and report.blueprint is not None)):
        midway.finish(report)
        found = _attempt(twin_job(job, report), midway.twin(), progress, prepared, keep=False)
        report = with_twin(job, report, found)
    elif report.status is Status.TRAINED:
        report = report.replace(twin=job.twin)
    midway.clear()
    return report


def _attempt(
    job: Job, midway: Midway, progress: Progress | None, prepared: PreparedData | None, *, keep: bool
) -> Report:
    """One training; where an accelerator's memory is short, once more with each batch in twice as many parts, down to
    single sequences. midway: what it goes on from where it was begun before. keep: whether a checkpoint is left.
    MemoryShortError instead where others may use the device too."""
    most = 1 if job.device == "cpu" else Experiment.model_validate(job.experiment).data.batch_size
    report, short = _once(job, midway, progress, prepared, keep=keep)
    if short and job.shares:
        raise MemoryShortError(f"candidate {job.candidate.id}: {report.reason}")
    while short and (parts := 2 * max(job.micro_batches, report.micro_batches)) <= most:
        midway.clear()
        job = job.replace(micro_batches=parts)
        report, short = _once(job, midway, progress, prepared, keep=keep)
    return report


def _once(
    job: Job, midway: Midway, progress: Progress | None, prepared: PreparedData | None, *, keep: bool
) -> tuple[Report, bool]:
    """One training, in the parts that the job says; and whether memory was short."""
    trial = None
    try:
        with memory_kept():
            trial = Trial(job, midway, prepared)
            with _its_own():
                return trial.run(progress, keep=keep), False
    except DivergedError as error:
        return _failed(job, trial, str(error), StopReason.NOT_FINITE), False
    except CandidateError as error:
        return _failed(job, trial, str(error)), False
    except (MemoryError, RuntimeError) as error:
        if out_of_memory(error):
            return _failed(job, trial, f"out of memory on {job.device}: {_first_line(error)}"), True
        if not answers(job.device):
            raise DeviceError(f"device {job.device} no longer answers: {_first_line(error)}") from error
        raise


@contextmanager
def _its_own() -> Iterator[None]:
    """Bad input that comes up in here lies in the candidate itself."""
    try:
        yield
    except InputError as error:
        raise CandidateError(str(error)) from error


def _failed(job: Job, trial: "Trial | None", reason: str, stop_reason: StopReason = StopReason.FULL_RUN) -> Report:
    known = Report(id=job.candidate.id, status=Status.FAILED) if trial is None else trial.report(Status.FAILED)
    diverged = stop_reason is StopReason.NOT_FINITE
    return known.replace(reason=reason, stop_reason=stop_reason, nan_seen=known.nan_seen or diverged)


class Trial:
    """One candidate on its way from job to report.

    Its architecture may change between two steps of its training, as its rules of growth say.
    """

    def __init__(self, job: Job, midway: Midway, prepared: PreparedData | None) -> None:
        """Built and given its weights: those of its last checkpoint, where it has left one. DeviceError where the
        device does not answer."""
        self.started = time.perf_counter()
        self.device = choose_device(job.device)
        if not answers(job.device):
            raise DeviceError(f"device {job.device} does not answer")
        self.assignment = assignment = Assignment.of(job, prepared)
        self.endings = assignment.endings()
        seeds = assignment.seed("weights"), assignment.root_seed
        self.midway, snapshot = midway, midway.latest()
        start = starting_weights(assignment.job, assignment.experiment, assignment.prepared, *seeds)
        inheritance, taken = start.report, donors_of(assignment.blueprint, start.state, start.donors)
        self.vocabulary = assignment.prepared.vocabulary()
        self.mixture = Mixture(assignment.prepared, assignment.own_data_seed)
        self.measurement = Measurement(assignment.experiment, self.mixture, assignment.before)
        with _its_own():
            searches = assignment.experiment.train.searches_rate
            self.searched = self._find_rate(start.state, snapshot) if searches else None
            began = (assignment.blueprint, start.state) if snapshot is None else (snapshot.blueprint, snapshot.state)
            model = assemble(*began).to(self.device)
        self.inherits = job.before is None and inheritance.inherited + inheritance.resized > 0
        self.healing_steps = self._healing() if self.inherits and not inheritance.exact else 0
        per_step, behind = assignment.prepared.tokens_per_step, accounts.behind(assignment, start.begun)
        trainer = Trainer(
            model,
            self.assignment.experiment.train,
            total_steps=self.endings[-1].step,
            tokens_per_step=per_step,
            seed=assignment.seed("dropout" if job.before is None else f"dropout/{self.endings[0].rung}"),
            moments=start.moments if snapshot is None else None,
            earlier_steps=behind // per_step,
            micro_batches=job.micro_batches if snapshot is None else _noted(snapshot)["micro_batches"],
        )
        self.growing = Growing(
            trainer,
            held_BT1=self.mixture.held(),
            seed=assignment.seed("growth"),
            behind=Behind(behind // per_step, behind, start.memory if snapshot is None else ""),
            own_steps=assignment.before.tokens.own // per_step,
            budget=assignment.experiment.evolution.budget,
            most_steps=(assignment.experiment.train.max_tokens - assignment.before.tokens.own) // per_step,
            anchoring=self._anchored(trainer, start.new if behind and snapshot is None else None),
        )
        self.findings = Findings(
            self.assignment,
            self.growing,
            self.measurement,
            inheritance,
            start.begun,
            taken,
            self.healing_steps,
            self.searched,
        )
        self.rung, self.endings_done = -1, 0
        if snapshot is not None:
            with understood(snapshot.path):
                self._restore(snapshot)

    def _anchored(self, trainer: Trainer, new: Mapping[str, Tensor] | None) -> Anchoring | None:
        """What keeps it from forgetting. new: the entries of its weights that are, where it begins with those of
        others; None where there is nothing to look back at, or it goes on from a checkpoint of its own."""
        assignment = self.assignment
        anchors = assignment.experiment.train.anchoring
        anchoring = Anchoring.of(anchors, trainer, assignment.prepared, assignment.seed("anchoring"))
        if anchoring is not None and new is not None:
            with _its_own():
                anchoring.begin(Earlier(assignment.prepared, accounts.runs(assignment)), new=new)
        return anchoring

    def _restore(self, snapshot: Snapshot) -> None:
        """Goes on from a checkpoint of this job."""
        saved = snapshot.saved
        self.trainer.restore(saved, snapshot.averages)
        self.growing.restore(saved.part("growing"))
        self.trainer.trace.seconds = saved.part("trial").tensors["seconds"].tolist()
        plain = _noted(snapshot)
        self.measurement.restore(plain["metrics"])
        self.measurement.seconds = plain["eval_seconds"]
        self.started -= plain["seconds"]
        self.rung, self.endings_done = plain["rung"], plain["endings_done"]

    def _save_midway(self) -> None:
        """Leaves a checkpoint of now, from which the same job goes on."""
        trainer = self.trainer
        seconds = torch.tensor(trainer.trace.seconds, dtype=torch.float64)
        plain = {
            "rung": self.rung,
            "endings_done": self.endings_done,
            "metrics": self.measurement.state(),
            "eval_seconds": self.measurement.seconds,
            "seconds": time.perf_counter() - self.started,
            "micro_batches": trainer.micro_batches,
            "searched": self.searched,
        }
        own = Saved.joined({"growing": self.growing.state(), "trial": Saved({"seconds": seconds}, plain)})
        of = trainer.state()
        saved = Saved({**of.tensors, **own.tensors}, {**of.plain, **own.plain})
        self.midway.save(trainer.step, self.blueprint, trainer.model.state_dict(), trainer.averages, saved)

    def _find_rate(self, state: StateDict, snapshot: Snapshot | None) -> Found:
        """Takes on the learning rate that suits these weights; what it took to find it."""
        assignment, total_steps = self.assignment, self.endings[-1].step
        if snapshot is not None:
            with understood(snapshot.path):
                self.measurement.restore(_noted(snapshot)["metrics"])
                found = Found(*_noted(snapshot)["searched"])
        else:
            found = find_rate(
                assignment.blueprint,
                state,
                assignment.experiment.train,
                self.mixture,
                total_steps=total_steps,
                seed=assignment.seed("rate"),
                device=self.device,
            )
            self.measurement.metrics[RATE_FOUND] = found.rate
        self.assignment = assignment._replace(experiment=assignment.experiment.with_train({"lr": found.rate}))
        return found

    def _healing(self) -> int:
        """Steps on healing text that a child begins with whose splice was not exact."""
        data, per_step = self.assignment.experiment.data, self.assignment.prepared.tokens_per_step
        return min(data.healing_tokens // per_step, self.endings[-1].step)

    @property
    def blueprint(self) -> Blueprint:
        """The architecture as it is now."""
        return self.growing.blueprint

    @property
    def trainer(self) -> Trainer:
        """What trains it."""
        return self.growing.trainer

    def run(self, progress: Progress | None, *, keep: bool = True) -> Report:
        """Train and measure, rung by rung. keep: whether a checkpoint is left. DivergedError when a number is not
        finite."""
        if self.inherits and self.trainer.step == 0:
            self.measurement.before_training(self.trainer.model)
        stop: StopReason | None = None
        for rung, until_step in self.endings[self.endings_done :]:
            stop = self._train(until_step, progress)
            at_gate = rung == 1 and self.assignment.gated
            if at_gate or stop is not None or until_step == self.endings[-1].step:
                self.measurement.take(self.trainer, self.healing_steps)
                self.rung = rung
            if at_gate and (found := turned_away(self.assignment.experiment, self.report(Status.TRAINED))):
                why, reason = found
                return self.report(Status.GATED, reason, why)
            if stop is not None:
                break
            self.endings_done += 1
        return self.report(
            Status.TRAINED,
            stop_reason=stop or StopReason.FULL_RUN,
            checkpoint=self._save() if keep else None,
        )

    def _train(self, until_step: int, progress: Progress | None) -> StopReason | None:
        """Up to `until_step`, as planned before growth, leaving a checkpoint wherever one is due."""
        growing, trainer = self.growing, self.trainer
        stop: StopReason | None = None
        while stop is None and trainer.step < growing.ending(until_step):
            due = self.midway.due(trainer.step, trainer.tokens_per_step)
            stop = self._leg(until_step, NEVER if due is None else due, progress)
            if stop is None and trainer.step == due:
                self._save_midway()
        if stop is StopReason.NOT_FINITE:
            loss, norm = trainer.trace.losses[-1], trainer.trace.grad_norms[-1]
            raise DivergedError(f"training diverged at step {trainer.step}: loss {loss}, gradient norm {norm}")
        return stop

    def _leg(self, until_step: int, due: int, progress: Progress | None) -> StopReason | None:
        """Some of the steps up to `until_step`, none beyond `due`: healing text first where there is any, on which
        nothing grows, then the mixture."""
        growing, trainer = self.growing, self.trainer
        healing, mixture = self.healing_steps, self.mixture
        if trainer.step < healing:
            begins = self.assignment.first_step

            def heals(step: int) -> NDArray[np.int64]:
                return mixture.healing_batch(begins + step)

            anchoring = growing.anchoring
            batches = heals if anchoring is None else anchoring.following(heals)
            stop = trainer.run(batches, min(healing, until_step, due), progress)
            if trainer.step == healing:
                trainer.guards.new_text()
            return stop
        first = self.assignment.first_step + self.assignment.before.steps - healing
        return growing.run(lambda step: mixture.batch(first + step), until_step, progress, pause_at=due)

    def _save(self) -> str:
        """Writes the checkpoint; where, below the run's folder."""
        job, prepared, known = self.assignment.job, self.assignment.prepared, self.findings
        # of a job that goes on from a checkpoint the result lies beside it, so that the job can be done again
        name = job.candidate.id + ("" if job.before is None else f"-rung{self.rung}")
        where = f"checkpoints/{name}.safetensors"
        if self.assignment.experiment.evolution.keeps_moments:  # first: where there are weights, there are moments
            save_moments(Path(job.run_dir) / where, self.trainer.updater.moments(), self.trainer.updater.young())
        digest, called = prepared.tokenizer_digest, prepared.tokenizer
        behind = Provenance(
            digest, called, self.vocabulary, known.tokens(), known.begun, self.growing.memory(), known.taken
        )
        extra = {"candidate": job.candidate.id, "steps": str(self.trainer.step), **behind.to_metadata()}
        if events := known.grown_by():
            extra[BEGUN_AS] = canonical_json(job.candidate.blueprint)
            extra[GREW_BY] = canonical_json([event.model_dump(mode="json") for event in events])
        state = self.trainer.model.state_dict()
        save_checkpoint(Path(job.run_dir) / where, state, self.blueprint, extra, self.trainer.averages)
        return where

    def report(
        self,
        status: Status,
        reason: str = "",
        stop_reason: StopReason = StopReason.FULL_RUN,
        checkpoint: str | None = None,
    ) -> Report:
        """What is known of the candidate."""
        known = self.findings.report(status, time.perf_counter() - self.started)
        return known.replace(reason=reason, rung=self.rung, stop_reason=stop_reason, checkpoint=checkpoint)


def _noted(snapshot: Snapshot) -> dict[str, Any]:
    """What a trial noted of itself in a checkpoint, beside its trainer and its growth."""
    plain: dict[str, Any] = snapshot.saved.part("trial").plain
    return plain


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
