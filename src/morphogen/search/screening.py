"""Screening: of several children drawn for one place in a generation, the one that a cheap model likes best is trained.

The model is fitted to what the run has measured so far: genomes as numbers, and their costs, to the figures that
objectives and constraints name. What it predicts of children stands in the ledger before they are trained, so that how
well it ranks them is known; where that does not hold, children are taken as they are drawn, until it does again.
Everything is a function of the run's events and seed. Legend: n genomes, f features, t figures, m objectives.
"""

import math
import warnings
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np

from morphogen.candidate import Report, Status, stream
from morphogen.experiment import Evolution
from morphogen.selection.contribution import gains, scaled
from morphogen.selection.objectives import Floats, matrix
from morphogen.store.ledger import Asked, Screened

#: Trained candidates that a model is fitted to: none with fewer than the first, the latest with more than the second.
LEAST, MOST = 10, 400
#: The rule of when predictions hold: Kendall's τ over the pairs of one generation, of the last so many generations
#: together, is above the bound, or there are not yet so many pairs.
GENERATIONS, BOUND, PAIRS = 5, 0.1, 30
#: Numbers are cut to this size, so that squares of them are numbers; places, in units of the frontier, to that.
LARGEST, FAR = 1e100, 1e6
#: Trees of the model, and the corner of its volumes beyond the frontier's scale.
TREES, CORNER = 50, 1.5
#: Folds that the three models are compared by, and how steeply their weights fall with the mean square of what they are
#: off: of few rows all count, of many the best alone.
FOLDS, STEEPNESS = 3, 8

#: The figures of one candidate by name.
Figures = Mapping[str, float]


class Model:
    """A ridge regression, bagged trees, and a Gaussian process, each by scikit-learn: of every figure their mean, each
    weighted by how well it predicts what it was not fitted to."""

    def __init__(self, rows: Sequence[Figures], wanted: Sequence[Figures], seed: int) -> None:
        """rows: features by name. wanted: for each of them the figures to predict, the same names in all."""
        self._names = sorted(set().union(*rows))
        self.figures = tuple(wanted[0])
        X_nf = self._table(rows)
        self._low_f = X_nf.min(axis=0)
        size_f = X_nf.max(axis=0) - self._low_f
        self._size_f = np.where(size_f > 0.0, size_f, np.inf)  # what never varied tells nothing
        y_nt = np.clip([list(figures.values()) for figures in wanted], -LARGEST, LARGEST)
        first_t, third_t = np.percentile(y_nt, [25.0, 75.0], axis=0)
        reach_t = np.where(third_t > first_t, 3.0 * (third_t - first_t), np.inf)  # further out is an accident
        y_nt = np.clip(y_nt, first_t - reach_t, third_t + reach_t)
        self._mean_t, spread_t = y_nt.mean(axis=0), y_nt.std(axis=0)
        self._spread_t = np.where(spread_t > 0.0, spread_t, 1.0)
        X_nf, z_nt = (X_nf - self._low_f) / self._size_f, (y_nt - self._mean_t) / self._spread_t
        self._weight_mt = _weights(X_nf, z_nt, seed)
        self._fitted = _fitted(X_nf, z_nt, seed)

    def predict(self, rows: Sequence[Figures]) -> list[dict[str, float]]:
        """The figures of genomes of these features."""
        each_mnt = _predicted(self._fitted, (self._table(rows) - self._low_f) / self._size_f)
        y_nt = np.einsum("mt,mnt->nt", self._weight_mt, each_mnt) * self._spread_t + self._mean_t
        return [dict(zip(self.figures, row, strict=True)) for row in y_nt.tolist()]

    def _table(self, rows: Sequence[Figures]) -> Floats:
        found = [[row.get(name, 0.0) for name in self._names] for row in rows]
        return np.clip(np.array(found, dtype=np.float64), -LARGEST, LARGEST)


def _fitted(X_nf: Floats, z_nt: Floats, seed: int) -> tuple[Any, ...]:
    """The three models, fitted to features between 0 and 1 and figures of mean 0 and spread 1."""
    from sklearn.ensemble import ExtraTreesRegressor
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF, WhiteKernel
    from sklearn.linear_model import RidgeCV
    from threadpoolctl import threadpool_limits

    varied = int(np.count_nonzero(X_nf.std(axis=0)))
    wide = math.sqrt(max(1, varied) / 6.0)  # the distance of two points drawn evenly
    kernel = RBF(wide, (0.05 * wide, 20.0 * wide)) + WhiteKernel(0.1, (1e-5, 1e1))
    ridge = RidgeCV(alphas=np.logspace(-2, 3, 6), alpha_per_target=z_nt.shape[1] > 1)
    trees = ExtraTreesRegressor(n_estimators=TREES, bootstrap=True, max_features=0.5, random_state=seed, n_jobs=1)
    process = GaussianProcessRegressor(kernel, random_state=seed)
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a kernel at the end of its range is as good as it gets
        targets = z_nt[:, 0] if z_nt.shape[1] == 1 else z_nt
        return tuple(model.fit(X_nf, targets) for model in (ridge, trees, process))


def _predicted(models: Sequence[Any], X_nf: Floats) -> Floats:
    """What each of the models predicts (m, n, t)."""
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):  # how a sum is split over threads changes its last bits
        return np.array([model.predict(X_nf).reshape(len(X_nf), -1) for model in models])


def _weights(X_nf: Floats, z_nt: Floats, seed: int) -> Floats:
    """How much each of the three models counts for each figure (m, t), by its error on rows that it was not fitted to
    (a super learner, van der Laan et al. 2007)."""
    from sklearn.model_selection import KFold

    error_mt: Floats = np.full((3, z_nt.shape[1]), 1e-9)
    for fold, (known_n, held_n) in enumerate(KFold(FOLDS, shuffle=True, random_state=seed).split(X_nf)):
        models = _fitted(X_nf[known_n], z_nt[known_n], seed + fold)
        error_mt += np.mean(np.square(_predicted(models, X_nf[held_n]) - z_nt[held_n]), axis=1)
    weight_mt = (error_mt.min(axis=0) / error_mt) ** STEEPNESS
    return np.asarray(weight_mt / weight_mt.sum(axis=0))


class Draw(NamedTuple):
    """A child that may be trained, as a model sees it. rejected: whether rung 0 would turn it away."""

    features: Figures
    costs: Figures
    rejected: bool


class Screen:
    """Chooses for the places of one generation, one after another.

    A child that is chosen counts at once as if it were what is predicted of it, so that the next place goes to another
    gap of the frontier. predicted: what is predicted of the chosen, by the index of their candidate; screened: of those
    that were chosen among several.

    known: those who may breed and the frontier. draws: for a place; 1 where predictions do not
    hold, so that they are only made. share: of places that go to the first draw nevertheless.
    """

    def __init__(self, evolution: Evolution, model: Model, known: Iterable[Report], *, on: bool, seed: int) -> None:
        self._model, self._objectives, self._constraints = model, evolution.objectives, evolution.constraints
        scored = matrix(known, self._objectives, self._constraints, strict=False)
        self._known_km = scored.feasible.F_nm if scored.feasible.ids else scored.F_nm
        self._scale_km = self._known_km
        self._most, self._share, self._seed = evolution.screening_draws if on else 1, evolution.screening_share, seed
        self.predicted: dict[int, dict[str, float]] = {}
        self.screened: list[int] = []

    def recorded(self, event: Asked) -> Asked:
        """The event of asking, with what was predicted of its candidates."""
        places = {candidate.index: candidate.id for candidate in event.candidates}
        predicted = {places[index]: figures for index, figures in self.predicted.items()}
        return event.replace(predicted=predicted, screened=tuple(places[index] for index in self.screened))

    def draws(self, index: int) -> int:
        """How many children to draw for the place of the candidate with this index."""
        free = stream(self._seed, index, "screening").random() < self._share
        return 1 if free else self._most

    def choose(self, index: int, draws: Sequence[Draw]) -> int:
        """The number of the draw to train for a place."""
        figures = self._model.predict([draw.features for draw in draws])
        reports = [
            Report(id=f"{i:05}", status=Status.TRAINED, metrics=found, costs=dict(draw.costs))
            for i, (draw, found) in enumerate(zip(draws, figures, strict=True))
        ]
        scored = matrix(reports, self._objectives, self._constraints, strict=False)
        gain_n = gains(self._placed(scored.F_nm), self._placed(self._known_km), CORNER)
        rejected_n = np.array([draw.rejected for draw in draws])
        row = int(np.lexsort((-gain_n, scored.violation_n, rejected_n))[0])
        if scored.violation_n[row] == 0.0 and not draws[row].rejected:
            self._known_km = np.vstack([self._known_km, scored.F_nm[row]])
        self.predicted[index] = figures[row]
        self.screened += [index] if len(draws) > 1 else []
        return row

    def _placed(self, F_nm: Floats) -> Floats:
        return np.clip(scaled(F_nm, self._scale_km), -FAR, FAR)


def to_predict(evolution: Evolution, costs: Iterable[str]) -> tuple[str, ...]:
    """What objectives and constraints name besides costs and what is composed of costs alone; of some genome that may
    have no value, such as a ratio to nothing."""
    known = set(costs)
    for name, composite in evolution.composite_metrics.items():
        known |= {name} if known.issuperset(composite.names) else set()
    return tuple(name for name in (*evolution.objectives, *evolution.constraints) if name not in known)


def asked_for(evolution: Evolution) -> bool:
    """Whether children are screened; those of the baselines are not."""
    return evolution.screening == "model" and evolution.baseline == "none" and evolution.edits


class Screening:
    """What a run knows for its screening: genomes as numbers with what was first measured of them, and how well that
    was predicted of those of the last generations."""

    def __init__(self, evolution: Evolution, seed: int) -> None:
        self._evolution, self._seed, self._on = evolution, seed, True
        self._rows: deque[tuple[Figures, Figures]] = deque(maxlen=MOST)
        self._born: dict[str, Figures] = {}
        self._wanted: tuple[str, ...] | None = None
        self._predicted: dict[str, dict[str, float]] = {}
        self._judged: deque[list[tuple[Figures, Figures]]] = deque(maxlen=GENERATIONS)

    def features(self, genome: Figures, costs: Figures, parents: Sequence[Report]) -> Figures:
        """All that is known of a child before it is trained; with its parents' weights, what they reached too."""
        found = {**genome, **{f"cost {name}": float(np.log1p(abs(value))) for name, value in costs.items()}}
        if self._wanted is None:
            self._wanted = to_predict(self._evolution, costs)
        for name in self._wanted if self._evolution.weight_inheritance == "parent" else ():
            values = [value for parent in parents if (value := parent.value(name)) is not None]
            if values and np.isfinite(values).all():
                found[f"of the parents: {name}"] = sum(values) / len(values)
        return found

    def asked(self, born: Mapping[str, Figures], predicted: Mapping[str, dict[str, float]]) -> None:
        """A generation was asked for. born: the features of its candidates."""
        self._born, self._predicted = dict(born), dict(predicted)

    def screen(self, known: Iterable[Report], generation: int) -> Screen | None:
        """What chooses for a generation; None while too little was measured, or nothing is to be predicted."""
        if len(self._rows) < LEAST or not self._wanted:
            return None
        seed = int(stream(self._seed, generation, "screening model").integers(2**31))
        model = Model([features for features, _ in self._rows], [figures for _, figures in self._rows], seed)
        return Screen(self._evolution, model, known, on=self._on, seed=self._seed)

    def judgement(self, reports: Mapping[str, Report]) -> Screened:
        """How well the generation that is about to close was predicted, and what follows."""
        now, wanted = self._outcomes(reports), self._wanted or ()
        last = [*self._judged, now][-GENERATIONS:]
        together = [tau for name in wanted if (tau := rank_correlation(last, name)) is not None]
        pairs = sum(len(outcomes) * (len(outcomes) - 1) // 2 for outcomes in last)
        held = float(np.mean(together)) if together else 0.0
        each = {name: rank_correlation([now], name) for name in wanted}
        return Screened(
            correlation={name: tau for name, tau in each.items() if tau is not None},
            together=held,
            pairs=pairs,
            on=pairs < PAIRS or held > BOUND,
        )

    def closed(self, reports: Mapping[str, Report], judged: Screened) -> None:
        """A generation was closed with this judgement."""
        if outcomes := self._outcomes(reports):
            self._judged.append(outcomes)
        self._rows.extend((self._born[id], figures) for id, figures in self._measured(reports).items())
        self._on = judged.on
        self._born, self._predicted = {}, {}

    def _measured(self, reports: Mapping[str, Report]) -> dict[str, Figures]:
        """What is to be predicted, of those of the open generation for whom all of it was measured."""
        inherits = self._evolution.weight_inheritance == "parent"
        found: dict[str, Figures] = {}
        wanted = self._wanted or ()
        for id, features in self._born.items():
            values = [reports[id].value(name) for name in wanted]
            known = [value for value in values if value is not None and np.isfinite(value)]
            orphan = inherits and not any(name.startswith("of the parents: ") for name in features)
            if reports[id].status is Status.TRAINED and len(known) == len(values) and not orphan:
                found[id] = dict(zip(wanted, known, strict=True))
        return found

    def _outcomes(self, reports: Mapping[str, Report]) -> list[tuple[Figures, Figures]]:
        measured = self._measured(reports)
        return [(figures, measured[id]) for id, figures in self._predicted.items() if id in measured]


def rank_correlation(generations: Iterable[Sequence[tuple[Figures, Figures]]], name: str) -> float | None:
    """Kendall's τ between the first and the second figures of that name, over the pairs of each generation together;
    pairs that were measured alike do not count. None without any that do."""
    agree = count = 0
    for outcomes in generations:
        for (guess, found), (other_guess, other_found) in combinations(outcomes, 2):
            way = np.sign(found[name] - other_found[name])
            agree += int(way * np.sign(guess[name] - other_guess[name]))
            count += int(way != 0.0)
    return agree / count if count else None
