"""What the command line and the scripts share: reading an experiment, carrying a run out or rehearsing it, and exiting.

Nothing heavy is imported until it is needed.
"""

import io
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import typer

from morphogen.errors import MorphogenError

if TYPE_CHECKING:
    from morphogen.evolve import Keep
    from morphogen.execution import Execution
    from morphogen.experiment import Experiment

INTERRUPTED = 130


def read_experiment(file: str) -> "Experiment":
    """The experiment in a YAML file; InputError with one line per mistake."""
    from morphogen import reading

    return reading.read_experiment(file)


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
) -> None:
    """Runs the experiment, showing how it goes. An interrupt or a SIGTERM ends it so that it can be resumed."""
    from rich.console import Console

    from morphogen.console import Live, observer_for
    from morphogen.evolve import evolve

    signal.signal(signal.SIGTERM, _interrupt)
    observer = observer_for(Console(), as_json, wide)
    try:
        evolve(
            experiment,
            folder,
            seed=seed,
            device=device,
            resume=resume,
            keep=keep,
            execution=execution,
            observer=observer,
        )
    except KeyboardInterrupt:
        print(f"interrupted; the same command with --resume goes on (run folder {folder})", file=sys.stderr)
        raise
    finally:
        if isinstance(observer, Live):
            observer.stop()


def rehearse(experiment: "Experiment", folder: Path, *, device: str, resume: bool, as_json: bool) -> None:
    """Checks all that a run would check before its first step, reads its text, and says what it would do."""
    from morphogen import explain, runfolder
    from morphogen.checks import check_possible
    from morphogen.console import show_facts
    from morphogen.evolve import settle
    from morphogen.search.engine import Engine
    from morphogen.training.loop import choose_device

    runfolder.check_usable(folder, resume)
    choose_device(device)
    experiment, prepared = settle(experiment)
    check_possible(experiment)
    root = Engine(experiment, seed=0, run_dir=str(folder), device=device).ask().candidates[0]
    plan = explain.plan(experiment)
    told = {
        "folder": str(folder),
        "root": root.id,
        "candidates": plan.candidates,
        "tokens_each": plan.tokens_each,
        "steps_each": plan.tokens_each // prepared.tokens_per_step,
        "eval_tokens_each": plan.eval_tokens_each,
        "vocab": prepared.vocab_size,
        "train_tokens": {shard.name: shard.files["train"].tokens for shard in prepared.shards},
    }
    show_facts(told, as_json)


def execute(commands: typer.Typer, name: str, args: Sequence[str] | None = None) -> NoReturn:
    """Runs a command of `commands` and exits: 0, 2 with one message for bad input, 130 when interrupted."""
    command = typer.main.get_command(commands)
    # typer's usage errors have no public name of their own, but this public one is among them
    usage_error: type[Exception] = typer.BadParameter.__mro__[1]
    _show_any_name()
    try:
        code = int(command.main(args=args, prog_name=name, standalone_mode=False) or 0)
    except MorphogenError as error:
        print(f"{name}: {error}", file=sys.stderr)
        code = error.exit_code
    except OSError as error:  # a path that cannot be looked at: too long, not allowed, a file where a folder should be
        print(f"{name}: {error.filename or 'output'}: {error.strerror or error}", file=sys.stderr)
        code = MorphogenError.exit_code
    except usage_error as error:
        print(f"{name}: {_usage(error)}", file=sys.stderr)
        code = 2
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    sys.exit(code)


def _show_any_name() -> None:
    """Letters that the output's encoding does not have, and names that are not text at all, are shown as escapes."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _usage(error: Any) -> str:
    """A usage error in one line, with the command it happened in and, for an unknown name, the nearest one."""
    context = error.ctx
    text = " ".join(str(error.format_message()).split())
    return f"{text} (see {context.command_path} --help)" if context is not None else text


def _interrupt(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt
