"""From reports to numbers that can be compared: the objective matrix, scores for weights, and hypervolume.

Legend: n candidates, m objectives. F_nm is always minimised: a "max" objective stands in it negated.
A constraint is no objective: `violation_n` says by how much, in all, a candidate is outside its constraints' limits.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pymoo.indicators.hv import HV

from morphogen.candidate import Report, Status
from morphogen.errors import InputError, unknown
from morphogen.figures import Bounds

Direction = Literal["min", "max"]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

#: The `--score-weight-*` family: name at the command line -> (measured name, the better direction).
SCORES: Mapping[str, tuple[str, Direction]] = {
    "ppl": ("ppl", "min"),
    "throughput": ("throughput", "max"),
    "long_recall": ("long_recall", "max"),
    "ram": ("peak_memory_bytes", "min"),
    "layers": ("layers", "max"),
    "moe": ("moe_blocks", "max"),
    "novelty": ("novelty", "max"),
    "instability": ("instability", "min"),
}

#: Beginnings of names of which less is better, unless the objectives say otherwise. Of all others more is better.
LESS_IS_BETTER = (
    "ppl",
    "bpb",
    "loss",
    "params",
    "flops",
    "kv_bytes",
    "peak_memory",
    "seconds",
    "train_",
    "instability",
)


@dataclass(frozen=True)
class Matrix:
    """The comparable candidates: `ids` (sorted), the objectives' `names`, and F_nm (float64, finite, minimised).

    signs_m is -1 where a "max" objective was negated, else 1. violation_n: sum over the constraints, 0 within all.
    """

    ids: tuple[str, ...]
    names: tuple[str, ...]
    signs_m: Floats
    F_nm: Floats
    violation_n: Floats

    def rows(self, kept: Ints) -> "Matrix":
        """The rows of these numbers, or of this mask."""
        ids = tuple(np.array(self.ids, dtype=object)[kept])
        return replace(self, ids=ids, F_nm=self.F_nm[kept], violation_n=self.violation_n[kept])

    @property
    def feasible(self) -> "Matrix":
        """The rows that keep every constraint."""
        return self if not self.violation_n.any() else self.rows(np.flatnonzero(self.violation_n == 0.0))


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
    strict: bool = True,
) -> Matrix:
    """The objective matrix of the candidates that can be compared.

    Left out before any sorting: whatever is not `trained` (failed, gated, rejected), and whoever lacks an objective or
    a constrained figure, or has a value there that is not finite. (Non-dominated sorting can put a row with NaN into
    the first front.) Raises InputError for an objective or a constraint that no trained report has, unless `strict` is
    False: of a few candidates it may be that none has it. Without trained reports the matrix has no rows.
    """
    trained = [report for report in in_order(reports) if report.status is Status.TRAINED]
    wanted, count = (*objectives, *constraints), len(objectives)
    ids: list[str] = []
    rows: list[list[float]] = []
    complete = True
    for report in trained:
        values = [report.value(name) for name in wanted]
        finite = [value for value in values if value is not None and math.isfinite(value)]
        if len(finite) == len(values):
            ids.append(report.id)
            rows.append(finite)
        complete = complete and None not in values
    if strict and not complete:
        _check_known(measured(trained), objectives, constraints)
    signs_m = np.array([-1.0 if direction == "max" else 1.0 for direction in objectives.values()])
    F_nm = np.array([row[:count] for row in rows], dtype=np.float64).reshape(len(rows), count) * signs_m
    limits = tuple(constraints.values())
    outside = [sum(limit.violation(value) for limit, value in zip(limits, row[count:], strict=True)) for row in rows]
    return Matrix(tuple(ids), tuple(objectives), signs_m, F_nm, np.array(outside, dtype=np.float64))


def _check_known(known: set[str], objectives: Mapping[str, Direction], constraints: Mapping[str, Bounds]) -> None:
    for field, names in (("objectives", objectives), ("constraints", constraints)):
        for name in names:
            if name not in known:
                raise InputError(unknown(f"evolution.{field}.{name}", name, known))


def resolve(name: str, objectives: Mapping[str, Direction]) -> tuple[str, Direction]:
    """What a weight's name measures and which direction is better.

    The objectives' own direction comes first, then SCORES (`-` and `_` are the same), then LESS_IS_BETTER.
    """
    if name in objectives:
        return name, objectives[name]
    if (key := name.replace("-", "_")) in SCORES:
        return SCORES[key]
    return name, "min" if name.startswith(LESS_IS_BETTER) else "max"


def check_weights(reports: Sequence[Report], weights: Mapping[str, float], objectives: Mapping[str, Direction]) -> None:
    """Raises InputError for a weight that is not finite, or whose value no trained report has."""
    known = measured(report for report in reports if report.status is Status.TRAINED)
    for name, weight in weights.items():
        if not np.isfinite(weight):
            raise InputError(f"evolution.weights.{name}: got {weight!r}, expected a finite number")
        if known and resolve(name, objectives)[0] not in known:
            raise InputError(unknown(f"evolution.weights.{name}", resolve(name, objectives)[0], known))


def normalised(values: Sequence[float | None], direction: Direction) -> Floats:
    """Scores in [0, 1], shape (n,): 1 for the best value, 0 for the worst and for a missing or non-finite one.

    Where all finite values are equal they all score 1.
    """
    raw_n = np.array([np.nan if value is None else value for value in values], dtype=np.float64)
    finite_n = np.isfinite(raw_n)
    scores_n = np.zeros(len(raw_n))
    if finite_n.any():
        good_n = raw_n[finite_n] * (1.0 if direction == "max" else -1.0)
        low, high = float(good_n.min()), float(good_n.max())
        scores_n[finite_n] = (good_n - low) / (high - low) if high > low else 1.0
    return scores_n


def weighted_scores(
    reports: Sequence[Report],
    weights: Mapping[str, float],
    objectives: Mapping[str, Direction],
    *,
    strict: bool = True,
) -> Floats:
    """Sum of weight x normalised score, shape (n,), larger is better. Without weights every objective weighs 1.

    InputError as `check_weights`, where `strict`.
    """
    if strict:
        check_weights(reports, weights, objectives)
    total_n = np.zeros(len(reports))
    for name, weight in (weights or dict.fromkeys(objectives, 1.0)).items():
        value, direction = resolve(name, objectives)
        total_n += weight * normalised([report.value(value) for report in reports], direction)
    return total_n


def reference_point(root: Matrix) -> dict[str, float]:
    """The reference of the run's hypervolumes, fixed once from the root generation and recorded with every generation.

    Per objective, in its own units: the root generation's worst value, made worse by a tenth of its size (by 1 where
    it is zero). Raises InputError when nothing in the root generation could be measured.
    """
    if not root.ids:
        raise InputError("hypervolume: no candidate of the root generation was measured: no reference point")
    worst_m = root.F_nm.max(axis=0)
    point_m = worst_m + np.where(worst_m == 0.0, 1.0, 0.1 * np.abs(worst_m))
    return {name: float(value) for name, value in zip(root.names, point_m * root.signs_m, strict=True)}


def hypervolume(scored: Matrix, reference: Mapping[str, float]) -> float:
    """Volume dominated by `scored` up to `reference`, each axis in units of the reference's size.

    A point that is worse than the reference anywhere, or breaks a constraint, adds nothing; none better gives 0. With
    one reference, volumes of different generations compare: adding candidates never makes it smaller. Zitzler and
    Thiele 1998, by pymoo.
    """
    if set(reference) != set(scored.names):
        raise InputError(f"hypervolume: reference names {sorted(reference)}, expected {sorted(scored.names)}")
    own_m = np.array([reference[name] for name in scored.names])
    scale_m = np.where(own_m == 0.0, 1.0, np.abs(own_m))
    F_nm, corner_m = scored.feasible.F_nm / scale_m, own_m * scored.signs_m / scale_m
    inside_nm = F_nm[(F_nm < corner_m).all(axis=1)]
    return float(HV(ref_point=corner_m)(inside_nm)) if len(inside_nm) else 0.0
