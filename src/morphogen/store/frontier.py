"""`frontier.json`: the Pareto frontier of a run, with all that is known of each candidate."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import SerializerFunctionWrapHandler, model_serializer

from morphogen.against_root import NOT_MEASURED, AgainstRoot, Difference
from morphogen.candidate import (
    Beside,
    Candidate,
    CandidateId,
    CheckpointPath,
    Edit,
    Growth,
    Inheritance,
    Record,
    Report,
    Status,
    Tokens,
    Twin,
)
from morphogen.store.documents import Document


class Entry(Record):
    """One candidate of the frontier, its blueprint as trained. `timed` holds what depends on the machine's clock and
    memory; all else repeats. growth: how it came to be another than its edits made it. against_root: what repeats on
    other seeds found, where there were any."""

    id: CandidateId
    blueprint: dict[str, Any]
    parents: tuple[CandidateId, ...]
    edits: tuple[Edit, ...]
    metrics: dict[str, float]
    errors: dict[str, float] = {}
    timed: dict[str, float]
    costs: dict[str, float]
    tokens: Tokens
    flops: float
    tokens_beside: Beside = 0
    twin: Twin | None = None
    inheritance: Inheritance | None
    checkpoint: CheckpointPath | None
    status: Status
    growth: Growth = ()
    against_root: tuple[Difference, ...] = ()

    @model_serializer(mode="wrap")
    def _without_what_nobody_measured(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        found: dict[str, Any] = dump(self)
        return {name: value for name, value in found.items() if name not in ("errors", "twin", "against_root") or value}


class Frontier(Document):
    """The file. `hypervolume` is that of the last closed generation."""

    title: ClassVar[str] = "frontier"
    objectives: dict[str, Literal["min", "max"]]
    hypervolume: float
    candidates: tuple[Entry, ...]


def build_frontier(
    run: str,
    objectives: Mapping[str, Literal["min", "max"]],
    hypervolume: float,
    candidates: Mapping[str, Candidate],
    reports: Mapping[str, Report],
    ids: Sequence[str],
    against_root: AgainstRoot = NOT_MEASURED,
) -> Frontier:
    """The frontier of the candidates named by `ids`, in order of candidate index. Each of them must have a report."""
    entries = []
    for candidate in sorted((candidates[id] for id in ids), key=lambda candidate: candidate.index):
        report = reports[candidate.id]
        entries.append(
            Entry(
                id=candidate.id,
                blueprint=candidate.as_trained(report).blueprint,
                parents=candidate.parents,
                edits=candidate.edits,
                metrics=report.metrics,
                errors=report.errors,
                timed=report.timed,
                costs=report.costs,
                tokens=report.tokens,
                flops=report.flops,
                tokens_beside=report.tokens_beside,
                twin=report.without_influence.twin,
                inheritance=report.inheritance,
                checkpoint=report.checkpoint,
                status=report.status,
                growth=report.growth,
                against_root=against_root.get(candidate.id, ()),
            )
        )
    return Frontier(run=run, objectives=dict(objectives), hypervolume=hypervolume, candidates=tuple(entries))
