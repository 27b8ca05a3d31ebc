"""What a job asks for, read once: how the candidate is trained, on what, up to which steps, with which seeds."""

from collections.abc import Mapping
from typing import NamedTuple, Self

from pydantic import ValidationError

from morphogen.blueprint.schema import Blueprint
from morphogen.candidate import Job, Report, Status, stream
from morphogen.data.prepare import PreparedData, prepare
from morphogen.errors import CandidateError, InputError
from morphogen.experiment import Experiment
from morphogen.training.device import choose_device
from morphogen.training.precision import chosen


class Ending(NamedTuple):
    """One rung, and the step of this job that it ends at."""

    rung: int
    step: int


class Assignment(NamedTuple):
    """A job with its experiment as the candidate trains, its text made ready, and the vocabulary's size filled in.

    before: what earlier jobs found of the same candidate. blueprint: the architecture that this job begins with.
    """

    job: Job
    experiment: Experiment
    prepared: PreparedData
    before: Report
    blueprint: Blueprint

    @classmethod
    def of(cls, job: Job, prepared: PreparedData | None) -> Self:
        """InputError where the experiment, or the blueprint, means nothing here."""
        experiment = _experiment(job)
        if experiment.train.bf16 == "auto":  # a job of no run
            experiment = experiment.in_precision(chosen(experiment.train, choose_device(job.device)).bf16)
        ready = prepare(experiment.data, experiment.train.accumulate) if prepared is None else prepared
        job = _with_vocab(job, ready.vocab_size)
        before = Report(id=job.candidate.id, status=Status.PROPOSED) if job.before is None else job.before
        blueprint = Blueprint.model_validate(job.candidate.as_trained(before).blueprint)
        return cls(job, experiment, ready, before, blueprint)

    @property
    def gated(self) -> bool:
        """Whether there are gates after rung 1."""
        return self.experiment.train.ppl_stop_threshold is not None or len(self.experiment.evolution.rung1_gates) > 0

    def endings(self) -> list[Ending]:
        """Every rung that trains at all, under `train.max_tokens`. CandidateError where none does.

        Rung 1 is a batch at least where gates stand after it, at the expense of rung 2: the tokens that a costly
        candidate has under `budget: flops` may give less, and it would pass unmeasured.
        """
        per_step, equal_flops = self.prepared.tokens_per_step, self.experiment.evolution.budget == "flops"
        most_tokens = self.experiment.train.max_tokens - self.before.tokens.own
        whole_tokens = sum(stage.budget_tokens for stage in self.job.stages)
        last = min(whole_tokens, most_tokens) // per_step
        if last < 1:
            rungs = " and ".join(f"rung {stage.rung}" for stage in self.job.stages)
            raise CandidateError(
                f"{rungs}: got {whole_tokens} tokens in all"
                f"{' for as many FLOPs as the root has' if equal_flops else ''} (train.max_tokens leaves "
                f"{most_tokens}), expected at least one batch of {per_step}"
            )
        endings: list[Ending] = []
        budget_tokens = done = 0
        for stage in self.job.stages:
            budget_tokens += stage.budget_tokens
            until = min(budget_tokens, most_tokens) // per_step
            if stage.rung == 1 and self.gated:
                until = max(1, until)
            if until > done:
                endings.append(Ending(stage.rung, until))
                done = until
        return endings

    @property
    def data_seed(self) -> int:
        """Of the order in which the run reads the text: one for all candidates, each of which begins at its place."""
        return int(stream(self.job.seed, 0, "data").integers(2**63))

    @property
    def first_step(self) -> int:
        """The candidate's place in that order; a repeat has an order of its own, from its beginning."""
        return 0 if self.job.repeat else self.job.first_token // self.prepared.tokens_per_step

    @property
    def own_data_seed(self) -> int:
        """Of the order in which this candidate reads it; in a repeat that of all which are repeated."""
        if self.job.repeat:
            return int(stream(self.job.seed, self.job.repeat, "data/repeat").integers(2**63))
        return self.data_seed

    @property
    def root_seed(self) -> int:
        """Of the weights that the run's root, its candidate 0, began with."""
        return int(stream(self.job.seed, 0, f"weights/{self.experiment.train.seed}").integers(2**31))

    def seed(self, purpose: str) -> int:
        """Of one purpose of this candidate; `train.seed` gives other repeats of the same search. A repeat begins with
        the weights that it began with, and shares all else with what is repeated beside it."""
        index, repeat = self.job.candidate.index, self.job.repeat
        if repeat and purpose != "weights":
            index, purpose = repeat, f"{purpose}/repeat"
        rng = stream(self.job.seed, index, f"{purpose}/{self.experiment.train.seed}")
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
