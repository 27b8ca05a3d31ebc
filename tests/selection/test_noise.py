"""Differences within the noise are ties: in dominance, fronts, lexicase, cells, constraints, and against chance."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from morphogen.candidate import Report, Status
from morphogen.estimates import Estimate, known_of, ratio
from morphogen.figures import Bounds, Descriptor, Noise
from morphogen.selection.map_elites import elites
from morphogen.selection.noise import NO_NOISE, tolerances
from morphogen.selection.objectives import matrix, unmet
from morphogen.selection.parents import Pool, Rules, select_parent
from morphogen.selection.pareto import constrained_ranks, dominance, ranks
from morphogen.selection.survival import front, survive

GOALS = {"bpb": "min", "flops": "min"}
NOISE = Noise(z=2.0, training=0.0)
#: Of 64 parts, half of which push up and half down: a standard error of one.
UNIT = np.array([1.0, -1.0] * 32) / 8.0 * np.sqrt(63 / 64)


def report(id, bpb, flops=1.0, error=0.01, seed=0):
    """One whose error is independent of those of other seeds."""
    pushes = np.random.default_rng(seed).permutation(UNIT) * error
    made = known_of({"bpb": Estimate(bpb, pushes)})
    return Report(id=id, status=Status.TRAINED, costs={"flops": flops}, **made)


def test_a_difference_within_the_noise_does_not_hold_a_seat() -> None:
    """0.001 better at more FLOPs is no reason to stay; 0.1 better is."""
    cheap, dear, good = report("cheap", 2.0), report("dear", 1.999, 2.0, seed=1), report("good", 1.9, 2.0, seed=2)
    assert front([cheap, dear], GOALS).ids == ("cheap", "dear")
    assert front([cheap, dear], GOALS, noise=NOISE).ids == ("cheap",)
    assert front([cheap, dear, good], GOALS, noise=NOISE).ids == ("cheap", "good")


def test_the_error_is_that_of_the_paired_difference() -> None:
    """Two models that find the same parts hard differ by little noise, however large the error of each."""
    alike = [report("a", 2.0, error=0.1), report("b", 1.98, 2.0, error=0.1)]
    assert tolerances(alike, ["bpb"], NOISE)[0, 0, 1] == pytest.approx(0.0, abs=1e-6)
    assert front(alike, GOALS, noise=NOISE).ids == ("a", "b")
    apart = [alike[0], report("b", 1.98, 2.0, error=0.1, seed=1)]
    assert front(apart, GOALS, noise=NOISE).ids == ("a",)


def test_the_luck_of_two_trainings_is_added() -> None:
    pair = [report("a", 2.0, error=0.0), report("b", 1.99, 2.0, error=0.0)]
    assert tolerances(pair, ["bpb"], Noise(z=2.0, training=0.01))[0, 0, 1] == pytest.approx(0.0564, rel=0.01)
    assert front(pair, GOALS, noise=Noise(z=2.0, training=0.01)).ids == ("a",)
    assert front(pair, GOALS, noise=Noise(z=2.0, training=0.001)).ids == ("a", "b")


def test_models_that_were_measured_on_different_parts_are_compared_unpaired() -> None:
    other = known_of({"bpb": Estimate(2.0, np.array([0.03, -0.03]) / np.sqrt(4.0))})
    pair = [report("a", 2.0, error=0.04), Report(id="b", status=Status.TRAINED, **other)]
    assert tolerances(pair, ["bpb"], NOISE)[0, 0, 1] == pytest.approx(2.0 * 0.05)


def test_costs_differ_by_whatever_they_differ() -> None:
    pair = [report("a", 2.0, 1.0), report("b", 2.0, 1.000001, seed=1)]
    assert front(pair, GOALS, noise=NOISE).ids == ("a",)


def test_of_two_that_tie_everywhere_the_one_plainly_ahead_stays() -> None:
    pair = [report("a", 2.0), report("b", 1.999, seed=1), report("c", 1.999, seed=2)]
    assert front(pair, GOALS, noise=NOISE).ids == ("b", "c")


CIRCLE = np.array([[0.0, 0.55, 1.1], [0.55, 1.1, 0.0], [1.1, 0.0, 0.55]])


def test_a_circle_of_ties_is_a_front_of_those_that_nobody_dominates_plainly() -> None:
    tie_mnn = np.ones((3, 3, 3))
    over_nn = dominance(CIRCLE, tie_mnn)
    assert over_nn.any(axis=0).all(), "each is dominated by another: ties are not transitive"
    assert ranks(CIRCLE, tie_mnn).tolist() == [0, 0, 0]
    assert ranks(np.vstack([CIRCLE, [[9.0, 9.0, 9.0]]]), np.ones((3, 4, 4))).tolist() == [0, 0, 0, 1]


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 3)), min_size=1, max_size=12), st.integers(0, 99))
def test_fronts_within_the_noise(rows: list[tuple[int, int]], seed: int) -> None:
    """They cover all rows, begin at 0 without gaps, follow the order of no row, and keep plain dominance: whoever is
    plainly dominated never ranks before the other. Without noise they are the usual ones."""
    reports = [report(f"{i:02}", 2.0 + 0.01 * a, float(b), seed=i) for i, (a, b) in enumerate(rows)]
    rank_n = constrained_ranks(matrix(reports, GOALS, noise=NOISE))
    assert sorted(set(rank_n.tolist())) == list(range(rank_n.max() + 1))
    for (i, a), (j, b) in itertools.permutations(enumerate(rows), 2):
        if a[0] <= b[0] and a[1] <= b[1] and a != b:
            assert rank_n[i] < rank_n[j]
    order = np.random.default_rng(seed).permutation(len(reports))
    assert front([reports[i] for i in order], GOALS, noise=NOISE).ids == front(reports, GOALS, noise=NOISE).ids
    plain = matrix(reports, GOALS, noise=NO_NOISE)
    assert plain.tie_mnn is None
    tie_mnn = np.zeros((2, len(rows), len(rows)))
    assert ranks(plain.F_nm).tolist() == ranks(plain.F_nm, tie_mnn).tolist()


def test_what_ties_with_the_best_goes_on_in_lexicase() -> None:
    reports = [report("a", 2.0, 1.0), report("b", 1.999, 2.0, seed=1), report("c", 2.2, 0.5, seed=2)]
    for name, rules in itertools.product(("lexicase", "epsilon_lexicase"), ({}, {"cases": ("bpb", "flops")})):
        noisy, plain = (
            Pool.of(reports, Rules(GOALS, noise=noise, strict=False, **rules)) for noise in (NOISE, NO_NOISE)
        )
        drawn = {noisy.ids[select_parent(name, noisy, np.random.default_rng(seed))] for seed in range(40)}
        assert "b" not in drawn, "it is ahead of a by noise, and behind it in FLOPs"
        assert "b" in {plain.ids[select_parent("lexicase", plain, np.random.default_rng(seed))] for seed in range(40)}
        assert noisy.without(0).tie_cnn.shape == (2, 2, 2)


def test_survivors_and_cells_are_kept_by_what_is_more_than_noise() -> None:
    reports = [report("a", 2.0, 1.0), report("b", 1.999, 2.0, seed=1)]
    births, rng = {"a": 0, "b": 1}, np.random.default_rng(0)
    for rule in ("rank_crowding", "nsga3", "smsemoa"):
        best = front(reports, GOALS, noise=NOISE)
        assert survive(rule, reports, GOALS, {}, 1, births, rng, best, NOISE) == ("a",)
    one_cell = {"flops": Descriptor(scale="linear", width=100.0)}
    assert elites(reports, GOALS, {}, one_cell, 9) == ("b",)
    assert elites(reports, GOALS, {}, one_cell, 9, NOISE) == ("a",)


def test_a_constraint_is_broken_by_more_than_the_error() -> None:
    reports, limits = [report("a", 2.01)], {"bpb": Bounds(max=2.0)}
    assert matrix(reports, GOALS, limits).violation_n[0] > 0.0
    assert matrix(reports, GOALS, limits, noise=NOISE).violation_n[0] == 0.0
    assert matrix([report("a", 2.03)], GOALS, limits, noise=NOISE).violation_n[0] > 0.0
    far = [report("a", 3.0), report("b", 3.1, error=0.3)]
    nearer, further = matrix(far, GOALS, limits, noise=NOISE).violation_n
    assert nearer < further, "b is only the less certain of the two"


def test_that_nobody_keeps_all_constraints_is_told() -> None:
    limits = {"bpb": Bounds(max=2.0)}
    assert unmet([report("a", 2.01), report("b", 3.0)], GOALS, limits, NOISE) == ""
    assert unmet([], GOALS, limits, NOISE) == ""
    told = unmet([report("b", 3.0), report("c", 2.5)], GOALS, limits, NOISE)
    assert told.endswith("; c is nearest: bpb is 2.5, above constraints.bpb 2")
    assert unmet([report("a", 1.0)], {**GOALS, "recall": "max"}, {}, NOISE).endswith("nearest: no value of recall")


def recalling(id, right, questions=512, flops=1.0):
    """So many right answers, in 64 sequences."""
    each = np.zeros(64)
    each[: min(right, 64)] += 1.0
    each[0] += max(0, right - 64)
    share = ratio(each, np.full(64, questions / 64))
    metrics = known_of({"bpb": Estimate(2.0, np.zeros(64)), "long_recall": share, "recall_chance": 0.002})
    return Report(id=id, status=Status.TRAINED, costs={"flops": flops}, **metrics)


def test_a_figure_at_chance_holds_no_seat() -> None:
    """Five right answers of 512 are no memory, at a chance of 0.002; sixty are."""
    goals = {**GOALS, "long_recall": "max"}
    none, few, many = recalling("none", 0), recalling("few", 5, flops=2.0), recalling("many", 60, flops=2.0)
    assert front([none, few], goals).ids == ("few", "none")
    assert front([none, few], goals, noise=NOISE).ids == ("none",)
    assert front([none, few, many], goals, noise=NOISE).ids == ("many", "none")
    scored = matrix([none, few, many], goals, noise=NOISE)
    assert scored.F_nm[:, 2].tolist() == pytest.approx([-0.002, -60 / 512, -0.002])  # few, many, none
    pool = Pool.of([none, few], Rules(goals, cases=("long_recall", "flops"), noise=NOISE, strict=False))
    drawn = {pool.ids[select_parent("lexicase", pool, np.random.default_rng(seed))] for seed in range(20)}
    assert drawn == {"none"}


def test_without_errors_nothing_is_a_tie() -> None:
    reports = [
        Report(id=id, status=Status.TRAINED, metrics={"bpb": bpb}) for id, bpb in (("a", 2.0), ("b", 2.0 + 1e-9))
    ]
    assert tolerances(reports, ["bpb"], NOISE) is None
    assert front(reports, {"bpb": "min"}, noise=NOISE).ids == ("a",)


def test_a_null_edit_is_told_apart_as_often_as_the_level_says() -> None:
    """200 pairs of models that differ by luck: in what every document costs, and in how well all of it was learnt."""
    noise, rng, told = Noise(z=1.96, training=0.002), np.random.default_rng(1), 0
    for _ in range(200):
        bytes_U = rng.uniform(200.0, 400.0, 60)
        hard_U = rng.normal(2.2, 0.4, 60)
        pair = []
        for name in "ab":
            luck = rng.normal(0.0, 0.002 * 2.2)
            bits_U = bytes_U * (hard_U + luck + rng.normal(0.0, 0.02, 60))
            pair.append(Report(id=name, status=Status.TRAINED, **known_of({"bpb": ratio(bits_U, bytes_U)})))
        scored = matrix(pair, {"bpb": "min"}, noise=noise)
        told += bool(abs(scored.F_nm[0, 0] - scored.F_nm[1, 0]) > scored.tie_mnn[0, 0, 1])
    assert 6 <= told <= 14
