"""Looking at a run's folder without touching it: where it stands, how its frontier came about, its picture."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from morphogen.candidate import Candidate, Report
from morphogen.errors import InputError
from morphogen.evolve import FINISHED, RESOLVED
from morphogen.reading import read_experiment
from morphogen.report.subway import lineage_dot, lineage_svg
from morphogen.report.wording import edit_lines, number, origin_lines
from morphogen.search.engine import Engine
from morphogen.store.files import write_atomic
from morphogen.store.frontier import Frontier
from morphogen.store.ledger import Event, Ledger, Start, Stop
from morphogen.store.lineage import Lineage


def standing(folder: Path) -> dict[str, Any]:
    """State, generation, candidates by status, best values of a run, by replaying its ledger. RunError as `Ledger`."""
    with Ledger.open(folder, readonly=True) as ledger:
        events = list(ledger.events())
    if not events or not isinstance(events[0], Start):
        return {"state": "nothing begun"}
    experiment = read_experiment(folder / RESOLVED)
    engine = Engine.replay(events, run_dir=str(folder), device="cpu", experiment=experiment)
    counts = Counter(str(report.status) for report in engine.reports.values())
    last = events[-1]
    told: dict[str, Any] = {
        "run": events[0].run,
        "seed": events[0].seed,
        "state": _state(last, engine.done),
        "generation": engine.generation,
        "generations": experiment.evolution.generations,
        "candidates": dict(sorted(counts.items())) | {"pending": len(engine.pending())},
        "training_tokens": sum(report.tokens.own for report in engine.reports.values()),
    }
    if engine.generations:
        told["hypervolume"] = round(engine.generations[-1].hypervolume, 6)
        told["frontier"] = len(engine.frontier_ids)
        for name, direction in experiment.evolution.objectives.items():
            values = [(engine.reports[id].value(name), id) for id in engine.frontier_ids]
            if known := [(value, id) for value, id in values if value is not None]:
                value, id = (min if direction == "min" else max)(known)
                told[f"best {name}"] = f"{number(value)} ({id})"
    return told


def _state(last: Event, done: bool) -> str:
    if isinstance(last, Stop) and (done or last.reason != FINISHED):
        return f"{last.reason}{'' if done else '; --resume goes on'}"
    return "running, or killed; --resume goes on"


def ancestry(candidates: Mapping[str, Candidate], reports: Mapping[str, Report], id: str) -> str:
    """A candidate's line of first parents from the root on, with every edit; other parents are named."""
    line = [candidates[id]]
    while line[-1].parents:
        line.append(candidates[line[-1].parents[0]])
    text = []
    for candidate in reversed(line):
        report = reports[candidate.id]
        bpb = f", bpb {report.metrics['bpb']:.4f}" if "bpb" in report.metrics else ""
        also = "".join(f", also from {parent}" for parent in candidate.parents[1:])
        text.append(f"{candidate.id}{bpb}, {number(report.tokens.lineage)} lineage tokens{also}")
        text += [f"    {row}" for edit in candidate.edits for row in edit_lines(edit)]
        text += [f"    {row}" for row in (origin_lines(report) if candidate.parents else [])]
    return "\n".join(text)


def draw(folder: Path, out: Path) -> None:
    """The lineage of the run in `folder` as an SVG, or as text for Graphviz where `out` ends in .dot."""
    found = Lineage.read(folder / "lineage.json")
    candidates, reports = found.records()
    if out.suffix == ".dot":
        text = lineage_dot(candidates, reports, found.frontier)
    elif out.suffix == ".svg":
        known = folder / "frontier.json"
        objectives = Frontier.read(known).objectives if known.exists() else {}
        text = lineage_svg(found.run, candidates, reports, found.frontier, objectives)
    else:
        raise InputError(f"{out}: got ending {out.suffix!r}, expected .svg or .dot")
    write_atomic(out, text.encode())
