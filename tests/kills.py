"""Runs an experiment again and again, killing it (SIGKILL) at given moments, until one run comes through.

usage: kills.py CONFIG OUT [tidy] MOMENT... [-- OUT [tidy] MOMENT...]   tidy: with clean-up and pruning of checkpoints.
A moment is a share of the time that a whole run takes, or `NAME:N`: at the N-th call of a place in the loop. Every
trial is a fork of this process, so that torch is imported once.
Prints the run's folder, the moment and the exit code of each trial.
"""

import itertools
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from morphogen import runfolder
from morphogen.execution import Execution
from morphogen.experiment import Experiment
from morphogen.inherit import checkpoint
from morphogen.notices import Training
from morphogen.run import evolve, load
from morphogen.search.engine import Engine
from morphogen.session import Keep
from morphogen.store.ledger import Ledger

#: Name -> (holder, attribute): killed before the N-th call goes on.
PLACES: dict[str, tuple[Any, str]] = {
    "append": (Ledger, "append"),  # asked, trained or closed, but not on disk
    "tell": (Engine, "tell"),  # on disk, but not in memory
    "export": (runfolder, "export"),  # a generation is closed, but its files are old
    "rename": (os, "replace"),  # a file is written, but not in its place
    "checkpoint": (checkpoint, "save"),
    "apply": (Engine, "apply"),  # in the middle of resuming
    "unlink": (Path, "unlink"),  # clean-up and pruning, half done
}
KEEP_ALL = Keep()


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def deadly(call: Callable[..., Any], left: int) -> Callable[..., Any]:
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        nonlocal left
        left -= 1
        if left == 0:
            die()
        return call(*args, **kwargs)

    return wrapped


def attempt(
    experiment: Experiment,
    out: Path,
    moment: str | None,
    whole_seconds: float,
    workers: int | None = None,
    keep: Keep = KEEP_ALL,
) -> int:
    """The exit code of one trial in a process of its own; -9 where it was killed."""
    pid = os.fork()
    if pid == 0:
        name, _, count = (moment or "").partition(":")
        steps = int(count) if name == "step" else 0
        if name in PLACES:
            holder, attribute = PLACES[name]
            setattr(holder, attribute, deadly(getattr(holder, attribute), int(count)))

        def watch(notice: object) -> None:
            nonlocal steps
            if isinstance(notice, Training):
                steps -= 1
                if steps == 0:
                    die()

        evolve(experiment, out, resume=True, keep=keep, execution=Execution(workers=workers), observer=watch)
        os._exit(0)
    if moment is not None and ":" not in moment:
        time.sleep(float(moment) * whole_seconds)
        os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def main() -> None:
    config, *rest = sys.argv[1:]
    experiment, whole_seconds = load(config), 0.0
    with tempfile.TemporaryDirectory() as folder:
        # whatever torch imports only now, it imports once; rules of growth may wait for more than one generation
        short = experiment.model_copy(update={"model": experiment.model.model_copy(update={"growth": ()})})
        evolve(short, Path(folder) / "first", generations=0)
        if any(word.startswith("0.") for word in rest):
            began = time.perf_counter()
            attempt(experiment, Path(folder) / "whole", None, 0.0)
            whole_seconds = time.perf_counter() - began
    for differs, words in itertools.groupby(rest, lambda word: word != "--"):
        if differs:
            out, *moments = words
            tidy = "tidy" in moments
            keep = Keep(cleanup=tidy, prune=tidy)
            for moment in [*(moment for moment in moments if moment != "tidy"), None]:
                print(out, moment, attempt(experiment, Path(out), moment, whole_seconds, keep=keep), flush=True)


if __name__ == "__main__":
    main()
