"""MAP-Elites: the best candidate of every cell of a grid of behaviours (Mouret and Clune 2015).

A cell is a combination of bins, one of each descriptor: a cost or a measured figure, cut evenly or by ratios.
"""

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from morphogen.candidate import Report
from morphogen.figures import Bounds, Descriptor, Direction, Noise
from morphogen.selection.noise import NO_NOISE
from morphogen.selection.objectives import Ints, Matrix, matrix
from morphogen.selection.pareto import order


def cell(report: Report, descriptors: Mapping[str, Descriptor]) -> tuple[int | None, ...]:
    """The bins of one candidate; None where it lacks a finite figure."""
    values = [report.value(name) for name in descriptors]
    return tuple(
        descriptor.bin(value) if value is not None and math.isfinite(value) else None
        for value, descriptor in zip(values, descriptors.values(), strict=True)
    )


def cells(reports: Sequence[Report], descriptors: Mapping[str, Descriptor]) -> Ints:
    """The number of each candidate's cell, shape (n,), counted as they first appear."""
    numbers: dict[tuple[int | None, ...], int] = {}
    found = [numbers.setdefault(cell(report, descriptors), len(numbers)) for report in reports]
    return np.array(found, dtype=np.int64)


def elites(
    reports: Iterable[Report],
    objectives: Mapping[str, Direction],
    constraints: Mapping[str, Bounds],
    descriptors: Mapping[str, Descriptor],
    most: int,
    noise: Noise = NO_NOISE,
) -> tuple[str, ...]:
    """Ids of the elites, best first: of every cell the candidate that comes first by constraint violation, then by
    the first objective, then by id; of those that tie with it in the first objective, the best by front and crowding.
    Of more than `most` cells, those whose elites are best by front and crowding."""
    known = {report.id: report for report in reports}
    scored = matrix(known.values(), objectives, constraints, noise=noise, strict=False)
    held: dict[tuple[int | None, ...], list[int]] = {}
    for row in np.lexsort((np.arange(len(scored.ids)), scored.F_nm[:, 0], scored.violation_n)):
        held.setdefault(cell(known[scored.ids[row]], descriptors), []).append(int(row))
    chosen = scored.rows(np.array(sorted(_elite(scored, rows) for rows in held.values()), dtype=np.int64))
    return tuple(chosen.ids[row] for row in order(chosen)[:most])


def _elite(scored: Matrix, rows: list[int]) -> int:
    """Of the rows of one cell, the best first."""
    first = rows[0]
    if scored.tie_mnn is None:
        return first
    apart_n, violation_n = scored.F_nm[rows, 0] - scored.F_nm[first, 0], scored.violation_n[rows]
    tied = np.array(rows)[(apart_n <= scored.tie_mnn[0, rows, first]) & (violation_n == violation_n[0])]
    return int(tied[order(scored.rows(tied))[0]])
