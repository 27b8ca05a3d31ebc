"""Non-dominated ranks and crowding of a minimised objective matrix F_nm (n candidates, m objectives).

Constraint domination (Deb et al. 2002): whoever keeps every constraint comes before whoever does not, and of the others
the one that is less far outside comes first.
"""

import numpy as np
from numpy.typing import NDArray

from morphogen.selection.objectives import LARGEST, Floats, Ints, Matrix

Bools = NDArray[np.bool_]


def ranks(F_nm: Floats, tie_mnn: Floats | None = None) -> Ints:
    """The front of each row, shape (n,): 0 for those no other row dominates. Equal rows share a front.

    tie_mnn: differences that are ties (`Matrix.tie_mnn`); fronts are then those of `dominance`. Raises ValueError for a
    value that is not finite: sorting can put a NaN row in front 0.
    """
    from pymoo.util.nds.non_dominated_sorting import NonDominatedSorting  # takes a second to load

    if not np.isfinite(F_nm).all():
        raise ValueError("ranks: the objective matrix holds values that are not finite")
    if tie_mnn is not None and tie_mnn.any():
        return _ranks_within_noise(F_nm, tie_mnn)
    rank_n = np.zeros(len(F_nm), dtype=np.int64)
    for number, front in enumerate(NonDominatedSorting().do(F_nm)):
        rank_n[front] = number
    return rank_n


def dominance(F_nm: Floats, tie_mnn: Floats | None = None) -> Bools:
    """Whether row i dominates row j, shape (n, n): plainly, or by what counts beyond the ties alone.

    Plainly: nowhere worse and somewhere better. Beyond the ties: nowhere shown to be worse, and somewhere shown to be
    better. Whoever is ahead of a cheaper one by a difference within the noise is dominated; of two that tie
    everywhere, one that is plainly ahead stays ahead, so that ties alone fill no front.
    """
    less_mnn = F_nm.T[:, :, None] - F_nm.T[:, None, :]
    plainly_nn = (less_mnn <= 0.0).all(axis=0) & (less_mnn < 0.0).any(axis=0)
    if tie_mnn is None:
        return np.asarray(plainly_nn)
    shown_nn = (less_mnn <= tie_mnn).all(axis=0) & (less_mnn < -tie_mnn).any(axis=0)
    return np.asarray(plainly_nn | shown_nn)


def _ranks_within_noise(F_nm: Floats, tie_mnn: Floats) -> Ints:
    """The first front is of those whom nobody dominates, the next of those whom nobody left dominates, and so on.

    As ties are not transitive, all that are left may stand in circles, each dominated by another: then that front is of
    those whom nobody left dominates plainly, of whom there always are some.
    """
    over_nn, plainly_over_nn = dominance(F_nm, tie_mnn), dominance(F_nm)
    rank_n, left = np.zeros(len(F_nm), dtype=np.int64), np.arange(len(F_nm))
    number = 0
    while len(left):
        free = ~over_nn[np.ix_(left, left)].any(axis=0)
        if not free.any():
            free = ~plainly_over_nn[np.ix_(left, left)].any(axis=0)
        rank_n[left[free]] = number
        left, number = left[~free], number + 1
    return rank_n


def crowding(F_nm: Floats, rank_n: Ints) -> Floats:
    """Crowding distance within each front, shape (n,); larger is lonelier, infinite at a front's ends.

    Of rows that are equal the first keeps its distance and the others get 0. Deb et al. 2002, computed by pymoo.
    """
    from pymoo.operators.survival.rank_and_crowding.metrics import calc_crowding_distance

    distance_n = np.zeros(len(F_nm))
    if np.abs(F_nm).max(initial=0.0) > LARGEST:
        F_nm = F_nm / LARGEST  # differences of numbers that large could overflow
    for number in np.unique(rank_n):
        front = np.flatnonzero(rank_n == number)
        _, first = np.unique(F_nm[front], axis=0, return_index=True)
        distinct = front[np.sort(first)]
        distance_n[distinct] = calc_crowding_distance(F_nm[distinct]) if len(distinct) > 2 else np.inf
    return distance_n


def constrained_ranks(scored: Matrix) -> Ints:
    """The front of each row under constraint domination, shape (n,): after the fronts of the feasible rows, one front
    for every violation, in its order; last the fronts of the rows that lack a value."""
    feasible_n = scored.violation_n == 0.0
    if feasible_n.all():
        return ranks(scored.F_nm, scored.tie_mnn)
    complete_n = np.isfinite(scored.violation_n)
    outside_n = complete_n & ~feasible_n
    rank_n = np.zeros(len(scored.ids), dtype=np.int64)
    feasible = scored.rows(np.flatnonzero(feasible_n))
    rank_n[feasible_n] = ranks(feasible.F_nm, feasible.tie_mnn)
    rank_n[outside_n] = np.unique(scored.violation_n[outside_n], return_inverse=True)[1]
    rank_n[~complete_n] = ranks(scored.F_nm[~complete_n])
    first = 0
    for among in (feasible_n, outside_n, ~complete_n):
        rank_n[among] += first
        first = max(first, int(rank_n[among].max(initial=-1)) + 1)
    return rank_n


def order(scored: Matrix) -> Ints:
    """Row numbers from best to worst, shape (n,): by front, then by crowding, then by position."""
    rank_n = constrained_ranks(scored)
    return np.lexsort((np.arange(len(rank_n)), -crowding(scored.F_nm, rank_n), rank_n))
