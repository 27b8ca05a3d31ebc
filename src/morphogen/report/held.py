"""What a page holds of its candidates, for its scripts: every number, blueprint, edit and curve once."""

from collections.abc import Mapping, Sequence
from typing import Any

from morphogen.candidate import Candidate, Report, Status
from morphogen.figures import Figure
from morphogen.report.blueprints import pieces
from morphogen.report.charts import cleaned, plain_number
from morphogen.report.meanings import COUNTED
from morphogen.report.shown import RunShown
from morphogen.report.wording import edit_lines, edits_short, origin_lines


def held(runs: Sequence[RunShown], names: Sequence[str], figures: Mapping[str, Figure]) -> dict[str, Any]:
    """The data of a page.

    Args:
        runs: What it shows.
        names: Every number that some candidate has, in the order of columns.
        figures: What is known of each.

    Returns:
        Plain data: `runs`, `names`, `figures`, `pieces` of blueprints, and `candidates`, whose `values` are in the
        order of `names`, whose `blueprint` names its pieces by position, whose `parents` are positions of candidates.
    """
    known: dict[str, int] = {}
    candidates: list[dict[str, Any]] = []
    for number, run in enumerate(runs):
        places = {candidate.id: len(candidates) + k for k, candidate in enumerate(run.in_order)}
        survivors = {id for closed in run.survivors[-1:] for id in closed}
        marks = ("frontier", set(run.frontier)), ("survivor", survivors), ("root", {run.root})
        for candidate in run.in_order:
            report = run.reports.get(candidate.id) or Report(id=candidate.id, status=Status.PROPOSED)
            trained = candidate.as_trained(report)
            yaml = pieces(trained.blueprint) if trained.blueprint else []
            one = _candidate(candidate, report, names)
            one |= {"run": number, "parents": [places[parent] for parent in candidate.parents if parent in places]}
            one["blueprint"] = [known.setdefault(piece, len(known)) for piece in yaml]
            one |= {mark: True for mark, ids in marks if candidate.id in ids}
            candidates.append(one)
    told = {
        "runs": [{"name": run.run, "objectives": list(run.objectives.items())} for run in runs],
        "names": list(names),
        "figures": {
            name: {"unit": one.unit, "better": one.better, "sort": one.sort, "summary": one.summary}
            for name, one in figures.items()
        },
        "pieces": list(known),
        "candidates": candidates,
    }
    shown: dict[str, Any] = cleaned(told)
    return shown


def _candidate(candidate: Candidate, report: Report, names: Sequence[str]) -> dict[str, Any]:
    """One of them; what there is nothing of is left out."""
    counted = dict(zip(COUNTED, (candidate.generation, report.tokens.own, report.tokens.lineage), strict=True))
    found: dict[str, Any] = {
        "id": candidate.id,
        "status": str(report.status),
        "edits": edits_short(candidate),
        "values": [_value(counted.get(name, report.value(name))) for name in names],
    }
    errors = {name: _value(error) for name in names if (error := report.error(name)) is not None}
    more: dict[str, Any] = {
        "reason": report.reason,
        "changes": [line for edit in candidate.edits for line in edit_lines(edit)],
        "origins": origin_lines(report),
        "proposer": candidate.proposer,
        "errors": errors,
        "steps": [step for step, _ in report.losses],
        "losses": [_value(loss) for _, loss in report.losses],
        "grew": [f"step {event.own_steps}: {event.action}, because {event.reason}" for event in report.growth],
    }
    return found | {name: value for name, value in more.items() if value}


def _value(value: float | None) -> Any:
    return None if value is None else plain_number(value)
