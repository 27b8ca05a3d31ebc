"""What the numbers of a page are, from the registry of figures and from the experiments that make figures of others."""

import json
from collections.abc import Mapping, Sequence

from morphogen.candidate import Report
from morphogen.figures import Figure, find
from morphogen.report.shown import RunShown
from morphogen.report.tables import Row

#: What every report says besides figures: of this page alone.
COUNTED = {
    "generation": Figure("generation", "1", "none", "search", "In which it was bred; the root's is 0."),
    "tokens": Figure("tokens", "tokens", "none", "search", "What this candidate itself was trained on."),
    "lineage_tokens": Figure(
        "lineage_tokens", "tokens", "none", "search", "What it and its distinct ancestors were trained on, together."
    ),
}


def names(runs: Sequence[RunShown]) -> list[str]:
    """Every number that some candidate has: the objectives first, then the rest by name, what is counted last."""
    objectives = dict.fromkeys(name for run in runs for name in run.objectives)
    found = sorted({name for run in runs for report in run.reports.values() for name in _names(report)})
    return [*dict.fromkeys([*objectives, *found, *COUNTED])]


def _names(report: Report) -> set[str]:
    return {*report.metrics, *report.costs, *report.timed}


def meanings(runs: Sequence[RunShown], of: Sequence[str]) -> dict[str, Figure]:
    """What was declared of each; an experiment's own are told as it says them, and of others nothing is known."""
    found = {}
    for name in of:
        made = next((run.composites[name] for run in runs if name in run.composites), None)
        declared = COUNTED.get(name) or (find(name) if made is None else _composite(name, made))
        if declared is not None:
            found[name] = declared
    return found


def _composite(name: str, made: Mapping[str, object]) -> Figure:
    better = made.get("better")
    told = f"Made by the experiment: {made.get('op')} of {json.dumps(made.get('of'))}."
    return Figure(name, "", "min" if better == "min" else "max" if better == "max" else "none", "search", told)


def meaning_rows(figures: Mapping[str, Figure]) -> list[Row]:
    """A row for every figure."""
    arrows = {"min": "less", "max": "more", "none": "-"}
    return [
        {
            "figure": name,
            "unit": figure.unit,
            "better": arrows[figure.better],
            "sort": figure.sort,
            "what it is": figure.summary,
        }
        for name, figure in figures.items()
    ]
