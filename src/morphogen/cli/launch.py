"""What the command line and the scripts share: reading an experiment, carrying a run out or rehearsing it, and exiting.

Nothing heavy is imported until it is needed.
"""

import functools
import io
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import typer

from morphogen.errors import InputError, MorphogenError, RunError, unknown
from morphogen.escape import visible, visible_lines
from morphogen.paths import user_path

if TYPE_CHECKING:
    from morphogen.execution import Execution
    from morphogen.experiment import Experiment
    from morphogen.keeping import Keep
    from morphogen.notices import Notice

INTERRUPTED = 130


def read_experiment(file: str) -> "Experiment":
    """The experiment in a YAML file; InputError with one line per mistake."""
    from morphogen import reading

    return reading.read_experiment(file)


def read_reachable(file: str) -> "Experiment":
    """The same, once the hub answers where it is needed: whether it does may take long to know, as what a run imports
    takes long to import."""
    from morphogen import reading
    from morphogen.data.prepare import check_reachable

    experiment = read_experiment(file)
    with reading.placed(file):
        check_reachable(experiment.data)
    return experiment


def check_text(source: str, asked: str) -> None:
    """InputError where the hub does not answer that has the text of an experiment's file, or the data set that `source`
    is; anything else is not looked at. asked: what on the command line names it."""
    if source.endswith((".yaml", ".yml")):
        user_path(source, asked)
        read_reachable(source)
    elif source.startswith("hf:"):
        from morphogen.data.prepare import check_reachable
        from morphogen.experiment import Data, Shard

        check_reachable(Data(shards=(Shard(source=source),)))


def run_folder(folder: str) -> Path:
    """The folder of a run that exists; InputError with the nearest name where it does not."""
    path = user_path(folder, "RUN")
    if not path.is_dir():
        names = [p.name for p in path.parent.iterdir() if p.is_dir()] if path.parent.is_dir() else []
        raise InputError(unknown("run folder", path.name, names) if names else f"{folder}: no such run folder")
    return path


@contextmanager
def placed(file: str, experiment: "Experiment") -> Iterator[None]:
    """First says what is odd about the experiment that was read from `file`. What is wrong with it, here and within, is
    told with its line and column there."""
    from morphogen import reading
    from morphogen.checks import examined

    with reading.placed(file):
        _, _, remarks = examined(experiment)
        for line in reading.said_of(file, remarks):
            _say(visible(f"note: {line}"))
        yield


def carry_out(
    experiment: "Experiment",
    folder: Path,
    *,
    seed: int | None,
    device: str,
    resume: bool,
    keep: "Keep",
    execution: "Execution",
    as_json: bool,
    wide: bool = False,
    retry_failed: bool = False,
    retrain_lost: bool = False,
    tensorboard: bool = False,
) -> None:
    """Runs the experiment, showing how it goes. An interrupt ends it so that it can be resumed, and so does an output
    that cannot be written. With `as_json` nothing but the run's notices goes to stdout. tensorboard: its events too."""
    from rich.console import Console

    from morphogen.cli.boarded import Boarded
    from morphogen.cli.console import observer_for
    from morphogen.cli.live import Live
    from morphogen.keeping import Mend
    from morphogen.run import evolve

    observer = observer_for(Console(), as_json, wide)
    board = Boarded(folder) if tensorboard else None
    go_on = f"the same command with --resume goes on (run folder {folder})"

    def tell(notice: "Notice") -> None:
        try:
            observer(notice)
        except (OSError, UnicodeError, SystemExit) as error:  # rich exits where nobody reads any more
            why = error.strerror if isinstance(error, OSError) else error if isinstance(error, UnicodeError) else None
            raise RunError(f"stdout: cannot be written: {why or 'nobody reads it'}; {go_on}") from None
        if board is not None:
            board(notice)

    try:
        with board or nullcontext(), redirect_stdout(sys.stderr) if as_json else nullcontext():  # a plug-in may print
            evolve(
                experiment,
                folder,
                seed=seed,
                device=device,
                resume=resume,
                keep=keep,
                execution=execution,
                observer=tell,
                mend=Mend(failed=retry_failed, lost=retrain_lost),
            )
    except KeyboardInterrupt:
        _say(f"interrupted; {go_on}")
        raise
    finally:
        if isinstance(observer, Live):
            with suppress(OSError):
                observer.stop()


def rehearse(
    experiment: "Experiment", folder: Path, *, device: str, resume: bool, elsewhere: bool, as_json: bool
) -> None:
    """Checks all that a run would check before its first step, reads its text, and says what it would do.

    elsewhere: whether other machines would train, which may have devices that this one lacks.
    """
    from morphogen import runfolder
    from morphogen.checks import check_possible, examined
    from morphogen.cli import explain
    from morphogen.cli.facts import show_facts
    from morphogen.reading import located
    from morphogen.run import settle
    from morphogen.search.engine import Engine
    from morphogen.training import precision
    from morphogen.training.compiling import check_compiles
    from morphogen.training.device import device_for

    runfolder.check_usable(folder, resume)
    place = device_for(device, elsewhere=elsewhere)
    check_compiles(experiment.train, place)
    precision.check_settles(experiment.train, place)
    examined(located(experiment))
    experiment, prepared = settle(experiment)
    check_possible(experiment, prepared)
    root = Engine(experiment, seed=0, run_dir=str(folder), device=device).ask().candidates[0]
    forecast = explain.forecast(experiment, prepared)
    told: dict[str, Any] = {
        "folder": str(folder),
        "root": root.id,
        "candidates": forecast.candidates,
        "tokens_each": forecast.tokens_each,
        "steps_each": forecast.tokens_each // prepared.tokens_per_step,
        "eval_tokens_each": forecast.eval_tokens_each,
        "vocab": prepared.vocab_size,
        "train_tokens": {shard.name: shard.files["train"].tokens for shard in prepared.shards},
    }
    told["precision"] = f"train.bf16: {precision.told(experiment.train, place)}"
    told["read"] = {source: str(account) for source, account in prepared.accounts().items()}
    if warnings := [
        *prepared.shortfalls(),
        *filter(None, [precision.bf16_warning(experiment.train, place)]),
    ]:
        told["warnings"] = warnings
    show_facts(told, as_json)


def execute(commands: typer.Typer, name: str, args: Sequence[str] | None = None) -> NoReturn:
    """Runs a command of `commands` and exits: 0, 2 with one message for bad input, 130 when interrupted. SIGTERM and
    SIGHUP (a closed terminal) interrupt like Ctrl-C."""
    _open_standard_files()
    command = _command(commands, len(commands.registered_commands))
    # typer's usage errors have no public name of their own, but this public one is among them
    usage_error: type[Exception] = typer.BadParameter.__mro__[1]
    _show_any_name()
    try:
        with _interruptible():
            code = int(command.main(args=args, prog_name=name, standalone_mode=False) or 0)
        sys.stdout.flush()
    except MorphogenError as error:
        _say(visible_lines(f"{name}: {error}"))
        code = error.exit_code
    except OSError as error:  # a path that cannot be looked at: too long, not allowed, a file where a folder should be
        _say(visible(f"{name}: {error.filename or 'output'}: {error.strerror or error}"))
        code = MorphogenError.exit_code
    except usage_error as error:
        _say(visible(f"{name}: {_usage(error)}"))
        code = 2
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    _give_up_broken_output()
    sys.exit(code)


@functools.cache
def _command(commands: typer.Typer, registered: int) -> Any:
    """Kept, for who calls many in one process: it takes as long as reading an experiment. registered: how many there
    are, since they are registered when they are first called."""
    return typer.main.get_command(commands)


def _show_any_name() -> None:
    """Letters that the output's encoding does not have, and names that are not text at all, are shown as escapes."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _open_standard_files() -> None:
    """Where the caller closed stdin, stdout or stderr, /dev/null stands in for it. Else the next file that is opened,
    such as a checkpoint, would take its number, and what libraries print would go into that file."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


@contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM and SIGHUP raise KeyboardInterrupt, the first of them; one that is ignored (nohup) stays so."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    heard = {number: handler for number, handler in before.items() if handler != signal.SIG_IGN}

    def interrupt(number: int, frame: object) -> NoReturn:
        for each in heard:
            signal.signal(each, signal.SIG_IGN)  # what is being ended shall end in order
        raise KeyboardInterrupt

    for number in heard:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in heard.items():
            signal.signal(number, handler)


def _say(line: str) -> None:
    """A message on stderr, where anybody reads it."""
    with suppress(OSError):
        print(line, file=sys.stderr, flush=True)


def _give_up_broken_output() -> None:
    """What cannot be written to stdout any more is dropped, so that Python does not fail over it when it ends."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _usage(error: Any) -> str:
    """A usage error in one line, with the command it happened in and, for an unknown name, the nearest one."""
    context = error.ctx
    text = " ".join(str(error.format_message()).split())
    return f"{text} (see {context.command_path} --help)" if context is not None else text
