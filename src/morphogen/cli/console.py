"""What a run and what was found look like: on a terminal, in plain lines, as JSON for machines."""

import json
import os
import time
from collections.abc import Callable, Sequence
from typing import IO, TYPE_CHECKING, Any, Protocol

from morphogen.against_root import NOT_MEASURED
from morphogen.cli.facts import finite
from morphogen.escape import json_shown, visible
from morphogen.notices import Again, Began, Closed, Ended, Measured, Notice, Observer, Training, Warned, log_line
from morphogen.report.tables import Row, as_table, as_text, frontier_rows
from morphogen.report.wording import duration, verdict

if TYPE_CHECKING:
    from rich.console import Console

    from morphogen.experiment import Experiment

#: Whole lines of training progress are printed at most this often.
LINE_SECONDS = 15.0


def total_candidates(experiment: "Experiment") -> int:
    """How many candidates a run trains when none is turned away."""
    return sum(experiment.evolution.sizes)


def observer_for(console: "Console", as_json: bool, wide: bool = False) -> Observer:
    """JSON lines, a live display on a terminal, or plain lines. wide: tables in all their columns."""
    from morphogen.cli.live import Live

    if as_json:
        return JsonLines(console.file)
    if console.is_terminal:
        return Live(console, wide)
    return Lines(lambda line: print(line, file=console.file, flush=True), width=None if wide else plain_width())


def plain_width() -> int | None:
    """The columns that output which is no terminal is to keep to: $COLUMNS where it is set, else any number."""
    told = os.environ.get("COLUMNS", "")
    return int(told) if told.isdecimal() and int(told) > 0 else None


def where(ended: Ended) -> str:
    """Where to look now."""
    folder = ended.folder
    return "\n".join(
        f"{what:<9} {folder / name}"
        for what, name in (("frontier", "frontier.json"), ("picture", "lineage.svg"), ("report", "report.html"))
    )


class Lines:
    """One line per finished candidate, with the time left; now and then one of training."""

    def __init__(
        self, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic, width: int | None = None
    ) -> None:
        self.say, self.clock, self.width = say, clock, width
        self.experiment: Experiment | None = None
        self.done = self.done_at_start = 0
        self.started = self.last_line = clock()

    def __call__(self, notice: Notice) -> None:
        match notice:
            case Began():
                self.experiment = notice.experiment
                self.done = self.done_at_start = notice.done
                self.started = self.last_line = self.clock()
                self.say(log_line(notice))
            case Training(candidate, position, total, step):
                if self.clock() - self.last_line >= LINE_SECONDS:
                    self.last_line = self.clock()
                    place = f"  [{position}/{total}] {candidate.id}"
                    self.say(f"{place} step {step.step}/{step.steps} loss {step.loss:.3f}")
            case Measured():
                self.done += not notice.again
                self.last_line = self.clock()
                self.say(f"{log_line(notice)}{self._left()}")
            case Again():
                self.last_line = self.clock()
                self.say(log_line(notice))
            case Closed() | Warned():
                self.say(log_line(notice))
            case Ended():
                self.say(f"{log_line(notice)}\n")
                self.say(as_text(*frontier_table(notice, self.experiment, self.width)))
                self.say(where(notice))
                self._say_verdict(notice)

    def _say_verdict(self, ended: Ended) -> None:
        if line := best_in_words(ended, self.experiment):
            self.say(f"\n{line}")

    def _left(self) -> str:
        assert self.experiment is not None
        left = total_candidates(self.experiment) - self.done
        if left <= 0 or self.done == self.done_at_start:
            return ""
        seconds = (self.clock() - self.started) / (self.done - self.done_at_start) * left
        return f", about {duration(seconds)} left"


class JsonLines:
    """One JSON object a line: everything an observer is told."""

    def __init__(self, file: IO[str]) -> None:
        self.file = file

    def __call__(self, notice: Notice) -> None:
        print(json_shown(json.dumps(as_record(notice), allow_nan=False)), file=self.file, flush=True)


def as_record(notice: Notice) -> dict[str, Any]:
    """A notice as plain data; numbers that are not finite are null."""
    match notice:
        case Began():
            told: dict[str, Any] = {"event": "began", "run": notice.run, "folder": str(notice.folder)}
            told |= {"done": notice.done, "total": total_candidates(notice.experiment)}
            told |= {"device": notice.device, "begun_on": notice.begun_on}
        case Warned(text):
            told = {"event": "warning", "text": text}
        case Training(candidate, position, total, step):
            told = {"event": "step", "id": candidate.id, "generation": candidate.generation, "position": position}
            told |= {"total": total, "step": step.step, "steps": step.steps, "loss": step.loss, "tokens": step.tokens}
        case Measured():
            told = {
                "event": "measured",
                "generation": notice.candidate.generation,
                **notice.report.model_dump(mode="json"),
            }
        case Again():
            told = {"event": "again", **notice.report.model_dump(mode="json")}
        case Closed(generation):
            told = {"event": "closed", **generation.model_dump(mode="json", exclude={"kind"})}
        case Ended():
            told = {"event": "ended", "folder": str(notice.folder), "frontier": list(notice.closed[-1].frontier)}
            told["against_root"] = {
                id: [one.model_dump(mode="json") for one in found] for id, found in notice.against_root.items()
            }
    return {name: finite(item) for name, item in told.items()}


def frontier_table(
    notice: Closed | Ended, experiment: "Experiment | None", width: int | None
) -> tuple[list[Row], int | None, tuple[str, ...]]:
    """The frontier's rows, the width they have, and the columns that matter most: as `tables.fit` takes them."""
    assert experiment is not None
    ids = notice.generation.frontier if isinstance(notice, Closed) else notice.closed[-1].frontier
    objectives = experiment.evolution.objectives
    measured = notice.against_root if isinstance(notice, Ended) else NOT_MEASURED
    rows = frontier_rows(notice.candidates, notice.reports, ids, objectives, measured)
    compared = [f"{name} - root's" for name in objectives]
    return rows, width, ("id", *objectives, *compared)


def best_in_words(ended: Ended, experiment: "Experiment | None") -> str:
    """The best against the root, in one line; empty where that was not measured."""
    assert experiment is not None
    return visible(verdict(ended.against_root, ended.reports, experiment.evolution.objectives))


def show_rows(
    console: "Console", rows: Sequence[Row], title: str, width: int | None, first: Sequence[str] = ()
) -> None:
    """A table on a terminal; as plain text where it is none, or where the table may be wider than it."""
    if console.is_terminal and width is not None:
        console.print(as_table(rows, title, width, first))
    else:
        print(f"{title}\n{as_text(rows, width, first)}", end="", file=console.file, flush=True)


def show_table(rows: Sequence[Row], title: str, wide: bool, first: Sequence[str] = ()) -> None:
    """A table on standard output, as wide as the terminal, or as it takes."""
    from rich.console import Console

    console = Console()
    width = console.width if console.is_terminal else plain_width()
    show_rows(console, rows, title, None if wide else width, first)


class Tabled(Protocol):
    """A document with a table of its own."""

    def to_json(self) -> str:
        """The file's text."""

    def rows(self) -> list[Row]:
        """The table."""


def show_measured(found: Tabled, title: str, as_json: bool, wide: bool) -> None:
    """A measurement as its JSON file, or as a table."""
    if as_json:
        print(json_shown(found.to_json()), end="")
    else:
        show_table(found.rows(), title, wide)
