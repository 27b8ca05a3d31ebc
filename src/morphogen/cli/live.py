"""A run as it goes on, on a terminal: bars that move, and the frontier after every generation."""

from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Column

from morphogen.candidate import Status
from morphogen.cli.console import best_in_words, frontier_table, show_rows, total_candidates, where
from morphogen.notices import Again, Began, Closed, Ended, Measured, Notice, Training, Warned, log_line

if TYPE_CHECKING:
    from morphogen.experiment import Experiment


class Live:
    """Bars for the run and for the candidate in training, and the frontier after every generation."""

    def __init__(self, console: Console, wide: bool = False) -> None:
        self.console, self.wide = console, wide
        self.experiment: Experiment | None = None
        # whatever the length of an id, the count, the time left and the loss keep their places
        self.bars = Progress(
            TextColumn(
                "{task.description}", markup=False, table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")
            ),
            BarColumn(bar_width=10),
            MofNCompleteColumn(table_column=Column(no_wrap=True, justify="right")),
            TimeRemainingColumn(table_column=Column(no_wrap=True)),
            TextColumn("{task.fields[note]}", markup=False, table_column=Column(no_wrap=True)),
            console=console,
            transient=True,
            expand=True,
            speed_estimate_period=24 * 3600.0,  # a candidate may take hours, and the time left is to be told all along
        )
        self.run: TaskID | None = None
        self.candidate: TaskID | None = None
        self.shown = ""

    def __call__(self, notice: Notice) -> None:
        match notice:
            case Began():
                self.experiment = notice.experiment
                self.console.print(log_line(notice), markup=False)
                total = total_candidates(notice.experiment)
                self.run = self.bars.add_task("candidates", total=total, completed=notice.done, note="")
                self.candidate = self.bars.add_task("", total=None, note="")
                self.bars.start()
            case Warned():
                self.console.print(log_line(notice), style="yellow", highlight=False, markup=False)
            case Training(candidate, position, total, step):
                assert self.candidate is not None
                self.shown = self.shown or candidate.id  # one of those in training, until it is done
                if candidate.id != self.shown:
                    return
                note = f"loss {step.loss:.3f}, gen {candidate.generation} [{position}/{total}]"
                self.bars.update(
                    self.candidate, description=candidate.id, completed=step.step, total=step.steps, note=note
                )
            case Measured():
                assert self.run is not None
                assert self.candidate is not None
                self.bars.advance(self.run, advance=not notice.again)
                if notice.report.id == self.shown:
                    self.shown = ""
                    self.bars.reset(self.candidate, total=None)
                style = "dim" if notice.report.status is Status.TRAINED else "yellow"
                self.console.print(log_line(notice), style=style, highlight=False, markup=False)
            case Again():
                assert self.candidate is not None
                if notice.candidate.id == self.shown:
                    self.shown = ""
                    self.bars.reset(self.candidate, total=None)
                self.console.print(log_line(notice), style="dim", highlight=False, markup=False)
            case Closed():
                self.console.print(log_line(notice), highlight=False, markup=False)
                self._show_frontier(notice)
            case Ended():
                self.stop()
                self.console.print(log_line(notice), highlight=False, markup=False)
                self._show_frontier(notice)
                self.console.print(where(notice), highlight=False, markup=False)
                if line := best_in_words(notice, self.experiment):
                    self.console.print(f"\n{line}", style="bold", highlight=False, markup=False)

    def _show_frontier(self, notice: Closed | Ended) -> None:
        rows, width, first = frontier_table(notice, self.experiment, None if self.wide else self.console.width)
        show_rows(self.console, rows, "frontier", width, first)

    def stop(self) -> None:
        """Takes the bars away, so that the terminal is as it was."""
        self.bars.stop()
