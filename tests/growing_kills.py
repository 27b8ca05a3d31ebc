"""Trains an experiment again and again, killing it (SIGKILL) at given moments, until one training comes through.

usage: growing_kills.py STEPS EVERY CONFIG OUT MOMENT... [-- CONFIG OUT MOMENT...]   a checkpoint EVERY so many steps.
A moment is `NAME:N`: at the N-th call of a place since the process began.
Every trial is a fork of this process, so that torch is imported once. Prints the moment and the exit code of each.
"""

import itertools
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kills import deadly
from morphogen import trainings
from morphogen.inherit import checkpoint
from morphogen.training.journal import Journal
from morphogen.training.trainer import Trainer

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


def attempt(config: str, out: Path, steps: int, every: int, moment: str | None) -> int:
    """The exit code of one training that is killed at the moment; None: it is not."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 1
    try:
        if moment is not None:
            name, _, count = moment.partition(":")
            holder, attribute = PLACES[name]
            call: Callable[..., Any] = getattr(holder, attribute)
            setattr(holder, attribute, deadly(call, int(count)))
        trainings.train(config, out, steps=steps, resume=True, checkpoint_every=every, eval_every=0, keep=2)
        code = 0
    finally:
        os._exit(code)


def main() -> None:
    """Kills every training at its moments in turn, then lets it through."""
    steps, every, *rest = sys.argv[1:]
    trainings.picture = lambda folder: b""  # takes longer than the training
    with tempfile.TemporaryDirectory() as folder:  # whatever torch imports only now, it imports once
        trainings.train(rest[0], Path(folder) / "first", steps=int(steps))
    for differs, words in itertools.groupby(rest, lambda word: word != "--"):
        if differs:
            config, out, *moments = words
            for moment in (*moments, None):
                print(out, moment, attempt(config, Path(out), int(steps), int(every), moment), flush=True)


if __name__ == "__main__":
    main()
