"""Who breeds: a registry of pure functions from reports to one parent's id.

All of them look only at trained candidates with finite objectives, in order of id, and draw from the generator given.
"""

from collections.abc import Callable, Iterable, Mapping

import numpy as np

from morphogen.candidate import Report
from morphogen.errors import InputError, RunError, unknown
from morphogen.selection.lexicase import epsilon_lexicase
from morphogen.selection.objectives import Direction, Floats, Matrix, check_weights, in_order, matrix, weighted_scores
from morphogen.selection.pareto import ranks

#: (objective matrix, weighted score per row, generator) -> row number
Selector = Callable[[Matrix, Floats, np.random.Generator], int]


def weighted_probabilities(score_n: Floats) -> Floats:
    """Chance of each row, shape (n,), proportional to exp(score).

    A weight of w thus makes the best at its value e**w times as likely as the worst, all else being equal.
    """
    weight_n = np.exp(score_n - score_n.max())
    return np.asarray(weight_n / weight_n.sum(), dtype=np.float64)


def weighted(scored: Matrix, score_n: Floats, rng: np.random.Generator) -> int:
    """Draws by weighted score. The only one that the weights steer."""
    return int(rng.choice(len(score_n), p=weighted_probabilities(score_n)))


def pareto_uniform(scored: Matrix, score_n: Floats, rng: np.random.Generator) -> int:
    """Draws evenly from the non-dominated front."""
    return int(rng.choice(np.flatnonzero(ranks(scored.F_nm) == 0)))


def lexicase_objectives(scored: Matrix, score_n: Floats, rng: np.random.Generator) -> int:
    """Epsilon-lexicase with the objectives as cases: specialists breed too."""
    return epsilon_lexicase(scored.F_nm, rng)


SELECTORS: Mapping[str, Selector] = {
    "weighted": weighted,
    "pareto_uniform": pareto_uniform,
    "lexicase": lexicase_objectives,
}


def select_parent(
    name: str,
    reports: Iterable[Report],
    objectives: Mapping[str, Direction],
    weights: Mapping[str, float],
    rng: np.random.Generator,
) -> str:
    """The id of one parent, chosen by the selector called `name`. Independent of the order of `reports`.

    Raises InputError for an unknown selector, an objective or a weight that nothing measured; RunError when no
    candidate can be selected.
    """
    if name not in SELECTORS:
        raise InputError(unknown("evolution.parent_selection", name, SELECTORS))
    ordered = in_order(reports)
    check_weights(ordered, weights, objectives)
    scored = matrix(ordered, objectives)
    if not scored.ids:
        wanted = ", ".join(objectives)
        raise RunError(f"no parent to select: none of {len(ordered)} candidates was trained with finite {wanted}")
    usable = set(scored.ids)
    score_n = weighted_scores([report for report in ordered if report.id in usable], weights, objectives)
    return scored.ids[SELECTORS[name](scored, score_n, rng)]
