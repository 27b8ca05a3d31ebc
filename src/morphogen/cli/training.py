"""What a training looks like: a bar on a terminal, plain lines, or JSON for machines."""

import json
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext, redirect_stdout, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Column

from morphogen.cli.architecture import in_words, size_of
from morphogen.cli.console import LINE_SECONDS
from morphogen.cli.facts import aside, finite, show_facts
from morphogen.cli.launch import INTERRUPTED
from morphogen.errors import RunError
from morphogen.escape import json_shown, visible
from morphogen.growth.log import line
from morphogen.paths import user_path
from morphogen.report.wording import duration, number
from morphogen.training.long_run import MODEL
from morphogen.training.news import Evaluated, Grew, News, Noted, Observer, Stepped
from morphogen.training.terms import Outcome
from morphogen.trainingfolder import PICTURE
from morphogen.trainings import train

if TYPE_CHECKING:
    from morphogen.cli.commands.train import TrainOptions


def carry_out(options: "TrainOptions") -> None:
    """Trains as the options say, showing how it goes, and says at the end what came of it. An interrupt leaves a
    checkpoint, and so does an output that nobody reads any more."""
    observer = observer_for(Console(), options.as_json)
    same = "the same command, without --grow but with --resume," if options.grow else "the same command with --resume"
    go_on = f"{same} goes on (training in {options.output_dir})"

    def tell(news: News) -> None:
        try:
            observer(news)
        except (OSError, UnicodeError, SystemExit) as error:  # rich exits where nobody reads any more
            why = error.strerror if isinstance(error, OSError) else error if isinstance(error, UnicodeError) else None
            raise RunError(f"stdout: cannot be written: {why or 'nobody reads it'}; {go_on}") from None

    begun = time.monotonic()
    try:
        with redirect_stdout(sys.stderr) if options.as_json else nullcontext():  # a plug-in may print
            outcome = train(
                options.source,
                options.output_dir,
                steps=options.steps,
                asked=options.asked(),
                resume=options.resume,
                device=options.device,
                nproc=options.nproc,
                checkpoint_every=options.checkpoint_every,
                keep=options.keep,
                eval_every=options.eval_every,
                grow=tuple(options.grow or ()),
                early_stop=options.early_stop,
                tensorboard=options.tensorboard,
                observer=tell,
            )
    except KeyboardInterrupt:
        aside(f"interrupted; {go_on}")
        raise
    finally:
        if isinstance(observer, Bar):
            with suppress(OSError):
                observer.stop()
    if outcome.interrupted:
        aside(f"interrupted at step {outcome.step}, of which there is a checkpoint; {go_on}")
        raise typer.Exit(INTERRUPTED)
    show_facts(
        summary(outcome, user_path(options.output_dir, "--output-dir"), time.monotonic() - begun), options.as_json
    )


def summary(outcome: Outcome, folder: Path, seconds: float) -> dict[str, Any]:
    """What came of a training."""
    ended = "" if outcome.stop is None else f", ended early: {outcome.stop.name.lower()}"
    return {
        "steps": outcome.step if not ended else f"{outcome.step}{ended}",
        "tokens": outcome.tokens,
        "held-out bits per byte": outcome.bpb if outcome.bpb is None else round(outcome.bpb, 4),
        "model": in_words(size_of(outcome.blueprint)),
        "growth events": outcome.events,
        "time": duration(seconds),
        "weights": str(folder / MODEL),
        "picture": str(folder / PICTURE),
    }


def observer_for(console: Console, as_json: bool) -> "Observer | Bar":
    """JSON lines, a bar on a terminal, or plain lines."""
    if as_json:
        return JsonLines(console.file)
    if console.is_terminal:
        return Bar(console)
    return Lines(lambda text: print(text, file=console.file, flush=True))


def said(news: News) -> str:
    """News as a line; empty for a step."""
    match news:
        case Grew(row):
            return line(row)
        case Evaluated(step, bpb):
            return f"step {step}: held-out {bpb:.4f} bits per byte"
        case Noted(text):
            return visible(f"note: {text}")
        case Stepped():
            return ""


def standing(stepped: Stepped) -> str:
    """Loss, size and last event in a few words."""
    event = f", last {stepped.event}" if stepped.event else ""
    return f"loss {stepped.step.loss:.3f}, {number(stepped.params)} parameters{event}"


class Lines:
    """A line for every event, and now and then one of training."""

    def __init__(self, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self.say, self.clock = say, clock
        self.last_line = clock()

    def __call__(self, news: News) -> None:
        if text := said(news):
            self.say(text)
        elif isinstance(news, Stepped) and self.clock() - self.last_line >= LINE_SECONDS:
            self.last_line = self.clock()
            self.say(f"  step {news.step.step}/{news.step.steps} {standing(news)}")


class Bar:
    """A bar with the loss, the size and the last event; what happens above it."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bar = Progress(
            TextColumn("step"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(table_column=Column(no_wrap=True, justify="right")),
            TimeRemainingColumn(table_column=Column(no_wrap=True)),
            TextColumn("{task.fields[note]}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis")),
            console=console,
            transient=True,
        )
        self.task: TaskID | None = None

    def __call__(self, news: News) -> None:
        if text := said(news):
            self.console.print(text, highlight=False, markup=False, style="yellow" if isinstance(news, Noted) else None)
        elif isinstance(news, Stepped):
            if self.task is None:
                self.task = self.bar.add_task("", total=news.step.steps, note="")
                self.bar.start()
            self.bar.update(self.task, completed=news.step.step, note=standing(news))

    def stop(self) -> None:
        """Takes the bar away."""
        self.bar.stop()


class JsonLines:
    """One JSON object a line."""

    def __init__(self, file: IO[str]) -> None:
        self.file = file

    def __call__(self, news: News) -> None:
        print(json_shown(json.dumps(finite(as_record(news)), allow_nan=False)), file=self.file, flush=True)


def as_record(news: News) -> dict[str, Any]:
    """News as plain data."""
    match news:
        case Stepped(step, params, event):
            told = {"step": step.step, "steps": step.steps, "loss": step.loss, "tokens": step.tokens}
            return {"event": "step", **told, "params": params, "last": event}
        case Grew(row):
            return {**row.model_dump(mode="json"), "event": "growth", "name": row.event}
        case Evaluated(step, bpb):
            return {"event": "evaluated", "step": step, "bpb": bpb}
        case Noted(text):
            return {"event": "note", "text": text}
