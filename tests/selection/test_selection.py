"""Objectives, fronts, constraints and survival against brute force and hand-made cases."""

import itertools
import math
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pymoo.util.nds.non_dominated_sorting import NonDominatedSorting
from scored import BY_PARAMS, OBJECTIVES, POOL, draw, draw_many, matrix_of, report

from examples import up_to
from morphogen.candidate import Report, Status
from morphogen.errors import InputError
from morphogen.figures import Bounds, Descriptor
from morphogen.selection.map_elites import cell, elites
from morphogen.selection.objectives import hypervolume, matrix, normalised, reference_point
from morphogen.selection.parents import SELECTORS
from morphogen.selection.pareto import constrained_ranks, crowding, order, ranks
from morphogen.selection.survival import SURVIVAL, front, reference_directions
from morphogen.selection.survival import survive as survive_by


def survive(reports, objectives, keep, rule="rank_crowding", constraints={}, births=None, best=(), seed=0):  # noqa: B006
    births = births or {report.id: i for i, report in enumerate(reports)}
    rng, frontier = np.random.default_rng(seed), matrix(best, objectives)
    return survive_by(rule, reports, objectives, constraints, keep, births, rng, frontier)


def brute_ranks(F):
    """Peels fronts by comparing every pair; knows nothing of pymoo."""
    left, rank, number = set(range(len(F))), [0] * len(F), 0
    while left:
        best = {i for i in left if not any(dominates(F[j], F[i]) for j in left)}
        for i in best:
            rank[i] = number
        left, number = left - best, number + 1
    return rank


def dominates(a, b):
    return all(x <= y for x, y in zip(a, b, strict=True)) and any(x < y for x, y in zip(a, b, strict=True))


def brute_crowding(rows):
    """Deb's loop over distinct points of one front."""
    distance = [0.0] * len(rows)
    for column in range(len(rows[0])):
        by = sorted(range(len(rows)), key=lambda i: (rows[i][column], i))
        span = rows[by[-1]][column] - rows[by[0]][column]
        if span == 0:
            continue
        distance[by[0]] = distance[by[-1]] = math.inf
        for low, mid, high in zip(by, by[1:], by[2:], strict=False):
            distance[mid] += (rows[high][column] - rows[low][column]) / span / len(rows[0])
    return distance


# ---------------------------------------------------------------- the matrix


def test_matrix_minimises_sorts_by_id_and_ignores_input_order():
    reports = [report("c", bpb=3.0, recall=0.5), report("a", bpb=1.0, recall=0.2), report("b", bpb=2.0, recall=0.9)]
    for shuffled in itertools.permutations(reports):
        scored = matrix(shuffled, OBJECTIVES)
        assert scored.ids == ("a", "b", "c")
        assert scored.F_nm.tolist() == [[1.0, -0.2], [2.0, -0.9], [3.0, -0.5]]
        assert scored.F_nm.dtype == np.float64


@pytest.mark.parametrize("status", [Status.FAILED, Status.GATED, Status.REJECTED, Status.PROPOSED])
def test_matrix_leaves_out_whatever_was_not_trained(status):
    reports = [report("a", bpb=1.0, recall=0.2), report("b", status, bpb=0.5, recall=1.0)]
    assert matrix(reports, OBJECTIVES).ids == ("a",)


@pytest.mark.parametrize("metrics", [{"bpb": math.nan}, {"bpb": math.inf}, {"bpb": -math.inf}, {}])
def test_whoever_lacks_a_finite_value_ranks_last(metrics):
    reports = [report("a", bpb=1.0, recall=0.2), report("b", recall=1.0, **metrics)]
    scored = matrix(reports, OBJECTIVES)
    assert scored.complete.ids == scored.feasible.ids == ("a",)
    assert constrained_ranks(scored).tolist() == [0, 1]
    assert front(reports, OBJECTIVES).ids == ("a",)
    assert survive(reports, OBJECTIVES, keep=1) == ("a",)
    assert survive(reports, OBJECTIVES, keep=2) == ("a", "b")


def test_pymoo_puts_a_nan_row_into_the_first_front_and_ours_refuses_it():
    F = np.array([[math.nan, math.nan], [1.0, 1.0], [2.0, 2.0]])
    assert 0 in NonDominatedSorting().do(F)[0]  # the trap; where a NaN row lands depends on row order and version
    with pytest.raises(ValueError, match="not finite"):
        ranks(F)
    reports = [report("good", bpb=1.0, recall=1.0), report("nan", bpb=math.nan, recall=0.0)]
    assert survive(reports, OBJECTIVES, keep=2) == ("good", "nan")


def test_an_objective_nobody_measured_is_named_with_the_nearest():
    with pytest.raises(InputError, match=r"evolution\.objectives\.recal: got 'recal'.*bpb.*did you mean 'recall'"):
        matrix([report("a", bpb=1.0, recall=0.1)], {"bpb": "min", "recal": "max"})


def test_matrix_of_nothing_trained_has_no_rows_and_a_repeated_id_is_refused():
    assert matrix([report("a", Status.FAILED)], OBJECTIVES).F_nm.shape == (0, 2)
    assert survive([], OBJECTIVES, keep=3) == ()
    with pytest.raises(InputError, match="'a' was reported twice"):
        matrix([report("a"), report("a")], OBJECTIVES)


def test_objectives_may_name_costs_and_timed_values():
    assert matrix([report("a", bpb=1.0)], {"params": "min", "throughput": "max"}).F_nm.tolist() == [[10.0, -5.0]]


# ---------------------------------------------------------------- fronts and crowding

TABLE = {
    "empty": [],
    "one": [[1.0, 2.0]],
    "all equal": [[1.0, 1.0]] * 5,
    "chain": [[3.0, 3.0], [1.0, 1.0], [2.0, 2.0]],
    "one front": [[1.0, 4.0], [2.0, 3.0], [3.0, 2.0], [4.0, 1.0]],
    "equal in one column": [[1.0, 1.0], [1.0, 2.0], [1.0, 3.0]],
    "duplicates of the best": [[1.0, 4.0], [1.0, 4.0], [4.0, 1.0], [2.0, 2.0], [4.0, 1.0], [5.0, 5.0]],
    "single objective": [[2.0], [1.0], [2.0], [3.0]],
    "negative zero": [[0.0, 1.0], [-0.0, 1.0], [1.0, 0.0]],
    "four objectives": [[1.0, 2.0, 3.0, 4.0], [4.0, 3.0, 2.0, 1.0], [2.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 3.0]],
    "huge and tiny": [[1e300, 1e-300], [1e-300, 1e300], [1e299, 1e-299]],
}


@pytest.mark.parametrize("rows", TABLE.values(), ids=TABLE.keys())
def test_ranks_and_crowding_agree_with_brute_force_on_edge_cases(rows):
    F = np.array(rows, dtype=np.float64).reshape(len(rows), len(rows[0]) if rows else 2)
    check_against_brute_force(F)


@settings(max_examples=up_to(80), deadline=None)
@given(st.integers(1, 4).flatmap(lambda m: st.lists(st.lists(st.integers(0, 4), min_size=m, max_size=m), max_size=14)))
def test_ranks_and_crowding_agree_with_brute_force_on_crowded_grids(rows):
    check_against_brute_force(np.array(rows, dtype=np.float64).reshape(len(rows), len(rows[0]) if rows else 1))


def check_against_brute_force(F):
    rank = ranks(F)
    assert rank.tolist() == brute_ranks(F.tolist())
    got = crowding(F, rank)
    for number in set(rank.tolist()):
        members = [i for i in range(len(F)) if rank[i] == number]
        distinct = [i for k, i in enumerate(members) if F[i].tolist() not in [F[j].tolist() for j in members[:k]]]
        want = brute_crowding(F[distinct].tolist()) if len(distinct) > 2 else [math.inf] * len(distinct)
        assert got[distinct] == pytest.approx(want)
        assert all(got[i] == 0.0 for i in members if i not in distinct)
    placed = order(matrix_of(F)).tolist()
    assert sorted(placed) == list(range(len(F)))
    keys = [(rank[i], -got[i], i) for i in placed]
    assert keys == sorted(keys)


def test_survival_prefers_the_front_then_the_lonely_then_the_smaller_id():
    reports = [
        report("a", bpb=1.0, recall=0.1),
        report("b", bpb=2.0, recall=0.2),
        report("c", bpb=2.1, recall=0.21),  # crowded between b and d
        report("d", bpb=9.0, recall=0.9),
        report("e", bpb=9.5, recall=0.8),  # dominated by d
        report("z", bpb=1.0, recall=0.1),  # a copy of a
    ]
    assert front(reports, OBJECTIVES).ids == ("a", "b", "c", "d", "z")
    assert survive(reports, OBJECTIVES, keep=2) == ("a", "d")
    kept = survive(reports, OBJECTIVES, keep=6)
    assert set(kept[:4]) == {"a", "b", "c", "d"}
    assert kept[4:] == ("z", "e")
    for seed in range(5):
        mixed = random.Random(seed).sample(reports, len(reports))
        assert survive(mixed, OBJECTIVES, keep=4) == kept[:4]
    with pytest.raises(ValueError, match="keep is -1"):
        survive(reports, OBJECTIVES, keep=-1)


# ---------------------------------------------------------------- hypervolume


def test_hypervolume_of_a_known_staircase():
    root = matrix([report("root", bpb=4.0, recall=0.5)], OBJECTIVES)
    reference = reference_point(root)
    assert reference == pytest.approx({"bpb": 4.4, "recall": 0.45})  # a tenth worse, in the objectives' own units
    points = matrix([report("a", bpb=2.2, recall=0.9), report("b", bpb=3.3, recall=1.35)], OBJECTIVES)
    # in units of the reference: a covers (1 - 0.5) x (2 - 1), b adds (1 - 0.75) x (3 - 2)
    assert hypervolume(points, reference) == pytest.approx(0.5 * 1.0 + 0.25 * 1.0)


@settings(max_examples=up_to(40), deadline=None)
@given(st.lists(st.tuples(st.floats(0.1, 9.0), st.floats(0.0, 1.0)), min_size=1, max_size=12))
def test_hypervolume_never_shrinks_as_candidates_are_added(values):
    reports = [report(f"{i:02d}", bpb=bpb, recall=recall) for i, (bpb, recall) in enumerate(values)]
    reference = reference_point(matrix(reports[:1], OBJECTIVES))
    volumes = [hypervolume(matrix(reports[: n + 1], OBJECTIVES), reference) for n in range(len(reports))]
    assert volumes[0] > 0.0
    assert all(later >= earlier - 1e-12 for earlier, later in itertools.pairwise(volumes))


def test_hypervolume_edges_root_at_zero_worse_points_no_points_and_no_root():
    zero = matrix([report("root", bpb=2.0, recall=0.0)], OBJECTIVES)
    reference = reference_point(zero)
    assert reference["recall"] == -1.0
    assert hypervolume(zero, reference) > 0.0
    assert hypervolume(matrix([report("x", bpb=50.0, recall=0.9)], OBJECTIVES), reference) == 0.0
    nothing = matrix([report("x", Status.FAILED)], OBJECTIVES)
    assert hypervolume(nothing, reference) == 0.0
    assert reference_point(nothing) == {}
    assert hypervolume(zero, {}) == 0.0
    with pytest.raises(InputError, match=r"\['bpb'\], expected \['bpb', 'recall'\]"):
        hypervolume(zero, {"bpb": 1.0})


# ---------------------------------------------------------------- constraints

LIMITS = {"params": Bounds(max=20.0)}


def sized(id, params, **metrics):
    return Report(id=id, status=Status.TRAINED, metrics=metrics, costs={"params": params})


def test_the_feasible_come_first_and_of_the_others_the_least_violating():
    reports = [
        sized("best_but_large", 30.0, bpb=0.1, recall=1.0),
        sized("larger", 50.0, bpb=0.05, recall=1.0),
        sized("good", 20.0, bpb=1.0, recall=0.5),
        sized("poor", 10.0, bpb=3.0, recall=0.1),
    ]
    scored = matrix(reports, OBJECTIVES, LIMITS)
    assert dict(zip(scored.ids, scored.violation_n, strict=True)) == pytest.approx(
        {"best_but_large": 0.5, "good": 0.0, "larger": 1.5, "poor": 0.0}
    )
    assert survive(reports, OBJECTIVES, 4, constraints=LIMITS) == ("good", "poor", "best_but_large", "larger")
    assert front(reports, OBJECTIVES, LIMITS).ids == ("good",)
    assert front(reports[:2], OBJECTIVES, LIMITS).ids == ("best_but_large",)
    for name in SELECTORS:
        rng = np.random.default_rng(0)
        rules = {"constraints": LIMITS, "descriptors": BY_PARAMS}
        assert set(draw_many(name, reports, rng, **rules, times=40)) <= {"good", "poor"}
        worst_never = set(draw_many(name, reports[:2], rng, **rules, tournament_size=2, times=40))
        assert "best_but_large" in worst_never


def test_an_infeasible_candidate_adds_no_hypervolume():
    reference = {"bpb": 4.0, "recall": -1.0}
    inside, outside = sized("a", 10.0, bpb=2.0, recall=0.5), sized("b", 90.0, bpb=0.1, recall=1.0)
    alone = hypervolume(matrix([inside], OBJECTIVES, LIMITS), reference)
    assert hypervolume(matrix([inside, outside], OBJECTIVES, LIMITS), reference) == alone > 0.0


@settings(max_examples=up_to(60), deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 4), st.integers(0, 4), st.sampled_from([0.0, 0.0, 0.5, 1.0])), min_size=1, max_size=12
    )
)
def test_constrained_ranks_agree_with_constraint_domination(rows):
    F, violation = np.array([row[:2] for row in rows], dtype=float), [row[2] for row in rows]
    rank = constrained_ranks(matrix_of(F, violation))
    for i, j in itertools.permutations(range(len(rows)), 2):
        both = violation[i] == violation[j] == 0.0
        if violation[i] < violation[j] or (both and dominates(F[i], F[j])):
            assert rank[i] < rank[j]


def test_a_constraint_nobody_measured_is_named_with_the_nearest():
    with pytest.raises(InputError, match=r"evolution\.constraints\.parms.*did you mean 'params'"):
        matrix(POOL, OBJECTIVES, {"parms": Bounds(max=1.0)})


@pytest.mark.parametrize("bad", [{}, {"min": 2.0, "max": 1.0}, {"max": math.inf}])
def test_limits_that_bound_nothing_are_refused(bad):
    with pytest.raises(ValueError, match=r"neither|above|finite"):
        Bounds(**bad)


# ---------------------------------------------------------------- survival


@pytest.mark.parametrize("rule", SURVIVAL)
def test_no_rule_keeps_the_failed_or_depends_on_the_order_of_reports(rule):
    births = {r.id: i for i, r in enumerate(POOL)}
    kept = survive(POOL, OBJECTIVES, 3, rule, births=births)
    assert len(kept) == 3
    assert "failed" not in kept
    for seed in range(4):
        mixed = random.Random(seed).sample(POOL, len(POOL))
        assert survive(mixed, OBJECTIVES, 3, rule, births=births) == kept


def test_ageing_keeps_the_young_however_bad_they_are():
    births = {"a": 0, "b": 1, "c": 2, "dominated": 3, "failed": 4}
    assert set(survive(POOL, OBJECTIVES, 2, "ageing", births=births)) == {"c", "dominated"}


@pytest.mark.parametrize(("objectives", "keep"), [(2, 6), (3, 91), (4, 35), (1, 5), (3, 1)])
def test_reference_directions_are_as_many_as_fit(objectives, keep):
    directions = reference_directions(objectives, keep)
    assert directions.sum(axis=1) == pytest.approx(1.0)
    assert len(directions) <= max(keep, objectives)
    if (objectives, keep) == (3, 91):
        assert len(directions) == 91


def test_nsga3_spreads_over_the_front_where_crowding_is_blind():
    rng = np.random.default_rng(3)
    points = np.abs(rng.normal(size=(400, 3)))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    reports = [report(f"{i:03}", a=p[0], b=p[1], c=p[2]) for i, p in enumerate(points.tolist())]
    objectives = dict.fromkeys("abc", "min")

    def gap(rule):  # the largest distance from a direction to the nearest survivor
        kept = points[[int(id) for id in survive(reports, objectives, 28, rule)]]
        unit = reference_directions(3, 28)
        unit = unit / np.linalg.norm(unit, axis=1, keepdims=True)
        return np.linalg.norm(kept[None] - unit[:, None], axis=2).min(axis=1).mean()

    assert len(survive(reports, objectives, 28, "nsga3")) == 28
    assert gap("nsga3") < 0.7 * gap("rank_crowding")


def test_nsga3_takes_its_scale_from_the_runs_frontier():
    pool = [report(f"{x}", a=x, b=1.0 - x) for x in (0.4, 0.45, 0.5, 0.55, 0.6)]
    best = [report("low", a=0.0, b=1.0), report("high", a=1.0, b=0.0)]
    objectives = dict.fromkeys("ab", "min")

    def kept(best):
        draws = [survive(pool, objectives, 3, "nsga3", best=best, seed=seed) for seed in range(20)]
        return {frozenset(ids) for ids in draws}

    assert kept(()) == {frozenset({"0.4", "0.5", "0.6"})}  # on their own scale two of them are the ends of the front
    middle = kept(best)  # on the run's scale all five are near its middle: the nearest one, and any others
    assert len(middle) > 1
    assert all("0.5" in ids for ids in middle)


def test_nsga3_keeps_whole_fronts_and_fills_up_with_the_infeasible():
    rows = [sized("a", 10.0, bpb=1.0, recall=0.5), sized("b", 10.0, bpb=2.0, recall=0.4)]
    rows += [sized("c", 40.0, bpb=0.1, recall=1.0), sized("d", 90.0, bpb=0.1, recall=1.0)]
    assert survive(rows, OBJECTIVES, 3, "nsga3", LIMITS) == ("a", "b", "c")
    assert survive(rows, OBJECTIVES, 1, "nsga3", LIMITS) == ("a",)


def test_elites_are_the_best_of_their_cells():
    axes = {"params": Descriptor(scale="log", width=2.0), "bpb": Descriptor(scale="linear", width=10.0)}
    reports = [
        sized("a", 4.0, bpb=2.0, recall=0.1),
        sized("a2", 7.9, bpb=1.0, recall=0.1),
        sized("b", 8.1, bpb=3.0, recall=0.1),
        sized("c", 8.1, bpb=13.0, recall=0.9),
        sized("lame", 0.0, bpb=1.0, recall=0.0),
    ]
    assert set(elites(reports, OBJECTIVES, {}, axes, 32)) == {"a2", "b", "c", "lame"}
    assert len(elites(reports, OBJECTIVES, {}, axes, 2)) == 2
    assert set(elites(reports, OBJECTIVES, {"params": Bounds(max=5.0)}, axes, 32)) == {"a", "b", "c", "lame"}
    assert elites([], OBJECTIVES, {}, axes, 3) == ()
    assert cell(sized("x", 8.0), {"recall": Descriptor()}) == (None,)


UNLIKELY = st.one_of(
    st.none(),
    st.sampled_from([0.0, -0.0, 1.0, 1e300, -1e300, 1.7e308, -1.7e308, 5e-324, math.nan, math.inf, -math.inf]),
    st.floats(0.0, 4.0),
)


@settings(max_examples=up_to(30), deadline=None)
@given(
    st.lists(st.tuples(UNLIKELY, UNLIKELY, UNLIKELY), min_size=1, max_size=7),
    st.sampled_from([{}, {"c": Bounds(max=1.0)}, {"c": Bounds(min=1e-300, max=1e300)}]),
)
def test_no_value_that_a_figure_may_take_ends_a_search(rows, limits):
    names, objectives = "abc", {"a": "min", "b": "max"}
    reports = [
        report(f"{i}", **{name: value for name, value in zip(names, row, strict=True) if value is not None})
        for i, row in enumerate(rows)
    ]
    axes = {"a": Descriptor(scale="linear", width=0.5), "c": Descriptor(scale="log", width=1.5)}
    scored = matrix(reports, objectives, limits, strict=False)
    assert len(scored.ids) == len(rows)
    placed = [scored.ids[row] for row in order(scored)]
    good = set(scored.complete.ids)
    assert set(placed[: len(good)]) == good  # whoever lacks a value comes after all who do not
    best = front(reports, objectives, limits)
    assert best.ids
    reference = reference_point(best)
    assert (not good) == (not reference)
    volumes = [hypervolume(matrix(reports[:n], objectives, limits, strict=False), reference) for n in (1, len(rows))]
    assert all(0.0 <= volume < math.inf for volume in volumes)
    for rule in SURVIVAL:
        kept = survive(reports, objectives, 3, rule, limits)
        assert len(kept) == min(3, len(rows))
        assert rule == "ageing" or set(kept) <= good or good <= set(kept)
    assert elites(reports, objectives, limits, axes, 4)
    for name in SELECTORS:
        rules = {
            "constraints": limits,
            "descriptors": axes,
            "strict": False,
            "cases": ("a", "c"),
            "weights": {"b": 2.0},
        }
        said = {"said": {"c": "min"}}
        assert draw(name, reports, np.random.default_rng(0), objectives, **rules, **said) in (good or set(placed))


def test_figures_too_far_out_to_be_counted_share_a_bin():
    narrow = Descriptor(scale="linear", width=1e-308)
    assert narrow.bin(2.0) == narrow.bin(3.0) == -narrow.bin(-2.0)
    assert narrow.bin(0.0) == 0


@pytest.mark.parametrize(
    ("values", "direction", "want"),
    [
        ([1.0, 3.0, 2.0], "max", [0.0, 1.0, 0.5]),
        ([1.0, 3.0, 2.0], "min", [1.0, 0.0, 0.5]),
        ([2.0, 2.0], "min", [1.0, 1.0]),
        ([None, 1.0, math.nan, 3.0], "max", [0.0, 0.0, 0.0, 1.0]),
        ([None, None], "max", [0.0, 0.0]),
        ([], "max", []),
    ],
)
def test_normalised_scores(values, direction, want):
    assert normalised(values, direction).tolist() == want


def test_selection_store_and_report_never_import_torch():
    modules = ["selection.parents", "selection.survival", "store.ledger", "store.frontier", "store.lineage"]
    modules += ["report.subway", "report.tables", "report.html"]
    code = "import sys;" + ";".join(f"import morphogen.{m}" for m in modules) + ";print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("rules", [SELECTORS, SURVIVAL])
def test_the_docs_say_what_every_rule_of_selection_does(rules):
    text = (Path(__file__).parents[2] / "docs" / "experiments.md").read_text()
    missing = [name for name in rules if f"`{name}`" not in text[text.index("**Who breeds**") :]]
    assert not missing, f"say in docs/experiments.md, below Who breeds or Who stays, what {', '.join(missing)} does"
