"""Who breeds: a registry of pure functions from the pool of those who may to the row number of one parent.

An installed package adds its own as entry points of the group `morphogen.selectors`.

The pool holds only trained candidates, in order of id. Where any of them keeps every constraint, it holds only those
who do; while none does, by how much each is outside is the pool's only objective. Whoever lacks a finite value of an
objective or a constrained figure is in it only while everyone does.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from morphogen import plugins
from morphogen.candidate import Report
from morphogen.errors import InputError, RunError, unknown
from morphogen.figures import Bounds, Descriptor, Direction, Noise, Said, direction, figure_called
from morphogen.selection.lexicase import choose, deviations
from morphogen.selection.map_elites import cells
from morphogen.selection.noise import NO_NOISE, shown, tolerances
from morphogen.selection.objectives import (
    Floats,
    Ints,
    check_weights,
    in_order,
    matrix,
    measured,
    weighted_scores,
)
from morphogen.selection.pareto import crowding, ranks


@dataclass(frozen=True)
class Rules:
    """What selectors may ask for. objectives, constraints and weights as in an experiment.

    said: which way other figures are better, where the experiment says so. cases: figures that lexicase goes through
    instead of the objectives. downsample: the share of cases that down-sampled lexicase looks at. tournament_size:
    candidates drawn for a tournament. descriptors: the axes of MAP-Elites' cells. noise: which differences count.
    strict: whether a case or a weight that nobody in the pool has a figure for is a mistake; else it tells nobody from
    the others.
    """

    objectives: Mapping[str, Direction]
    said: Said = field(default_factory=dict)
    constraints: Mapping[str, Bounds] = field(default_factory=dict)
    weights: Mapping[str, float] = field(default_factory=dict)
    cases: Sequence[str] = ()
    downsample: float = 0.5
    tournament_size: int = 2
    descriptors: Mapping[str, Descriptor] = field(default_factory=dict)
    noise: Noise = NO_NOISE
    strict: bool = True

    @property
    def directions(self) -> Said:
        """Which way figures are better where the experiment says so."""
        return {**self.said, **self.objectives}


@dataclass(frozen=True)
class Pool:
    """Those who may breed (n) with their objectives F_nm and lexicase cases F_nc, minimised, the cases' weights, and
    their weighted scores.

    What is computed of it is computed once, however many parents are drawn. deck: the rows that have not stood in a
    tournament since the pool was last shuffled.
    """

    ids: tuple[str, ...]
    F_nm: Floats
    F_nc: Floats
    score_n: Floats
    cell_n: Ints
    rules: Rules
    tie_mnn: Floats | None = None
    tie_cnn: Floats | None = None
    weight_c: Floats | None = None
    deck: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, reports: Iterable[Report], rules: Rules) -> "Pool":
        """InputError for an objective, a constraint, a case or a weight that nothing measured, where the rules are
        strict; RunError when no candidate can be selected."""
        ordered = in_order(reports)
        if rules.strict:
            check_weights(ordered, rules.weights, rules.directions)
        scored = matrix(ordered, rules.objectives, rules.constraints, noise=rules.noise, strict=rules.strict)
        if not scored.ids:
            raise RunError(f"no parent to select: none of {len(ordered)} candidates was trained")
        best = next(part for part in (scored.feasible, scored.complete, scored) if part.ids)
        held = {report.id: report for report in ordered}
        able = [held[id] for id in best.ids]
        cell_n = cells(able, rules.descriptors)
        if best.ids != scored.feasible.ids and np.isfinite(best.violation_n).all():
            F_n1 = best.violation_n[:, None]
            return cls(best.ids, F_n1, F_n1, -best.violation_n, cell_n, rules)
        score_n = weighted_scores(able, rules.weights, rules.objectives, rules.directions, strict=False)
        if rules.weights:
            F_nc, tie_cnn, weight_c = _weighted_cases(able, rules)
        else:
            F_nc, tie_cnn = _cases(able, rules, rules.cases) if rules.cases else (best.F_nm, best.tie_mnn)
            weight_c = None
        return cls(best.ids, best.F_nm, F_nc, score_n, cell_n, rules, best.tie_mnn, tie_cnn, weight_c)

    def __len__(self) -> int:
        return len(self.ids)

    def without(self, row: int) -> "Pool":
        """The others, with the ranks, distances and tolerances that they had in the whole pool."""
        kept = np.delete(np.arange(len(self)), row)
        made = replace(
            self,
            ids=(*self.ids[:row], *self.ids[row + 1 :]),
            F_nm=self.F_nm[kept],
            F_nc=self.F_nc[kept],
            score_n=self.score_n[kept],
            cell_n=self.cell_n[kept],
            tie_mnn=None if self.tie_mnn is None else self.tie_mnn[:, kept][:, :, kept],
            tie_cnn=None if self.tie_cnn is None else self.tie_cnn[:, kept][:, :, kept],
            deck=[],
        )
        made.__dict__.update(rank_n=self.rank_n[kept], crowding_n=self.crowding_n[kept], epsilon_c=self.epsilon_c)
        return made

    @cached_property
    def rank_n(self) -> Ints:
        """The non-dominated front of each row."""
        return ranks(self.F_nm, self.tie_mnn)

    @cached_property
    def crowding_n(self) -> Floats:
        """The crowding distance of each row within its front."""
        return crowding(self.F_nm, self.rank_n)

    @cached_property
    def epsilon_c(self) -> Floats:
        """Epsilon-lexicase's tolerance for each case."""
        return deviations(self.F_nc)


def _weighted_cases(reports: Sequence[Report], rules: Rules) -> tuple[Floats, Floats | None, Floats]:
    """The cases with those that have a weight among them, and all weights: 1 where none is given. One below 0 turns its
    case round."""
    weights = {figure_called(name): weight for name, weight in rules.weights.items()}
    names = list(dict.fromkeys([*(figure_called(name) for name in rules.cases or rules.objectives), *weights]))
    F_nc, tie_cnn = _cases(reports, rules, names)
    weight_c = np.array([weights.get(name, 1.0) for name in names], dtype=np.float64)
    turned = np.where(np.isfinite(F_nc), F_nc * np.where(weight_c < 0.0, -1.0, 1.0), np.inf)
    return turned, tie_cnn, np.abs(weight_c)


def _cases(reports: Sequence[Report], rules: Rules, names: Sequence[str]) -> tuple[Floats, Floats | None]:
    """The figures that lexicase goes through, minimised, shape (n, c), a missing or non-finite one being infinitely
    bad; and how far two rows may be apart by noise alone, shape (c, n, n), where there is any. InputError for a figure
    that no report has, where the rules are strict."""
    columns = []
    for name in names:
        place, figure = f"evolution.lexicase_cases: {name}", figure_called(name)
        if rules.strict and all(report.value(figure) is None for report in reports):
            raise InputError(unknown(place, name, measured(reports)))
        better = direction(figure, rules.directions, place)
        sign = -1.0 if better == "max" else 1.0
        found = shown(reports, figure, better, rules.noise)
        columns.append([sign * value if np.isfinite(value) else np.inf for value in found])
    figures = [figure_called(name) for name in names]
    return np.array(columns, dtype=np.float64).T, tolerances(reports, figures, rules.noise)


#: (pool, generator) -> row number
Selector = Callable[[Pool, np.random.Generator], int]
SELECTORS: dict[str, Selector] = {}


def selector(rule: Selector) -> Selector:
    """Registers a rule under its function's name, by which an experiment asks for it."""
    SELECTORS[rule.__name__] = rule
    return rule


def by_score(pool: Pool, rows: Ints, rng: np.random.Generator) -> int:
    """One of several rows that a rule finds equal: evenly, or by weighted score where there are weights."""
    if not pool.rules.weights:
        return int(rng.choice(rows))
    return int(rng.choice(rows, p=weighted_probabilities(pool.score_n[rows])))


def weighted_probabilities(score_n: Floats) -> Floats:
    """Chance of each row, shape (n,), proportional to exp(score).

    A weight of w thus makes the best at its value e**w times as likely as the worst, all else being equal.
    """
    weight_n = np.exp(score_n - score_n.max())
    return np.asarray(weight_n / weight_n.sum(), dtype=np.float64)


@selector
def weighted(pool: Pool, rng: np.random.Generator) -> int:
    """Draws by weighted score."""
    return int(rng.choice(len(pool), p=weighted_probabilities(pool.score_n)))


@selector
def pareto_uniform(pool: Pool, rng: np.random.Generator) -> int:
    """Draws from the best front, evenly unless there are weights."""
    return by_score(pool, np.flatnonzero(pool.rank_n == pool.rank_n.min()), rng)


@selector
def lexicase(pool: Pool, rng: np.random.Generator) -> int:
    """Lexicase over the cases: specialists breed too."""
    return choose(pool.F_nc, np.zeros(pool.F_nc.shape[1]), rng, pool.tie_cnn, pool.weight_c)


@selector
def epsilon_lexicase(pool: Pool, rng: np.random.Generator) -> int:
    """Epsilon-lexicase over the cases."""
    return choose(pool.F_nc, pool.epsilon_c, rng, pool.tie_cnn, pool.weight_c)


@selector
def downsampled_lexicase(pool: Pool, rng: np.random.Generator) -> int:
    """Epsilon-lexicase over a fresh sample of the cases for every parent; of weight 0 none is in it."""
    asked = np.arange(pool.F_nc.shape[1]) if pool.weight_c is None else np.flatnonzero(pool.weight_c)
    cases = asked[rng.permutation(len(asked))[: max(1, round(pool.rules.downsample * len(asked)))]]
    tie_cnn = None if pool.tie_cnn is None else pool.tie_cnn[cases]
    weight_c = None if pool.weight_c is None else pool.weight_c[cases]
    return choose(pool.F_nc[:, cases], pool.epsilon_c[cases], rng, tie_cnn, weight_c)


@selector
def tournament(pool: Pool, rng: np.random.Generator) -> int:
    """The best of a few drawn at random: by front, then by crowding, then by the draw (NSGA-II, Deb et al. 2002).
    Weights stand before crowding.

    All stand in one tournament before anyone stands in the next, so that nobody is passed over by chance.
    """
    size = min(pool.rules.tournament_size, len(pool))
    if len(pool.deck) < size:
        pool.deck[:] = rng.permutation(len(pool)).tolist()
    drawn = [pool.deck.pop() for _ in range(size)]
    score_n = pool.score_n if pool.rules.weights else np.zeros(len(pool))
    return min(drawn, key=lambda row: (pool.rank_n[row], -score_n[row], -pool.crowding_n[row]))


@selector
def map_elites(pool: Pool, rng: np.random.Generator) -> int:
    """Draws a cell of behaviour evenly, then evenly among those in it (Mouret and Clune 2015); with weights both by the
    score, a cell by that of its best."""
    cells_k = np.unique(pool.cell_n)
    if not pool.rules.weights:
        cell = rng.choice(cells_k)
    else:
        best_k = np.array([pool.score_n[pool.cell_n == cell].max() for cell in cells_k])
        cell = rng.choice(cells_k, p=weighted_probabilities(best_k))
    return by_score(pool, np.flatnonzero(pool.cell_n == cell), rng)


def select_parent(name: str, pool: Pool, rng: np.random.Generator) -> int:
    """The row number of one parent, chosen by the selector called `name`, ours or an installed package's.

    Raises InputError where there is none of that name, or what it gives is no row of the pool.
    """
    row = plugins.choose(plugins.SELECTORS, SELECTORS, name)(pool, rng)
    if row not in range(len(pool)):
        raise InputError(f"evolution.parent_selection: {name} gave {row!r}, expected a row number below {len(pool)}")
    return int(row)
