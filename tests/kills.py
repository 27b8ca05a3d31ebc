"""Runs an experiment again and again, killing it (SIGKILL) at given moments, until one run comes through.

A moment is a share of the time that a whole run takes, or `NAME:N`: at the N-th call of a place in the loop. Every
trial is a fork of this process, so that torch is imported once.
"""

import os
import signal
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from morphogen import runfolder
from morphogen.execution import Execution
from morphogen.experiment import Experiment
from morphogen.inherit import checkpoint
from morphogen.keeping import Keep
from morphogen.notices import Training
from morphogen.run import evolve
from morphogen.search.engine import Engine
from morphogen.store.ledger import Ledger
from processes import forked

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
    checkpoint_tokens: int = 0,
) -> int:
    """The exit code of one trial in a process of its own; -9 where it was killed. checkpoint_tokens: between two
    checkpoints in the middle of a candidate, where it leaves such."""

    def trial() -> int:
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

        execution = Execution(workers=workers, checkpoint_tokens=checkpoint_tokens)
        evolve(experiment, out, resume=True, keep=keep, execution=execution, observer=watch)
        return 0

    pid = forked(trial)
    if moment is not None and ":" not in moment:
        time.sleep(float(moment) * whole_seconds)
        os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def killed(
    experiment: Experiment, out: Path, moments: Sequence[str], *, tidy: bool = False, checkpoint_tokens: int = 0
) -> list[int]:
    """The exit codes of trials killed at their moments, and of one that is let through.

    tidy: with clean-up and pruning of checkpoints. checkpoint_tokens: as `attempt`.
    """
    whole_seconds = 0.0
    if any(":" not in moment for moment in moments):
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            attempt(experiment, Path(folder) / "whole", None, 0.0)
            whole_seconds = time.perf_counter() - began
    keep = Keep(cleanup=tidy, prune=tidy)
    return [
        attempt(experiment, out, moment, whole_seconds, keep=keep, checkpoint_tokens=checkpoint_tokens)
        for moment in (*moments, None)
    ]
