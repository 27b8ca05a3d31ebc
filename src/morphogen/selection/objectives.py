"""From reports to numbers that can be compared: the objective matrix, scores for weights, and hypervolume.

Legend: n candidates, m objectives. F_nm is always minimised: a "max" objective stands in it negated.
A constraint is no objective: `violation_n` says by how much, in all, a candidate is outside its constraints' limits.
"""

import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from morphogen.candidate import Report, Status
from morphogen.errors import InputError, unknown
from morphogen.figures import Bounds, Direction, Noise, Said, direction, figure_called
from morphogen.selection.noise import NO_NOISE, shown, tolerances

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

#: Nobody says anything of which way figures are better, so that their declarations tell.
NOTHING_SAID: Said = {}
#: The largest size that a hypervolume and its reference may have: one that any float of a file holds.
LARGEST = 1e300


@dataclass(frozen=True)
class Matrix:
    """The trained candidates: `ids` (sorted), the objectives' `names`, and F_nm (float64, finite, minimised).

    signs_m is -1 where a "max" objective was negated, else 1. violation_n: sum over the constraints, 0 within all, and
    infinite for a candidate without a finite value of every objective and constrained figure: it ranks behind all
    others. What it lacks stands in F_nm as the worst value that anyone has. tie_mnn: how far apart two candidates may
    be in an objective by noise alone; None where nothing has any.
    """

    ids: tuple[str, ...]
    names: tuple[str, ...]
    signs_m: Floats
    F_nm: Floats
    violation_n: Floats
    tie_mnn: Floats | None = None

    def rows(self, kept: Ints) -> "Matrix":
        """The rows of these numbers, or of this mask."""
        ids = tuple(np.array(self.ids, dtype=object)[kept])
        tie_mnn = None if self.tie_mnn is None else self.tie_mnn[:, kept][:, :, kept]
        return replace(self, ids=ids, F_nm=self.F_nm[kept], violation_n=self.violation_n[kept], tie_mnn=tie_mnn)

    @property
    def feasible(self) -> "Matrix":
        """The rows that keep every constraint."""
        return self if not self.violation_n.any() else self.rows(np.flatnonzero(self.violation_n == 0.0))

    @property
    def complete(self) -> "Matrix":
        """The rows of which every value is a finite number."""
        return self.rows(np.flatnonzero(np.isfinite(self.violation_n)))


def in_order(reports: Iterable[Report]) -> list[Report]:
    """The reports sorted by id: no result depends on the order of arrival. Raises InputError on a repeated id."""
    ordered = sorted(reports, key=lambda report: report.id)
    for one, other in pairwise(ordered):
        if one.id == other.id:
            raise InputError(f"selection: candidate {one.id!r} was reported twice")
    return ordered


def measured(reports: Iterable[Report]) -> set[str]:
    """Names of everything any of the reports holds a number for."""
    return {name for report in reports for table in (report.metrics, report.costs, report.timed) for name in table}


def matrix(
    reports: Iterable[Report],
    objectives: Mapping[str, Direction],
    constraints: Mapping[str, Bounds] = {},
    *,
    noise: Noise = NO_NOISE,
    strict: bool = True,
) -> Matrix:
    """The objective matrix of the trained candidates; those failed, gated or rejected are left out.

    noise: a value that is not shown to be better than chance counts as chance, and one that is outside a constraint by
    no more than its error allows is inside.
    strict: InputError for an objective or a constraint that no trained report has. A search has checked the names
    before it began; that nobody has a value of one is then no mistake. Without trained reports there are no rows.
    """
    trained = [report for report in in_order(reports) if report.status is Status.TRAINED]
    wanted, count = (*objectives, *constraints), len(objectives)
    if strict and trained:
        _check_known(measured(trained), objectives, constraints)
    signs_m = np.array([-1.0 if direction == "max" else 1.0 for direction in objectives.values()])
    rows = [[_finite(report.value(name)) for name in wanted] for report in trained]
    all_nk = np.array(rows, dtype=np.float64).reshape(len(rows), len(wanted))
    columns = [shown(trained, name, direction, noise) for name, direction in objectives.items()]
    F_nm = np.array(columns, dtype=np.float64).reshape(count, len(rows)).T * signs_m
    violation_n = np.array([_violation(report, constraints, noise) for report in trained], dtype=np.float64)
    violation_n[np.isnan(all_nk).any(axis=1)] = np.inf
    for column in F_nm.T:  # views
        lacking = np.isnan(column)
        column[lacking] = column[~lacking].max(initial=-np.inf) if not lacking.all() else 0.0
    tie_mnn = tolerances(trained, tuple(objectives), noise)
    return Matrix(tuple(report.id for report in trained), tuple(objectives), signs_m, F_nm, violation_n, tie_mnn)


def _finite(value: float | None) -> float:
    """`value`, or NaN where there is none or it is not finite."""
    return value if value is not None and math.isfinite(value) else math.nan


def _violation(report: Report, constraints: Mapping[str, Bounds], noise: Noise) -> float:
    """By how much the report's values are outside, in all; finite for finite values."""
    outside = 0.0
    for name, limit in constraints.items():
        value = _finite(report.value(name))
        outside += limit.violation(value, noise.z * (report.error(name) or 0.0))
    return min(outside, sys.float_info.max)


def unmet(
    reports: Iterable[Report], objectives: Mapping[str, Direction], constraints: Mapping[str, Bounds], noise: Noise
) -> str:
    """What keeps a frontier from being one of candidates that keep every constraint and have a value of every
    objective, told of its first; empty where one does, or nobody is there."""
    known = list(reports)
    scored = matrix(known, objectives, constraints, noise=noise, strict=False)
    if not scored.ids or not scored.violation_n.all():
        return ""
    nearest = next(report for report in known if report.id == scored.ids[int(np.argmin(scored.violation_n))])
    missing = [f"no value of {name}" for name in (*objectives, *constraints) if _lacks(nearest, name)]
    outside = [
        limit.complaint(name, value, f"constraints.{name}", noise.z * (nearest.error(name) or 0.0))
        for name, limit in constraints.items()
        if (value := nearest.value(name)) is not None
    ]
    reasons = "; ".join(filter(None, (*missing, *outside)))
    return f"nobody keeps all constraints and has a value of every objective; {nearest.id} is nearest: {reasons}"


def _lacks(report: Report, name: str) -> bool:
    return math.isnan(_finite(report.value(name)))


def _check_known(known: set[str], objectives: Mapping[str, Direction], constraints: Mapping[str, Bounds]) -> None:
    for field, names in (("objectives", objectives), ("constraints", constraints)):
        for name in names:
            if name not in known:
                raise InputError(unknown(f"evolution.{field}.{name}", name, known))


def check_weights(reports: Sequence[Report], weights: Mapping[str, float], said: Said) -> None:
    """Raises InputError for a weight that is not finite, whose value no trained report has, or of which neither `said`
    nor its declaration tells the better direction."""
    known = measured(report for report in reports if report.status is Status.TRAINED)
    for name, weight in weights.items():
        place, figure = f"evolution.weights.{name}", figure_called(name)
        if not np.isfinite(weight):
            raise InputError(f"{place}: got {weight!r}, expected a finite number")
        if known and figure not in known:
            raise InputError(unknown(place, figure, known))
        direction(figure, said, place)


def normalised(values: Sequence[float | None], better: Direction) -> Floats:
    """Scores in [0, 1], shape (n,): 1 for the best value, 0 for the worst and for a missing or non-finite one.

    Where all finite values are equal they all score 1.
    """
    raw_n = np.array([np.nan if value is None else value for value in values], dtype=np.float64)
    finite_n = np.isfinite(raw_n)
    scores_n = np.zeros(len(raw_n))
    if finite_n.any():
        good_n = raw_n[finite_n] * (1.0 if better == "max" else -1.0)
        low, high = float(good_n.min()), float(good_n.max())
        if not math.isfinite(high - low):
            good_n, low, high = good_n / 4.0, low / 4.0, high / 4.0
        scores_n[finite_n] = (good_n - low) / (high - low) if high > low else 1.0
    return scores_n


def weighted_scores(
    reports: Sequence[Report],
    weights: Mapping[str, float],
    objectives: Mapping[str, Direction],
    said: Said = NOTHING_SAID,
    *,
    strict: bool = True,
) -> Floats:
    """Sum of weight x normalised score, shape (n,), larger is better. Without weights every objective weighs 1.

    said: which way figures are better, where the experiment says so. InputError as `check_weights`, where `strict`.
    """
    said = {**said, **objectives}
    if strict:
        check_weights(reports, weights, said)
    total_n = np.zeros(len(reports))
    for name, weight in (weights or dict.fromkeys(objectives, 1.0)).items():
        figure = figure_called(name)
        better = direction(figure, said, f"evolution.weights.{name}")
        total_n += weight * normalised([report.value(figure) for report in reports], better)
    return total_n


def reference_point(best: Matrix) -> dict[str, float]:
    """The reference of the run's hypervolumes, fixed once and recorded with every generation.

    Per objective, in its own units: the worst value of the first frontier that has one of every objective, which is the
    root generation's wherever the root could be measured in full; made worse by a tenth of its size (by 1 where it is
    zero). Empty while nobody has a value of every objective.
    """
    if not (known := best.complete).ids:
        return {}
    worst_m = known.F_nm.max(axis=0)
    with np.errstate(over="ignore"):
        point_m = worst_m + np.where(worst_m == 0.0, 1.0, 0.1 * np.abs(worst_m))
    point_m = np.clip(point_m, -sys.float_info.max, sys.float_info.max)
    return {name: float(value) for name, value in zip(known.names, point_m * known.signs_m, strict=True)}


def hypervolume(scored: Matrix, reference: Mapping[str, float]) -> float:
    """Volume dominated by `scored` up to `reference`, each axis in units of the reference's size.

    A point that is worse than the reference anywhere, breaks a constraint, or lacks a value adds nothing; none better,
    or no reference yet, gives 0. With one reference, volumes of different generations compare: adding candidates never
    makes it smaller. No side of it counts as longer than the m-th root of `LARGEST`. Zitzler and Thiele 1998, by pymoo.
    """
    from pymoo.indicators.hv import HV

    if not reference:
        return 0.0
    if set(reference) != set(scored.names):
        raise InputError(f"hypervolume: reference names {sorted(reference)}, expected {sorted(scored.names)}")
    own_m = np.array([reference[name] for name in scored.names])
    scale_m = np.where(own_m == 0.0, 1.0, np.abs(own_m))
    longest = LARGEST ** (1.0 / len(own_m))
    corner_m = own_m * scored.signs_m / scale_m
    with np.errstate(over="ignore"):
        F_nm = np.maximum(scored.feasible.F_nm / scale_m, corner_m - longest)
    inside_nm = F_nm[(F_nm < corner_m).all(axis=1)]
    return float(HV(ref_point=corner_m)(inside_nm)) if len(inside_nm) else 0.0
