"""What a training writes of itself as it goes: steps, measurements, growth; and on with it after a kill, without a line
lost or doubled.

What is written between a checkpoint and a kill goes when the training is gone on with from that checkpoint, as those
steps are taken again.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from morphogen.growth import log
from morphogen.store.files import write_atomic
from morphogen.store.ordinary import check_own, open_own
from morphogen.training.boards import Board
from morphogen.training.tables import StepTable
from morphogen.training.trace import StepInfo

#: In a training's folder.
STEPS, EVALS, USAGE = "steps.csv", "evals.csv", "usage.csv"
LOG, TABLE, BOARD = "growth.log", "growth.csv", "tensorboard"
FILES = (STEPS, EVALS, USAGE, LOG, TABLE)
STEP_COLUMNS = ("step", "tokens", "loss", "balance", "lr", "grad_norm", "params", "layers", "dim", "experts")
EVAL_COLUMNS = ("step", "tokens", "bpb")
USAGE_COLUMNS = ("step", "layer", "block", "expert", "usage")


class Journal:
    """The tables and lines of one training. rows: of its growth. evals: (step, tokens, bits per byte)."""

    def __init__(self, folder: Path, step: int, noted: Mapping[str, Any] | None, *, tensorboard: bool) -> None:
        """step: of the checkpoint that is gone on from; 0 at the beginning. noted: what `state` gave then. RunError for
        files that are not the folder's own, or cannot be written."""
        check_own(folder, FILES, [BOARD])
        self.folder = folder
        self.rows = [log.Row.model_validate(row) for row in noted["rows"]] if noted else []
        self.evals = [(at, tokens, bpb) for at, tokens, bpb in noted["evals"]] if noted else []
        self._board = Board(folder / BOARD, step) if tensorboard else None
        self._steps = StepTable(folder / STEPS, STEP_COLUMNS, step)
        self._usage = StepTable(folder / USAGE, USAGE_COLUMNS, step)
        write_atomic(folder / LOG, "".join(f"{log.line(row)}\n" for row in self.rows).encode())
        write_atomic(folder / TABLE, (log.header() + log.table(self.rows)).encode())
        self._write_evals()

    def state(self) -> dict[str, Any]:
        """What is to be in a checkpoint, as strict JSON; all lines are on disk then."""
        self._steps.sync()
        self._usage.sync()
        if self._board is not None:
            self._board.flush()
        return {"rows": [row.model_dump(mode="json") for row in self.rows], "evals": self.evals}

    def step(self, step: StepInfo, lr: float, size: Sequence[int]) -> None:
        """A step is done, of a model of so many parameters, layers, channels and experts."""
        self._steps.add(step.step, step.tokens, step.loss, step.balance, lr, step.grad_norm, *size)
        if self._board is not None:
            self._board.scalars(step.step, loss=step.loss, balance=step.balance, lr=lr, grad_norm=step.grad_norm)
            self._board.scalars(step.step, **dict(zip(STEP_COLUMNS[-4:], map(float, size), strict=True)))

    def grew(self, rows: Sequence[log.Row]) -> None:
        """The model grew."""
        self.rows += rows
        lines = [log.line(row) for row in rows]
        for path, text in ((LOG, "".join(f"{line}\n" for line in lines)), (TABLE, log.table(rows))):
            with open_own(self.folder / path, "a") as file:
                file.write(text)
        if self._board is not None:
            for row, line in zip(rows, lines, strict=True):
                self._board.event(row.step, line)

    def usage(self, step: int, layer: int, block: str, usage: Sequence[float]) -> None:
        """How much the experts of a layer are used."""
        for expert, share in enumerate(usage):
            self._usage.add(step, layer, block, expert, share)

    def evaluated(self, step: int, tokens: int, bpb: float) -> None:
        """The model was measured."""
        self.evals.append((step, tokens, bpb))
        self._write_evals()
        if self._board is not None:
            self._board.scalars(step, bpb=bpb)

    def close(self) -> None:
        """Writes what is left."""
        self._steps.close()
        self._usage.close()
        if self._board is not None:
            self._board.close()

    def _write_evals(self) -> None:
        lines = [",".join(EVAL_COLUMNS), *(",".join(map(str, row)) for row in self.evals)]
        write_atomic(self.folder / EVALS, ("\n".join(lines) + "\n").encode())
