"""Checkpoints that are lost are trained again, from the ledger alone: a job is pure data. Called by `session`."""

from collections.abc import Callable
from pathlib import Path

from morphogen.blueprint.schema import Blueprint
from morphogen.candidate import Candidate, Report, Status
from morphogen.errors import InputError, RunError
from morphogen.execution import Executor
from morphogen.inherit.checkpoint import load_checkpoint, load_moments
from morphogen.search.engine import Engine
from morphogen.search.repeats import again, due
from morphogen.search.rungs import rounds

#: By how much, relative to what is on record, a checkpoint that was trained again may differ in bits per byte: other
#: devices and libraries round differently.
TOLERANCE = 1e-3


def needed(engine: Engine) -> list[str]:
    """Candidates whose checkpoints the run needs: the frontier, parents of those in training, those that a further
    round goes on from, and survivors unless all generations are done."""
    waiting = [*engine.pending(), *(job.candidate for job in due(engine))]
    parents = [parent for candidate in waiting for parent in candidate.parents]
    going_on = [candidate.id for candidate in waiting if engine.round]
    return [*engine.frontier_ids, *parents, *going_on, *(() if engine.done else engine.survivors)]


def lost(engine: Engine, folder: Path) -> list[Candidate]:
    """Those needed whose checkpoint is missing, all whose checkpoint is damaged, and of their ancestors those that it
    takes to train them again; ancestors first."""
    inherits = engine.evolution.weight_inheritance == "parent"
    found: dict[str, Candidate] = {}
    kept = [id for id, report in engine.reports.items() if (folder / (report.checkpoint or "")).is_file()]
    left = [*needed(engine), *kept]
    while left:
        candidate, report = engine.known(left.pop())
        if candidate.id not in found and not _whole(engine, folder, candidate, report):
            found[candidate.id] = candidate
            left += candidate.parents if inherits else ()
    return sorted(found.values(), key=lambda candidate: candidate.index)


def retrain_lost(engine: Engine, folder: Path, executor: Executor, say: Callable[[str], None]) -> None:
    """Trains what is `lost` again, as it was. RunError where that fails, or gives something else than is on record."""
    for candidate in lost(engine, folder):
        _, recorded = engine.known(candidate.id)
        made = _trained_again(engine, candidate, recorded, executor)
        new, old = made.metrics.get("bpb"), recorded.metrics.get("bpb")
        same = all(recorded.metrics.get(name) == value for name, value in made.metrics.items())
        if not same and (new is None or old is None or abs(new - old) > TOLERANCE * abs(old)):
            raise RunError(
                f"{folder / (recorded.checkpoint or '')}: trained again, {candidate.id} has bpb {new}, and {old} is on "
                "record: libraries, device or text are others; restore the file from a copy"
            )
        figures = "the same figures" if same else f"bpb {new}, was {old}"
        say(f"trained the lost checkpoint of {candidate.id} again: {figures}")


def _trained_again(engine: Engine, candidate: Candidate, recorded: Report, executor: Executor) -> Report:
    """Round after round, up to the one that left the recorded checkpoint; a control has one alone."""
    before = None
    for number in range(len(rounds(engine.evolution))):
        control = candidate.id in engine.again
        job = again(engine, candidate.id) if control else engine.job_in(candidate, number, before)
        (made,) = executor.map([job], lambda candidate, step: None)
        if made.status is not Status.TRAINED:
            raise RunError(f"candidate {candidate.id} could not be trained again: {made.reason}")
        if made.checkpoint == recorded.checkpoint:
            return made
        before = made
    raise RunError(f"candidate {candidate.id} was trained again, but left no {recorded.checkpoint}")


def _whole(engine: Engine, folder: Path, candidate: Candidate, report: Report) -> bool:
    """Whether its checkpoint can be inherited from; nothing is to be done for one that never had any."""
    if report.checkpoint is None:
        return True
    try:
        _, blueprint, extra = load_checkpoint(folder / report.checkpoint)
        if engine.evolution.keeps_moments:
            load_moments(folder / report.checkpoint, blueprint)
    except InputError:
        return False
    wanted = Blueprint.model_validate(candidate.as_trained(report).blueprint)
    return extra.get("candidate") == report.id and blueprint == wanted
