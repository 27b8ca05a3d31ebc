"""MAP-Elites: the best candidate of every cell of a grid of behaviours (Mouret and Clune 2015).

A cell is a combination of bins, one of each descriptor: a cost or a measured figure, cut evenly or by ratios.
"""

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from morphogen.candidate import Report
from morphogen.figures import Bounds, Descriptor, Direction
from morphogen.selection.objectives import Ints, matrix
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
) -> tuple[str, ...]:
    """Ids of the elites, best first: of every cell the candidate that comes first by constraint violation, then by
    the first objective, then by id; of more than `most` cells, those whose elites are best by front and crowding."""
    known = {report.id: report for report in reports}
    scored = matrix(known.values(), objectives, constraints, strict=False)
    best: dict[tuple[int | None, ...], int] = {}
    for row in np.lexsort((np.arange(len(scored.ids)), scored.F_nm[:, 0], scored.violation_n)):
        best.setdefault(cell(known[scored.ids[row]], descriptors), int(row))
    chosen = scored.rows(np.array(sorted(best.values()), dtype=np.int64))
    return tuple(chosen.ids[row] for row in order(chosen)[:most])
