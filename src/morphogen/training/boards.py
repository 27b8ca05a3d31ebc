"""TensorBoard events of a training: an option, for which the package `tensorboard` has to be installed."""

import importlib.util
from pathlib import Path
from typing import Any

from morphogen.errors import InputError


def check_installed() -> None:
    """InputError where the package is missing."""
    if importlib.util.find_spec("tensorboard") is None:
        raise InputError("--tensorboard: needs the package tensorboard; install morphogen[tensorboard], or leave it")


class Board:
    """What TensorBoard shows: scalars by step, and events as text."""

    def __init__(self, folder: Path, step: int) -> None:
        """step: of the checkpoint that is gone on from; later events are hidden. InputError as `check_installed`."""
        check_installed()
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder), purge_step=step + 1 if step else None)

    def scalars(self, step: int, **values: float) -> None:
        """Numbers of a step, by name."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def event(self, step: int, text: str) -> None:
        """A line of text."""
        self._writer.add_text("growth", text, step)

    def flush(self) -> None:
        """Puts everything on disk."""
        self._writer.flush()

    def close(self) -> None:
        """Ends the file."""
        self._writer.close()
