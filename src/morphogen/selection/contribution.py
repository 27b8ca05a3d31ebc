"""Hypervolume contributions: what a candidate alone adds to the volume that all of them dominate.

Legend: n candidates, m objectives, k others, s sampled points. Exact to `EXACT` objectives, by moocore (Guerreiro and
Fonseca 2018); beyond, a volume is estimated by the share of `SAMPLES` points drawn evenly in its box (Bader and Zitzler
2011), the same points for all that are compared.
"""

from math import comb

import numpy as np

from morphogen.selection.objectives import Floats, Ints, Matrix
from morphogen.selection.pareto import order, ranks

EXACT = 4
SAMPLES = 10_000


def partitions(objectives: int, most: int) -> int:
    """Into how many parts Das and Dennis's directions cut an axis: as many as give at most `most` of them, at least
    one."""
    count = 1
    while objectives > 1 and comb(count + objectives, objectives - 1) <= most:
        count += 1
    return count


def scaled(F_nm: Floats, known_km: Floats) -> Floats:
    """F_nm in units in which the `known_km` lie between 0 and 1 on every axis; where they are all alike it keeps its
    own."""
    low_m, high_m = known_km.min(axis=0), known_km.max(axis=0)
    with np.errstate(over="ignore"):
        size_m = high_m / 4.0 - low_m / 4.0  # the difference itself may be too large for a number
        off_nm = F_nm / 4.0 - low_m / 4.0
        return np.asarray(np.where(size_m > 0.0, off_nm / np.where(size_m > 0.0, size_m, 1.0), 4.0 * off_nm))


def least(U_nm: Floats, corner: float, drop: int, rng: np.random.Generator) -> Ints:
    """Row numbers to leave out, one after another: every time that of the least contribution to the volume up to
    `corner` on every axis, the last of those that are alike."""
    measure = _Exact(U_nm, corner) if U_nm.shape[1] <= EXACT else _Sampled(U_nm, corner, rng)
    left = list(range(len(U_nm)))
    gone = []
    for _ in range(drop):
        volume_n = measure.contributions(left)
        place = int(np.flatnonzero(volume_n == volume_n.min())[-1])
        gone.append(left.pop(place))
    return np.array(gone, dtype=np.int64)


def gains(U_nm: Floats, known_km: Floats, corner: float) -> Floats:
    """What each row alone would add to the volume that the `known_km` dominate up to `corner` on every axis, shape
    (n,). Where it would add nothing, how far it is from doing so, negated: by how much it must get better on every axis
    at once."""
    if U_nm.shape[1] <= EXACT:
        before = _volume(known_km, corner)
        added_n = np.array([_volume(np.vstack([known_km, row]), corner) - before for row in U_nm])
    else:
        both = np.concatenate([known_km, U_nm])
        covered = _Sampled(both, corner, np.random.default_rng(0)).covered_sn
        free_s = ~covered[:, : len(known_km)].any(axis=1)
        added_n = covered[free_s, len(known_km) :].sum(axis=0) / SAMPLES
    dominated_n = (U_nm[:, None] - known_km[None]).min(axis=2).max(axis=1, initial=0.0)
    return np.where(added_n > 0.0, added_n, -np.maximum(dominated_n, (U_nm - corner).max(axis=1)))


def _volume(U_nm: Floats, corner: float) -> float:
    from moocore import hypervolume

    return float(hypervolume(*_planar(U_nm, corner)))


def _planar(U_nm: Floats, corner: float) -> tuple[Floats, Floats]:
    """Points and corner of the same volumes with at least the two axes that moocore wants."""
    corner_m = np.full(U_nm.shape[1], corner)
    return (U_nm, corner_m) if len(corner_m) > 1 else (np.append(U_nm, 0.0 * U_nm, axis=1), np.append(corner_m, 1.0))


class _Exact:
    def __init__(self, U_nm: Floats, corner: float) -> None:
        self._U_nm, self._corner_m = _planar(U_nm, corner)

    def contributions(self, rows: list[int]) -> Floats:
        """Of these rows among themselves; 0 for those that are dominated, equal to another, or beyond the corner."""
        from moocore import hv_contributions

        volume_n = hv_contributions(self._U_nm[rows], ref=self._corner_m, ignore_dominated=False)
        return np.asarray(volume_n, dtype=np.float64)


class _Sampled:
    def __init__(self, U_nm: Floats, corner: float, rng: np.random.Generator) -> None:
        low_m = np.minimum(U_nm.min(axis=0), corner)
        point_sm = rng.uniform(low_m, corner, size=(SAMPLES, U_nm.shape[1]))
        self.covered_sn = np.ones((SAMPLES, len(U_nm)), dtype=bool)
        for axis in range(U_nm.shape[1]):
            self.covered_sn &= U_nm[:, axis] <= point_sm[:, axis, None]

    def contributions(self, rows: list[int]) -> Floats:
        """How many of the points each of these rows covers alone."""
        covered_sn = self.covered_sn[:, rows]
        return np.asarray(covered_sn[covered_sn.sum(axis=1) == 1].sum(axis=0), dtype=np.float64)


def smsemoa(scored: Matrix, birth_n: Ints, best_km: Floats, keep: int, rng: np.random.Generator) -> Ints:
    """By non-dominated front; of the front that does not fit whole, whoever contributes least to its hypervolume goes,
    one after another (SMS-EMOA, Beume, Naujoks and Emmerich 2007).

    The scale is that of the front and the run's frontier. The corner lies beyond 1 on every axis by what makes evenly
    spread points contribute alike (Ishibuchi et al. 2018). While fewer than `keep` candidates are feasible, the others
    follow by their violation.
    """
    feasible = np.flatnonzero(scored.violation_n == 0.0)
    if len(feasible) <= keep or keep == 0:
        return order(scored)[:keep]
    able = scored.rows(feasible)
    F_nm = able.F_nm
    rank_n = ranks(F_nm, able.tie_mnn)
    splitting = int(np.sort(rank_n)[keep - 1])
    whole, last = np.flatnonzero(rank_n < splitting), np.flatnonzero(rank_n == splitting)
    U_nm = scaled(F_nm[last], np.concatenate([F_nm[last], best_km]))
    corner = 1.0 + 1.0 / partitions(F_nm.shape[1], keep)
    gone = least(U_nm, corner, len(whole) + len(last) - keep, rng)
    chosen: Ints = feasible[np.concatenate([whole, np.delete(last, gone)])]
    return chosen
