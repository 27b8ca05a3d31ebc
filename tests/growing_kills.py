"""Trains an experiment again and again, killing it (SIGKILL) at given moments, until one training comes through.

A moment is `NAME:N`: at the N-th call of a place since the process began.
Every trial is a fork of this process, so that torch is imported once.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kills import deadly
from morphogen import trainings
from morphogen.inherit import checkpoint
from morphogen.training.journal import Journal
from morphogen.training.trainer import Trainer
from processes import forked

#: Name -> (holder, attribute): killed before the N-th call goes on.
PLACES: dict[str, tuple[Any, str]] = {
    "step": (Journal, "step"),  # a step is taken, but nowhere on disk
    "rename": (os, "replace"),  # a file is written, but not in its place
    "checkpoint": (checkpoint, "save"),
    "restore": (Trainer, "restore"),  # in the middle of going on
    "change": (Trainer, "change"),  # growth is decided, but not done
    "grew": (Journal, "grew"),  # it is done, but not in the log
    "write": (Path, "unlink"),  # old checkpoints, half removed
}


def attempt(config: Path, out: Path, steps: int, every: int, moment: str | None) -> int:
    """The exit code of one training that is killed at the moment; None: it is not."""

    def trial() -> int:
        if moment is not None:
            name, _, count = moment.partition(":")
            holder, attribute = PLACES[name]
            setattr(holder, attribute, deadly(getattr(holder, attribute), int(count)))
        trainings.train(str(config), out, steps=steps, resume=True, checkpoint_every=every, eval_every=0, keep=2)
        return 0

    return os.waitstatus_to_exitcode(os.waitpid(forked(trial), 0)[1])


def killed(config: Path, out: Path, steps: int, moments: Sequence[str], every: int = 5) -> list[int]:
    """The exit codes of trials killed at their moments, and of one that is let through; a checkpoint `every` so many
    steps."""
    return [attempt(config, out, steps, every, moment) for moment in (*moments, None)]
