"""Looking at a run's folder without touching it: where it stands, how its frontier came about, its picture."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, NonNegativeFloat, NonNegativeInt, PositiveInt, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from morphogen.candidate import ANNEALED, Candidate, Report, Status
from morphogen.errors import MorphogenError, RunError
from morphogen.escape import visible
from morphogen.report.wording import duration, edit_lines, number, origin_lines
from morphogen.store.holding import Holder, holder_of
from morphogen.store.ledger import FILE as LEDGER
from morphogen.store.ledger import (
    FINISHED,
    LOCK,
    RESOLVED,
    Asked,
    Event,
    Generation,
    Ledger,
    Repeated,
    Reported,
    Start,
    last_stop,
)
from morphogen.store.ordinary import read_ordinary

#: The section of an experiment that is in block style, as runs write it.
SECTION = re.compile(r"^evolution:[ \t]*\n(?:[ \t#].*(?:\n|\Z)|\n)+", re.M)
#: A line of `run.log`, less the time.
LOGGED = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d (.*)$", re.M)
#: Figures of a report that add up to the time that its candidate took.
CLOCKED = ("train_seconds", "eval_seconds")


def standing(folder: Path) -> dict[str, Any]:
    """State, generation, candidates by status, best values of a run, from its ledger alone. RunError as `Ledger`.

    pending: candidates that wait for their first report. pid, host: of the process that is at it, where one is.
    seconds_left: what the rest would take, one at a time, at the
    mean of those that are done; only while a process is at it.
    """
    with Ledger.open(folder, readonly=True) as ledger:
        events = list(ledger.events())
    if not events or not isinstance(events[0], Start):
        return {"state": "nothing begun"}
    asked = [event for event in events if isinstance(event, Asked)]
    closed = [event for event in events if isinstance(event, Generation)]
    reports = {event.report.id: event.report for event in events if isinstance(event, Reported)}
    evolution = evolution_of(folder, events[0])
    settled = _settled(folder, events, reports, evolution)
    counts = Counter(str(report.status) for report in settled.values())
    if rejected := sum(len(event.rejected) for event in asked):
        counts[str(Status.REJECTED)] = rejected
    pending = sum(len(event.candidates) for event in asked) - rejected - len(reports)
    holder = holder_of(folder, LOCK)
    told: dict[str, Any] = {
        "run": events[0].run,
        "seed": events[0].seed,
        "state": _state(last_stop(events), holder, folder),
        **({} if holder is None or holder.pid is None else holder._asdict()),
        "generation": asked[-1].generation if asked else -1,
        "generations": evolution.generations,
        "candidates": dict(sorted(counts.items())) | {"pending": pending},
        "training_tokens": _tokens(settled, events),
    }
    seconds = [sum(report.timed.get(name, 0.0) for name in CLOCKED) for report in reports.values()]
    if holder is not None and sum(seconds) > 0.0:
        latest = len(asked[-1].candidates) - len(asked[-1].rejected)
        to_come = (evolution.generations + 1 - len(asked)) * max(evolution.population, latest)
        if left := pending + max(0, to_come):  # after that finalists are annealed and measured again, which is untold
            told["seconds_left"] = round(sum(seconds) / len(seconds) * left, 1)
    if refused := sum(len(event.refused) for event in asked):
        told["refused_answers"] = refused
    if closed:
        told["hypervolume"] = closed[-1].hypervolume
        told["frontier"] = len(closed[-1].frontier)
        told["survivors"] = len(closed[-1].survivors)
        if strangers := [id for id in closed[-1].frontier if id not in reports]:
            raise RunError(f"{folder / LEDGER}: {strangers[0]} is on the frontier, but nothing was reported of it")
        told["best"] = _best(evolution.objectives, [settled[id] for id in closed[-1].frontier])
    return told


def _tokens(settled: Mapping[str, Report], events: Sequence[Event]) -> int:
    """What candidates were trained on, with their twins and what they were annealed on; not what finalists are compared
    with the root by."""
    again = [event.report for event in events if isinstance(event, Repeated) and event.report.id.endswith(ANNEALED)]
    annealed = {report.id.removesuffix(ANNEALED): report for report in again if report.status is Status.TRAINED}
    return sum(annealed.get(id, report).tokens_spent for id, report in settled.items())


def _settled(
    folder: Path, events: Sequence[Event], reports: Mapping[str, Report], evolution: "Settings"
) -> Mapping[str, Report]:
    """What became of those that were reported. Their last report does not tell it where they are trained in several
    rounds: halving stops some, and a later rung may fail; nor figures that the search makes itself. Its engine does,
    which takes longer."""
    measured = [report for report in reports.values() if report.status is Status.TRAINED]
    known = all(any(report.value(name) is not None for report in measured) for name in evolution.objectives)
    if evolution.rungs == "fixed" and not evolution.promotion_prob and (known or not measured):
        return reports
    from morphogen.search.engine import Engine

    with suppress(MorphogenError):  # such as code of others, which is not run for this
        engine = Engine.replay(events, run_dir=str(folder), device="cpu")
        return {id: engine.reports[id] for id in reports}
    return reports


class Settings(BaseModel):
    """What is told of a run's settings of evolution."""

    generations: NonNegativeInt
    population: PositiveInt
    objectives: dict[str, Literal["min", "max"]]
    rungs: str = "fixed"
    promotion_prob: NonNegativeFloat = 0.0


def evolution_of(folder: Path, start: Start) -> Settings:
    """The run's settings of evolution as they are now: a resumed run may have been given more generations."""
    begun_with = start.experiment.get("evolution")
    try:
        first = Settings.model_validate(begun_with)
    except ValidationError as error:
        wrong = error.errors(include_url=False)[0]
        place = ".".join(map(str, wrong["loc"]))
        raise RunError(f"{folder / LEDGER}: the recorded experiment: evolution.{place}: {wrong['msg']}") from None
    try:
        text = read_ordinary(folder / RESOLVED).decode()
        found = SECTION.search(text)  # the rest takes longer to read than all else that is told
        now = YAML(typ="safe").load(text if found is None else found[0])["evolution"]
        return Settings.model_validate(first.model_dump() | now)
    except (OSError, YAMLError, ValueError, RecursionError, KeyError, TypeError):
        return first  # what is wrong with the file, `doctor` tells


def _best(objectives: Mapping[str, str], frontier: Sequence[Report]) -> dict[str, dict[str, Any]]:
    """Per objective its best value on the frontier, and who has it."""
    best: dict[str, dict[str, Any]] = {}
    for name, direction in objectives.items():
        known = [(value, report.id) for report in frontier if (value := report.value(name)) is not None]
        if known:
            value, id = (min if direction == "min" else max)(known)
            best[name] = {"value": value, "id": id}
    return best


def _state(stopped: str | None, holder: Holder | None, folder: Path) -> str:
    if holder is not None:
        return f"running ({holder})"
    if stopped is None and (error := _error(folder)):
        return error if "--resume" in error else f"{error}; --resume tries again"
    if stopped is None:
        return "killed; --resume goes on"
    return f"{stopped}{'' if stopped == FINISHED else '; --resume goes on'}"


def _error(folder: Path) -> str:
    """What the run was stopped by, where the last line of its log says so."""
    with suppress(OSError, UnicodeDecodeError):
        lines = LOGGED.findall(read_ordinary(folder / "run.log").decode())
        return lines[-1] if lines and lines[-1].startswith("stopped: ") else ""
    return ""


def in_words(told: Mapping[str, Any]) -> dict[str, Any]:
    """`standing` as it is shown: times and best values in words."""
    shown = {name: value for name, value in told.items() if name not in ("best", "pid", "host")}
    if "hypervolume" in told:
        shown["hypervolume"] = number(told["hypervolume"])
    if "seconds_left" in told:
        del shown["seconds_left"]
        shown["time left"] = f"about {duration(told['seconds_left'])}, one candidate at a time"
    return shown | {
        f"best {name}": f"{number(found['value'])} ({found['id']})" for name, found in told.get("best", {}).items()
    }


def ancestry(candidates: Mapping[str, Candidate], reports: Mapping[str, Report], id: str) -> str:
    """A candidate's line of first parents from the root on, with every edit; other parents are named."""
    line = [candidates[id]]
    while line[-1].parents:
        line.append(candidates[line[-1].parents[0]])
    text = []
    for candidate in reversed(line):
        report = reports[candidate.id]
        value = report.value("bpb")
        bpb = "" if value is None else f", bpb {value:.4f}"
        also = "".join(f", also from {parent}" for parent in candidate.parents[1:])
        by = f", proposed by {candidate.proposer}" if candidate.proposer else ""
        text.append(f"{candidate.id}{bpb}, {number(report.tokens.lineage)} lineage tokens{also}{by}")
        text += [f"    {row}" for edit in candidate.edits for row in edit_lines(edit)]
        text += [f"    {row}" for row in (origin_lines(report) if candidate.parents else [])]
    return "\n".join(visible(line) for line in text)
