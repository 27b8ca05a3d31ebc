"""The same search over vectors: operators against their laws, and a known front."""

import numpy as np
import pytest
from pymoo.indicators.hv import HV
from pymoo.operators.crossover.sbx import cross_sbx
from pymoo.operators.mutation.pm import mut_pm
from pymoo.problems import get_problem

from morphogen.candidate import Candidate
from morphogen.experiment import Evolution
from morphogen.testing import Vectors, searched

LOW, HIGH = np.array([0.0, -2.0, 1.0]), np.array([1.0, 2.0, 4.0])
SPACE = Vectors(LOW, HIGH, founders=5)
FIRST, SECOND = np.array([0.1, 1.5, 3.9]), np.array([0.7, -1.9, 1.2])


def sorted_draws(make, count=4000):
    return np.sort(np.array([make(np.random.default_rng([1, i])) for i in range(count)]), axis=0)


def apart(a, b):
    """The largest Kolmogorov-Smirnov distance over the variables."""
    from scipy.stats import ks_2samp

    return max(ks_2samp(x, y).statistic for x, y in zip(a.T, b.T, strict=True))


def test_crossover_has_the_law_of_pymoo():
    ours = sorted_draws(lambda rng: SPACE._binary(FIRST, SECOND, rng))
    parents = np.repeat(np.stack([FIRST, SECOND])[:, None], 4000, axis=1)
    eta, half = np.full((4000, 1), 15.0), np.full((4000, 1), 0.5)
    theirs = cross_sbx(parents, LOW, HIGH, eta, half, half, random_state=np.random.default_rng(2))[0]
    assert apart(ours, theirs) < 0.043


def test_mutation_has_the_law_of_pymoo():
    ours = sorted_draws(lambda rng: SPACE._polynomial(FIRST, rng))
    tiled = np.repeat(FIRST[None], 4000, axis=0)
    args = (np.full(4000, 20.0), np.full(4000, 1 / 3), False)
    theirs = mut_pm(tiled, LOW, HIGH, *args, random_state=np.random.default_rng(2))
    assert apart(ours, theirs) < 0.043


def test_children_stay_within_bounds_and_vectors_survive_json():
    rng = np.random.default_rng(0)
    for _ in range(300):
        first, second = (rng.choice([LOW, HIGH, FIRST, SECOND]) for _ in range(2))
        child, _ = SPACE.crossover(first, second, rng)
        assert ((child >= LOW) & (child <= HIGH)).all()
        record = Candidate(id="a", index=0, generation=0, **SPACE.record(child))
        again = SPACE.load(Candidate.model_validate_json(record.model_dump_json()))
        assert SPACE.digest(again) == SPACE.digest(child)


def evolved(generations, **settings):
    problem = get_problem("zdt1", n_var=6)
    objectives = {"f1": "min", "f2": "min"}
    evolution = Evolution(generations=generations, population=40, topk_keep=40, objectives=objectives, **settings)
    space = Vectors(problem.xl, problem.xu, founders=40)
    search = searched(
        evolution, space, lambda x_v: dict(zip(objectives, problem.evaluate(x_v).tolist(), strict=True)), 0
    )
    return search, [[search.reports[id].metrics[f] for f in objectives] for id in search.survivors]


@pytest.mark.parametrize(
    "survival", ["rank_crowding", *(pytest.param(name, marks=pytest.mark.slow) for name in ("nsga3", "smsemoa"))]
)
def test_the_known_front_of_zdt1_is_found(survival):
    search, values = evolved(60, parent_selection="tournament", crossover_prob=0.9, survival=survival)
    front = get_problem("zdt1").pareto_front(n_pareto_points=1000)
    volume = HV(ref_point=np.array([1.1, 1.1]))
    assert volume(np.array(values)) / volume(front) > 0.97
    assert len(search.candidates) == 61 * 40
    assert len(search.frontier_ids) > 40
    one, other = (evolved(12, parent_selection="tournament", crossover_prob=0.9, survival=survival) for _ in "12")
    assert one[0].generations == other[0].generations
