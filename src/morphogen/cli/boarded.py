"""A run's TensorBoard events: an observer beside the one that shows how it goes."""

from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Self

from morphogen.notices import Again, Closed, Measured, Notice, Training
from morphogen.training.boards import Board, check_installed

#: In the run's folder.
FOLDER = "tensorboard"


class Boarded(AbstractContextManager["Boarded"]):
    """Losses by step of every candidate, as `loss/<id>`; figures by candidate, in order of birth, as
    `<figure>`; the hypervolume by generation. A run that is gone on with adds to what is there."""

    def __init__(self, folder: Path) -> None:
        """InputError where the package is missing; nothing is written before the first notice."""
        check_installed()
        self._folder = folder
        self._board: Board | None = None

    def __call__(self, notice: Notice) -> None:
        """Writes what a notice tells."""
        match notice:
            case Training(candidate=candidate, step=step):
                self._put(step.step, {f"loss/{candidate.id}": step.loss})
            case Measured(candidate=candidate, report=report) if report.metrics:
                self._put(candidate.index, {**report.costs, **report.metrics, **report.timed})
            case Again(candidate=candidate, report=report) if report.metrics:
                self._put(candidate.index, {f"again/{name}": value for name, value in report.metrics.items()})
            case Closed(generation=generation):
                self._put(generation.generation, {"run/hypervolume": generation.hypervolume})
            case _:
                return

    def _put(self, step: int, values: dict[str, float]) -> None:
        if self._board is None:
            self._board = Board(self._folder / FOLDER, 0)
        self._board.scalars(step, **values)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._board is not None:
            self._board.close()

    def __enter__(self) -> Self:
        return self
