"""Parent selection against exact enumeration and stated probabilities."""

import itertools
import math
import random

import numpy as np
import pytest
from scored import BY_PARAMS, OBJECTIVES, POOL, draw, draw_many, matrix_of, report

from morphogen.candidate import Report, Status
from morphogen.errors import InputError, RunError
from morphogen.figures import direction, figure_called
from morphogen.selection.lexicase import choose, deviations
from morphogen.selection.objectives import check_weights, weighted_scores
from morphogen.selection.parents import SELECTORS, Pool, Rules, select_parent, weighted_probabilities

# ---------------------------------------------------------------- lexicase


def exact_lexicase(F, epsilon):
    """Chance of each row, by walking every order of the cases."""
    chance = np.zeros(len(F))
    orders = list(itertools.permutations(range(F.shape[1])))
    for cases in orders:
        pool = list(range(len(F)))
        for case in cases:
            best = min(F[i, case] for i in pool)
            pool = [i for i in pool if F[i, case] <= best + epsilon[case]]
        chance[pool] += 1.0 / len(pool) / len(orders)
    return chance


LEXICASE_TABLE = {
    "specialists": [[0.0, 9.0, 9.0], [9.0, 0.0, 9.0], [9.0, 9.0, 0.0], [1.0, 1.0, 1.0]],
    "ties": [[0.0, 1.0], [0.0, 1.0], [1.0, 0.0]],
    "all equal": [[1.0, 1.0]] * 4,
    "near ties": [[0.00, 5.0, 2.0], [0.01, 1.0, 2.1], [0.02, 3.0, 9.0], [4.0, 0.9, 0.0], [5.0, 8.0, 0.1]],
}


def random_cases(count):
    """Small matrices of few distinct values, so that ties and near ties are common."""
    rng = np.random.default_rng(20)
    for _ in range(count):
        yield rng.integers(0, 5, size=(int(rng.integers(2, 9)), int(rng.integers(1, 6)))).astype(float)


@pytest.mark.parametrize(
    "rows", [*LEXICASE_TABLE.values(), *random_cases(6)], ids=[*LEXICASE_TABLE, *map(str, range(6))]
)
def test_lexicase_draws_with_the_exact_probabilities(rows):
    F = np.array(rows)
    spread = [float(np.median([abs(v - np.median(column)) for v in column])) for column in F.T]
    assert deviations(F).tolist() == spread
    for epsilon in (np.array(spread), np.zeros(F.shape[1])):
        want = exact_lexicase(F, epsilon)
        rng, draws = np.random.default_rng(7), 1500
        got = np.bincount([choose(F, epsilon, rng) for _ in range(draws)], minlength=len(F)) / draws
        assert got[want == 0.0].sum() == 0.0
        assert np.abs(got - want).max() < 4.5 * 0.5 / math.sqrt(draws)  # 4.5 standard errors, at most


@pytest.mark.slow
def test_epsilon_lexicase_is_within_a_hundredth_of_enumeration_on_20_cases():
    for F in random_cases(20):
        pool = pool_of(matrix_of(F))
        want = exact_lexicase(F, deviations(F))
        rng, draws = np.random.default_rng(1), 40_000
        rows = [select_parent("epsilon_lexicase", pool, rng) for _ in range(draws)]
        assert np.abs(np.bincount(rows, minlength=len(F)) / draws - want).max() <= 1e-2


def pool_of(scored):
    reports = [
        Report(id=id, status=Status.TRAINED, metrics=dict(zip(scored.names, row.tolist(), strict=True)))
        for id, row in zip(scored.ids, scored.F_nm, strict=True)
    ]
    return Pool.of(reports, Rules(dict.fromkeys(scored.names, "min")))


def test_epsilon_keeps_a_near_tie_that_plain_lexicase_drops():
    F = np.array(LEXICASE_TABLE["near ties"])
    draw = lambda epsilon: {choose(F, epsilon, np.random.default_rng(seed)) for seed in range(200)}  # noqa: E731
    assert draw(deviations(F)) != draw(np.zeros(3))
    with pytest.raises(ValueError, match="no candidates"):
        choose(np.zeros((0, 2)), np.zeros(2), np.random.default_rng(0))


# ---------------------------------------------------------------- parents and weights


@pytest.mark.parametrize("name", SELECTORS)
def test_every_selector_repeats_itself_and_ignores_the_order_of_reports(name):
    def draws(reports):
        rng = np.random.default_rng(11)
        return draw_many(name, reports, rng, descriptors=BY_PARAMS, times=60)

    first = draws(POOL)
    assert len(set(first)) > 1
    assert "failed" not in first
    for seed in range(4):
        assert draws(random.Random(seed).sample(POOL, len(POOL))) == first


def test_pareto_uniform_draws_evenly_from_the_front_alone():
    rng = np.random.default_rng(3)
    drawn = draw_many("pareto_uniform", POOL, rng, times=3000)
    assert set(drawn) == {"a", "b", "c"}
    assert all(abs(drawn.count(id) / 3000 - 1 / 3) < 0.04 for id in "abc")


def test_weighted_draws_with_the_stated_probabilities():
    weights, rng = {"bpb": 2.0}, np.random.default_rng(5)
    drawn = draw_many("weighted", POOL, rng, weights=weights, times=4000)
    want = np.exp([2.0, 2.0 * 1.5 / 2.5, 2.0 * 0.5 / 2.5, 0.0])
    got = np.array([drawn.count(id) for id in ("a", "b", "c", "dominated")]) / 4000
    assert np.abs(got - want / want.sum()).max() < 0.035
    assert weighted_probabilities(np.array([1000.0, 0.0])).tolist() == [1.0, 0.0]  # no overflow


def test_a_negative_weight_turns_the_preference_round():
    for_less, for_more = (weighted_scores(POOL[:3], {"params": w}, {}) for w in (1.0, -1.0))
    assert (for_less == -for_more).all()
    assert weighted_scores(POOL[:3], {"bpb": 1.0}, {}).argmax() == 0
    assert weighted_scores(POOL[:3], {"recall": 1.0}, {}, {"recall": "max"}).argmax() == 2
    for said, why in (({}, "nobody declared"), ({"recall": None}, "a composite metric without `better`")):
        with pytest.raises(InputError, match=rf"evolution\.weights\.recall: which way is 'recall' better\? .*{why}"):
            weighted_scores(POOL[:3], {"recall": 1.0}, {}, said)
    assert (
        weighted_scores(POOL[:3], {"bpb": 1.0}, {"bpb": "max"}).argmax() == 2
    )  # the objectives' direction comes first


def test_command_line_names_map_to_measured_names():
    named = ("ppl", "throughput", "long_recall", "ram", "layers", "moe", "novelty", "instability")
    found = {name: figure_called(name) for name in named}
    assert found == {name: name for name in named} | {"ram": "peak_memory_bytes", "moe": "moe_blocks"}
    assert {name: direction(figure, {}, "x") for name, figure in found.items()} == {
        **dict.fromkeys(("ppl", "ram", "instability"), "min"),
        **dict.fromkeys(("throughput", "long_recall", "layers", "moe", "novelty"), "max"),
    }
    assert figure_called("long-recall") == "long_recall"
    assert direction("ppl_stdlib_code", {}, "x") == "min"


@pytest.mark.parametrize("name", SELECTORS)
def test_a_weight_nobody_measured_is_refused_by_every_selector(name):
    rng = np.random.default_rng(0)
    with pytest.raises(InputError, match=r"evolution\.weights\.moe: got 'moe_blocks'.*params"):
        draw(name, POOL, rng, weights={"moe": 1.0})
    with pytest.raises(InputError, match="expected a finite number"):
        check_weights(POOL, {"bpb": math.nan}, OBJECTIVES)


def test_selecting_from_nothing_and_by_an_unknown_name():
    rng = np.random.default_rng(0)
    with pytest.raises(InputError, match="did you mean 'lexicase'"):
        draw("lexicas", POOL, rng)
    with pytest.raises(RunError, match="none of 1 candidates"):
        draw("lexicase", POOL[-1:], rng)


def test_everyone_stands_in_a_tournament_before_anyone_stands_in_the_next():
    reports = [report(f"{i:02}", bpb=float(i), flops=1.0) for i in range(12)]
    rng = np.random.default_rng(0)
    pool = Pool.of(reports, Rules(objectives={"bpb": "min"}, tournament_size=2))
    for _ in range(20):  # six tournaments of two: the best is in one of them, the worst wins none
        won = [pool.ids[select_parent("tournament", pool, rng)] for _ in range(6)]
        assert len(set(won)) == 6
        assert "00" in won
        assert "11" not in won


def test_tournaments_of_all_find_the_best_and_of_one_draw_evenly():
    rng = np.random.default_rng(0)
    best = set(draw_many("tournament", POOL, rng, tournament_size=4, times=50))
    assert best == {"a", "b", "c"} - {"b"}  # the ends of the front are lonelier than its middle
    even = draw_many("tournament", POOL, rng, tournament_size=1, times=2000)
    assert all(abs(even.count(id) / 2000 - 1 / 4) < 0.05 for id in ("a", "b", "c", "dominated"))


def test_map_elites_draws_cells_evenly_however_many_are_in_them():
    reports = [report(f"crowd{i}", bpb=1.0 + i / 100, recall=0.5) for i in range(9)] + [
        report("far", bpb=5.0, recall=0.5)
    ]
    rng = np.random.default_rng(0)
    drawn = draw_many("map_elites", reports, rng, descriptors=BY_PARAMS, times=1000)
    assert abs(drawn.count("far") / 1000 - 0.5) < 0.05


def test_lexicase_goes_through_the_cases_given_and_a_missing_one_is_the_worst():
    reports = [report("a", bpb=1.0, recall=0.1, bpb_code=9.0), report("b", bpb=2.0, recall=0.1, bpb_code=3.0)]
    reports.append(report("lacks", bpb=0.5, recall=0.9))
    rng = np.random.default_rng(0)
    assert set(draw_many("lexicase", reports, rng, cases=["bpb_code"], times=20)) == {"b"}
    with pytest.raises(InputError, match="did you mean 'bpb_code'"):
        draw("lexicase", reports, rng, cases=["bpb_kode"])


def test_downsampled_lexicase_sees_a_share_of_the_cases():
    reports = [report("a", bpb=1.0, recall=0.1), report("b", bpb=2.0, recall=0.6), report("z", bpb=1.5, recall=0.5)]
    exact = {draw("downsampled_lexicase", reports, np.random.default_rng(s), downsample=0.5) for s in range(100)}
    assert exact == {"a", "b", "z"}  # with one case of two left, whoever is within its tolerance


def test_downsampled_lexicase_samples_no_case_of_weight_0():
    reports = [report("a", bpb=1.0, recall=0.1), report("b", bpb=9.0, recall=0.6), report("c", bpb=9.0, recall=0.9)]
    rng, only = np.random.default_rng(0), {"weights": {"bpb": 1.0, "recall": 0.0}, "downsample": 0.5}
    assert set(draw_many("downsampled_lexicase", reports, rng, **only, times=40)) == {"a"}
    none = {"bpb": 0.0, "recall": 0.0}
    assert set(draw_many("downsampled_lexicase", reports, rng, weights=none, times=60)) == {"a", "b", "c"}


@pytest.mark.parametrize("name", ["lexicase", "epsilon_lexicase", "downsampled_lexicase"])
@pytest.mark.parametrize("lacking", range(5))
def test_however_many_lack_a_case_those_that_have_it_are_told_apart_by_it(name, lacking):
    reports = [report(f"has{i}", bpb=1.0, recall=0.5, router_entropy=float(i)) for i in range(5 - lacking)]
    reports += [report(f"lacks{i}", bpb=1.0, recall=0.5) for i in range(lacking)]
    rng = np.random.default_rng(0)
    drawn = set(draw_many(name, reports, rng, cases=["router_entropy"], times=40))
    assert not any(id.startswith("lacks") for id in drawn)
    best = f"has{4 - lacking}"
    assert best in drawn
    assert drawn == {best} or name != "lexicase"


def test_what_nobody_has_any_more_tells_nobody_apart_where_rules_are_not_strict():
    rng, lax = np.random.default_rng(0), {"cases": ["router_entropy"], "weights": {"router_entropy": 1.0}}
    for name in ("weighted", "epsilon_lexicase"):
        drawn = set(draw_many(name, POOL, rng, strict=False, **lax, times=100))
        assert drawn == {"a", "b", "c", "dominated"}


def test_lexicase_asks_a_case_first_as_often_as_its_weight_says():
    reports = [report("a", bpb=1.0, recall=0.1), report("b", bpb=9.0, recall=0.9), report("c", bpb=5.0, recall=0.4)]
    rng = np.random.default_rng(0)
    name = "lexicase"
    drawn = draw_many(name, reports, rng, weights={"bpb": 3.0}, times=1000)
    assert abs(drawn.count("a") / 1000 - 0.75) < 0.05
    assert set(draw_many(name, reports, rng, weights={"bpb": 0.0}, times=30)) == {"b"}
    assert set(draw_many(name, reports, rng, weights={"bpb": -1.0, "recall": 0.0}, times=30)) == {"b"}
    assert set(draw_many(name, reports, rng, weights={"bpb": 0.0, "recall": 0.0}, times=60)) == {"a", "b", "c"}


def test_a_weight_brings_its_figure_among_the_cases_and_a_missing_one_is_bad_either_way_round():
    reports = [report("a", bpb=1.0, other=1.0), report("b", bpb=1.0, other=2.0), report("lacks", bpb=1.0)]
    rng, goals, said = np.random.default_rng(0), {"bpb": "min"}, {"other": "max"}
    drawn = {
        weight: set(draw_many("lexicase", reports, rng, goals, weights={"other": weight}, said=said, times=30))
        for weight in (1.0, -1.0)
    }
    assert drawn == {1.0: {"b"}, -1.0: {"a"}}


def test_weights_draw_among_those_that_other_rules_find_equal():
    rng = np.random.default_rng(0)
    drawn = draw_many("pareto_uniform", POOL, rng, weights={"bpb": 50.0}, times=100)
    assert set(drawn) == {"a"}
    reports = [
        report("crowd", bpb=1.0, recall=0.5),
        report("near", bpb=1.1, recall=0.9),
        report("far", bpb=5.0, recall=0.7),
    ]
    drawn = draw_many("map_elites", reports, rng, descriptors=BY_PARAMS, weights={"recall": 50.0}, times=100)
    assert set(drawn) == {"near"}
    drawn = draw_many("tournament", POOL[:3], rng, tournament_size=3, weights={"recall": 1.0, "bpb": 0.1}, times=9)
    assert set(drawn) == {"c"}
