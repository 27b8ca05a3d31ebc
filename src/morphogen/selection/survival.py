"""Who stays: pure functions from reports to the ids of the survivors, best first.

An installed package adds its own rules as entry points of the group `morphogen.survival`.

Only trained candidates can stay; those without a finite value of every objective come last. Ties go to the smaller id.
"""

from collections.abc import Callable, Iterable, Mapping

import numpy as np

from morphogen import plugins
from morphogen.candidate import Report
from morphogen.errors import InputError
from morphogen.figures import Bounds, Direction, Noise
from morphogen.selection.contribution import partitions, smsemoa
from morphogen.selection.noise import NO_NOISE
from morphogen.selection.objectives import Floats, Ints, Matrix, matrix
from morphogen.selection.pareto import constrained_ranks, order, ranks

#: (matrix, age rank of each row: 0 the oldest, objectives of the run's frontier, how many, generator) -> row numbers,
#: in any order
Survival = Callable[[Matrix, Ints, Floats, int, np.random.Generator], Ints]
SURVIVAL: dict[str, Survival] = {}


def survival(rule: Survival) -> Survival:
    """Registers a rule under its function's name, by which an experiment asks for it."""
    SURVIVAL[rule.__name__] = rule
    return rule


survival(smsemoa)


@survival
def rank_crowding(scored: Matrix, birth_n: Ints, best_km: Floats, keep: int, rng: np.random.Generator) -> Ints:
    """By non-dominated front, then by crowding (NSGA-II, Deb et al. 2002)."""
    return order(scored)[:keep]


@survival
def ageing(scored: Matrix, birth_n: Ints, best_km: Floats, keep: int, rng: np.random.Generator) -> Ints:
    """The youngest, however good the others are (regularised evolution, Real et al. 2019)."""
    return np.argsort(-birth_n, kind="stable")[:keep]


def reference_directions(objectives: int, keep: int) -> Floats:
    """Das and Dennis's directions, shape (r, m): as many partitions as give at most `keep` of them, at least one."""
    from pymoo.util.ref_dirs import get_reference_directions

    return np.asarray(
        get_reference_directions("das-dennis", objectives, n_partitions=partitions(objectives, keep)), dtype=np.float64
    )


@survival
def nsga3(scored: Matrix, birth_n: Ints, best_km: Floats, keep: int, rng: np.random.Generator) -> Ints:
    """By non-dominated front; the front that does not fit whole is thinned evenly over reference directions.

    NSGA-III, Deb and Jain 2014, of pymoo's pieces. The scale is that of the run's frontier and the candidates at hand:
    of these alone, it would shrink whenever an extreme one is thinned out. While fewer than `keep` candidates are
    feasible, the others follow by their violation.
    """
    feasible = np.flatnonzero(scored.violation_n == 0.0)
    if len(feasible) <= keep:
        return order(scored)[:keep]
    able = scored.rows(feasible)
    F_nm = able.F_nm
    from pymoo.algorithms.moo.nsga3 import HyperplaneNormalization, associate_to_niches, calc_niche_count, niching

    rank_n = ranks(F_nm, able.tie_mnn)
    splitting = int(np.sort(rank_n)[keep - 1]) if keep else 0
    whole, last = np.flatnonzero(rank_n < splitting), np.flatnonzero(rank_n == splitting)
    scale = HyperplaneNormalization(F_nm.shape[1])
    known = np.concatenate([F_nm, best_km])
    with np.errstate(all="ignore"):
        scale.update(known, nds=np.flatnonzero(ranks(known) == 0))
    directions = reference_directions(F_nm.shape[1], keep)
    niche_n, distance_n, _ = associate_to_niches(F_nm, directions, scale.ideal_point, scale.nadir_point)
    count_r = calc_niche_count(len(directions), niche_n[whole])
    thinned = niching(last, keep - len(whole), count_r, niche_n[last], distance_n[last], random_state=rng)
    chosen: Ints = feasible[np.concatenate([whole, last[np.array(thinned, dtype=np.int64)]])]
    return chosen


def survive(
    name: str,
    reports: Iterable[Report],
    objectives: Mapping[str, Direction],
    constraints: Mapping[str, Bounds],
    keep: int,
    births: Mapping[str, int],
    rng: np.random.Generator,
    best: Matrix,
    noise: Noise = NO_NOISE,
) -> tuple[str, ...]:
    """Ids of at most `keep` survivors chosen by the rule called `name`, best first.

    births: when each came to be. best: the run's frontier, which gives `nsga3` and `smsemoa` their scale.

    Raises ValueError for a negative `keep`; InputError for an unknown rule, or for what it gives that are no survivors.
    """
    if keep < 0:
        raise ValueError(f"survive: keep is {keep}, expected at least 0")
    rule = plugins.choose(plugins.SURVIVAL, SURVIVAL, name)
    scored = matrix(reports, objectives, constraints, noise=noise, strict=False)
    birth_n = np.array([births[id] for id in scored.ids], dtype=np.int64)
    chosen = np.unique(rule(scored, birth_n, best.F_nm, keep, rng)).astype(np.int64)
    count = len(scored.ids)
    if not min(1, keep, count) <= len(chosen) <= keep or not np.isin(chosen, np.arange(count)).all():
        raise InputError(
            f"evolution.survival: {name} gave the rows {chosen.tolist()}, expected 1 to {keep} of the {count} there are"
        )
    kept = scored.rows(chosen)
    return tuple(kept.ids[row] for row in order(kept))


def front(
    reports: Iterable[Report],
    objectives: Mapping[str, Direction],
    constraints: Mapping[str, Bounds] = {},
    noise: Noise = NO_NOISE,
) -> Matrix:
    """The Pareto frontier in order of id: the trained candidates that no other one dominates, be it by what is more
    than noise alone. While none keeps the constraints, those that are least far outside; while none has a value of
    every objective, the best by those that they have."""
    scored = matrix(reports, objectives, constraints, noise=noise, strict=False)
    return scored.rows(np.flatnonzero(constrained_ranks(scored) == 0))
