"""Screening: what the cheap model learns, whom it chooses, and that it is left out where it does not hold."""

import numpy as np
import pytest
from pymoo.problems import get_problem
from simulated import as_text, engine, measure, run, start

from morphogen.candidate import Report, Status
from morphogen.experiment import Evolution
from morphogen.notices import switched_off
from morphogen.search import screening
from morphogen.search.engine import Engine
from morphogen.search.screening import Model, rank_correlation
from morphogen.store.ledger import Asked, Generation
from morphogen.testing.vectors import Vectors, searched

SETTINGS = {"screening": "model", "screening_draws": 4, "generations": 4, "population": 6}


@pytest.fixture(scope="module", autouse=True)
def _few_trees():
    """What is asked here few trees answer as many do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(screening, "TREES", 8)
        yield


@pytest.fixture(scope="module")
def screened(_few_trees):
    """A search with screening, and its events."""
    search = engine(**SETTINGS)
    return search, run(search)


def rows(count, seed=0):
    rng = np.random.default_rng(seed)
    return [{f"x{i}": value for i, value in enumerate(row)} for row in rng.uniform(size=(count, 5)).tolist()]


def truth(row):
    return {"a": row["x0"] + np.sin(3.0 * row["x1"]), "b": 1e6 * (row["x2"] - 2.0 * row["x0"])}


def test_the_model_learns_several_figures_of_any_scale_and_an_accident_does_not_bend_it():
    known, new = rows(60), rows(40, seed=1)
    wanted = [truth(row) for row in known]
    wanted[7]["b"] = 1e30
    model = Model(known, wanted, seed=0)
    guessed, real = model.predict(new), [truth(row) for row in new]
    for name in ("a", "b"):
        assert rank_correlation([list(zip(guessed, real, strict=True))], name) > 0.7
    assert Model(known, wanted, seed=0).predict(new) == guessed
    assert model.predict([{"never seen": 1.0}])[0].keys() == {"a", "b"}


def test_of_each_figure_those_count_that_predict_it_and_one_that_predicts_nothing_does_not(monkeypatch):
    class Noise:
        def fit(self, X_nf, z_nt):
            return self

        def predict(self, X_nf):
            return np.random.default_rng(len(X_nf)).normal(size=(len(X_nf), 2))

    rng, fitted = np.random.default_rng(2), screening._fitted
    X_nf = rng.uniform(size=(150, 20))
    z_nt = np.stack([X_nf @ rng.normal(size=20), np.where(X_nf[:, 0] > 0.5, 1.0, -1.0)], 1)
    line_t, tree_t = screening._weights(X_nf, z_nt, 0)[:2].T
    assert line_t[0] > 0.9
    assert tree_t[1] > 0.5
    monkeypatch.setattr(screening, "_fitted", lambda X_nf, z_nt, seed: (*fitted(X_nf, z_nt, seed)[:2], Noise()))
    assert screening._weights(X_nf, z_nt, 0)[2].max() < 1e-3
    assert screening._weights(X_nf, z_nt, 0).sum(axis=0) == pytest.approx([1.0, 1.0])
    few_mt = screening._weights(X_nf[:10], rng.normal(size=(10, 2)), 0)
    assert few_mt.min() > 0.0
    assert few_mt.sum(axis=0) == pytest.approx([1.0, 1.0])


def test_rank_correlation_counts_the_pairs_of_each_generation_alone():
    def outcomes(*pairs):
        return [({"a": float(x)}, {"a": float(y)}) for x, y in pairs]

    up, down = outcomes((1, 1), (2, 2), (3, 3)), outcomes((10, 9), (11, 8))
    assert rank_correlation([up], "a") == 1.0
    assert rank_correlation([up, down], "a") == pytest.approx((3 - 1) / 4)
    assert rank_correlation([outcomes((1, 5), (2, 5))], "a") is None
    assert rank_correlation([], "a") is None


def zdt(seed, **settings):
    """The share of the best volume that 80 vectors reach."""
    from pymoo.indicators.hv import HV

    problem, objectives = get_problem("zdt1", n_var=8), {"f0": "min", "f1": "min"}
    evolution = Evolution(
        generations=9, population=8, topk_keep=8, parent_selection="tournament", objectives=objectives, **settings
    )

    def figures(x_v):
        return dict(zip(objectives, problem.evaluate(x_v).tolist(), strict=True))

    search = searched(evolution, Vectors(problem.xl, problem.xu, founders=8), figures, seed)
    known = [[report.metrics[name] for name in objectives] for report in search.reports.values()]
    return HV(ref_point=np.array([1.1, 6.0]))(np.array(known)) / 6.26, search


class Useless(Model):
    """Predicts noise."""

    def predict(self, rows):
        rng = np.random.default_rng(len(self._names) + len(rows) + int(1e6 * sum(rows[0].values())))
        return [dict(zip(self.figures, rng.uniform(size=len(self.figures)), strict=True)) for _ in rows]


def test_screening_finds_more_and_a_useless_model_costs_nothing_and_is_switched_off(monkeypatch):
    plain = [zdt(seed)[0] for seed in range(3)]
    helped = [zdt(seed, screening="model") for seed in range(2)]
    assert min(volume for volume, _ in helped) > np.mean(plain)
    assert all(closed.screening.on for _, search in helped for closed in search.generations)
    assert helped[0][1].generations[-1].screening.together > 0.5
    monkeypatch.setattr(screening, "Model", Useless)
    useless = [zdt(seed, screening="model") for seed in range(2)]
    noise = np.std(plain, ddof=1) + np.std([volume for volume, _ in useless], ddof=1)
    assert np.mean([volume for volume, _ in useless]) > np.mean(plain) - 2.0 * noise
    states = [[closed.screening.on for closed in search.generations] for _, search in useless]
    assert all(not all(found) for found in states)
    closed = useless[0][1].generations
    off = states[0].index(False)
    assert "switched off" in switched_off(closed[: off + 1])
    assert not switched_off(closed[:off])


def test_a_search_with_screening_replays_to_the_same_state_from_every_event(screened):
    search, events = screened
    asked = [event for event in events if isinstance(event, Asked)]
    assert any(event.predicted and event.screened for event in asked)
    for event in asked:
        assert {*event.screened} <= event.predicted.keys() <= {candidate.id for candidate in event.candidates}
    assert as_text(run(engine(**SETTINGS))) == as_text(events)
    for cut in (len(events) // 2, len(events) - 9):
        again = Engine.replay([start(search), *events[:cut]], run_dir="run", device="cpu")
        for candidate in again.pending()[::-1]:  # the order in which workers answer does not matter
            again.tell(measure(candidate))
        if again.open:
            again.close_generation()
        run(again)
        assert again.generations == search.generations
        assert list(again.candidates) == list(search.candidates)


def test_what_was_predicted_and_how_it_held_stands_in_the_ledger(screened):
    closed = [event for event in screened[1] if isinstance(event, Generation)]
    assert closed[0].screening.in_words == "nothing was predicted yet"
    assert "bpb" in closed[-1].screening.correlation  # measured; flops_per_token is known exactly
    assert closed[-1].screening.correlation.keys() == {"bpb"}
    assert "predictions rank with tau bpb" in closed[-1].screening.in_words


def test_without_screening_or_in_a_baseline_nothing_is_drawn_twice_or_predicted():
    plain = as_text(run(engine(generations=3)))
    assert '"predicted":{}' in plain
    for settings in ({"baseline": "control"}, {"baseline": "random"}, {"mutation_steps": 0}):
        events = run(engine(**SETTINGS, **settings))
        assert all(not event.predicted for event in events if isinstance(event, Asked))
        assert all(event.screening is None for event in events if isinstance(event, Generation))


def test_candidates_that_fail_or_lack_a_figure_are_not_learned_from():
    def evaluate(candidate):
        if candidate.index % 5 == 3:
            return Report(id=candidate.id, status=Status.FAILED, reason="it was so decided")
        return measure(candidate, **({"bpb": float("nan")} if candidate.index % 5 == 4 else {}))

    events = run(engine(**SETTINGS | {"generations": 5}), evaluate=evaluate)
    assert any(event.predicted for event in events if isinstance(event, Asked))


def test_a_share_of_places_is_not_screened():
    all_of_them = run(engine(**SETTINGS, screening_share=1.0))
    assert all(not event.screened for event in all_of_them if isinstance(event, Asked))
    assert any(event.predicted for event in all_of_them if isinstance(event, Asked))
    none = [event for event in run(engine(**SETTINGS, screening_share=0.0)) if isinstance(event, Asked)]
    assert any(event.predicted.keys() == {*event.screened} != set() for event in none)


@pytest.mark.parametrize(
    "values",
    [
        [0.0, 1e308, -1e308],
        pytest.param([0.0], marks=pytest.mark.slow),
        pytest.param([5e-324, 1.0, 1e300], marks=pytest.mark.slow),
        pytest.param([1.0, 1.0, 1.0, 1.0, 7.0], marks=pytest.mark.slow),
    ],
)
def test_no_value_that_a_figure_may_take_ends_a_screened_search(values):
    def evaluate(candidate):
        return measure(candidate, bpb=values[candidate.index % len(values)], long_recall=0.0)

    objectives = {"bpb": "min", "long_recall": "max", "flops_per_token": "min"}
    limits = {"bpb": {"max": 1e200}}
    search = engine(**SETTINGS | {"generations": 5, "objectives": objectives, "constraints": limits})
    assert any(event.predicted for event in run(search, evaluate=evaluate) if isinstance(event, Asked))


def test_a_figure_of_costs_that_some_blueprints_lack_is_not_predicted():
    ratio = {"per_mixture": {"op": "ratio", "of": ["params", "moe_blocks"], "better": "min"}}
    search = engine(**SETTINGS | {"composite_metrics": ratio, "constraints": {"per_mixture": {"max": 1e9}}})
    events = run(search)
    assert search.done
    assert {
        name for event in events if isinstance(event, Asked) for row in event.predicted.values() for name in row
    } == {"bpb"}
