"""Tables that a training writes as it goes, and goes on with after a kill without a line lost or doubled."""

import csv
import os
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from morphogen.store.files import write_atomic
from morphogen.store.ordinary import open_own, read_ordinary


class StepTable:
    """A CSV file whose first column is a step, in rising order. `sync` puts all of it on disk, as it has to be before a
    checkpoint is; what was written after the checkpoint goes when the training is gone on with."""

    def __init__(self, path: Path, columns: Sequence[str], step: int) -> None:
        """step: of the checkpoint that the training goes on from; later lines are dropped, and all at step 0."""
        kept = [",".join(columns)]
        if step and path.exists():
            lines = read_ordinary(path).decode(errors="replace").split("\n")
            whole = lines[1:-1]  # a last line without an end is torn
            kept += [line for line in whole if _is_kept(line, len(columns), step)]
        write_atomic(path, ("\n".join(kept) + "\n").encode())
        self._file: IO[str] = open_own(path, "a")
        self._writer = csv.writer(self._file, lineterminator="\n")

    def add(self, *values: object) -> None:
        """One line."""
        self._writer.writerow(values)

    def sync(self) -> None:
        """Puts every line on disk."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Writes what is left."""
        self._file.close()


def _is_kept(line: str, columns: int, most: int) -> bool:
    """Whether a line has all its cells, and is of a step up to `most`."""
    cells = next(csv.reader([line]), [])
    return len(cells) == columns and cells[0].isdecimal() and int(cells[0]) <= most
