"""Who stays: the best by non-dominated front, then by crowding (NSGA-II, Deb et al. 2002)."""

from collections.abc import Iterable, Mapping

import numpy as np

from morphogen.candidate import Report
from morphogen.selection.objectives import Direction, matrix
from morphogen.selection.pareto import order, ranks


def survive(reports: Iterable[Report], objectives: Mapping[str, Direction], keep: int) -> tuple[str, ...]:
    """Ids of at most `keep` survivors, best first. Ties go to the smaller id; failed and gated candidates never stay.

    Raises ValueError for a negative `keep`, InputError for an objective that nothing measured.
    """
    if keep < 0:
        raise ValueError(f"survive: keep is {keep}, expected at least 0")
    scored = matrix(reports, objectives)
    return tuple(scored.ids[row] for row in order(scored.F_nm)[:keep])


def front(reports: Iterable[Report], objectives: Mapping[str, Direction]) -> tuple[str, ...]:
    """Ids of the Pareto frontier in order of id: the trained candidates that no other one dominates."""
    scored = matrix(reports, objectives)
    return tuple(scored.ids[row] for row in np.flatnonzero(ranks(scored.F_nm) == 0))
