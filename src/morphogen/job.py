"""What evaluating one candidate needs: plain, frozen, picklable data, as `candidate`. No torch here."""

from typing import Any

from morphogen.candidate import Candidate, CandidateId, CheckpointPath, Record, Report, Twin, Whole


class ParentRef(Record):
    """A trained parent as a job needs it: its blueprint as trained, and where its weights lie (relative to the run
    folder)."""

    id: CandidateId
    blueprint: dict[str, Any]
    checkpoint: CheckpointPath


class Stage(Record):
    """One rung to train: its number and its own token budget."""

    rung: Whole
    budget_tokens: Whole


class Ancestor(Record):
    """One distinct ancestor's training: where in the run's text it began, and how many steps and tokens it took."""

    first_token: Whole
    steps: Whole
    tokens: Whole


class Job(Record):
    """All that evaluating one candidate needs. Pure data: the same job gives the same report anywhere.

    `seed` is the run's seed; streams derive from `(seed, candidate.index, purpose)`. `run_dir` is where checkpoint
    paths start. `before`: what an earlier job measured of the same candidate, which this one goes on to train.
    `first_token`: where in the run's text its training begins, the same for all candidates that are compared.
    `with_twin`: whether a twin is trained beside it, by which selection judges. `twin`: that of the parent which it
    continues, the same blueprint, so that none has to be trained.
    `budget_tokens`: what all candidates may spend by the experiment, in tokens of this one; 0 where nobody said.
    `repeat`: from 1 on, one more training from the same start, whose batches and dropout depend on this number alone
    and which leaves no checkpoint.
    """

    experiment: dict[str, Any]
    candidate: Candidate
    parents: tuple[ParentRef, ...]
    ancestors: tuple[Ancestor, ...]
    stages: tuple[Stage, ...]
    seed: int
    run_dir: str
    device: str
    before: Report | None = None
    with_twin: bool = False
    twin: Twin | None = None
    first_token: Whole = 0
    budget_tokens: Whole = 0
    repeat: Whole = 0
