"""The statistics of evidence against scipy, textbook values and brute force."""

import math
from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from morphogen.analysis.statistics import (
    agreement,
    agreements,
    holm,
    over_seeds_and_texts,
    paired,
    size_bands,
    t_interval,
    welch,
)

small = st.integers(0, 6).map(float)
rankings = st.integers(2, 9).flatmap(lambda n: st.tuples(*[st.lists(small, min_size=n, max_size=n)] * 2))


def test_a_t_interval_is_students() -> None:
    found = t_interval([1.0, 2.0, 3.0, 4.0], 0.95)
    # mean 2.5, s = 1.2910, t(3) = 3.1824
    assert found.value == 2.5
    assert found.high == pytest.approx(2.5 + 3.18245 * 1.29099 / 2.0, abs=1e-4)
    assert (found.low, found.high) == pytest.approx(stats.t.interval(0.95, 3, 2.5, stats.sem([1.0, 2.0, 3.0, 4.0])))


def test_an_interval_over_seeds_and_texts_holds_what_it_says() -> None:
    rng, effect, seeds, parts, tries = np.random.default_rng(0), 0.3, 3, 40, 1000
    held = alone = 0
    for _ in range(tries):
        of_texts_U = rng.normal(0.0, 0.2, parts)
        found = [effect + of_texts_U.mean() + rng.normal(0.0, 0.02) for _ in range(seeds)]
        influence_U = (of_texts_U - of_texts_U.mean()) / parts
        low, high = over_seeds_and_texts(found, influence_U)[1:]
        assert low is not None
        assert high is not None
        held += low <= effect <= high
        low, high = t_interval(found)[1:]
        alone += low is not None and high is not None and low <= effect <= high
    assert 0.93 <= held / tries <= 0.97
    assert alone / tries < 0.85
    assert over_seeds_and_texts([1.0, 2.0]) == t_interval([1.0, 2.0])
    assert over_seeds_and_texts([1.0], np.ones(3)) == (1.0, None, None)
    assert over_seeds_and_texts([]) == (None, None, None)


def test_one_value_has_a_mean_but_no_interval_and_none_has_neither() -> None:
    assert t_interval([7.0]) == (7.0, None, None)
    assert t_interval([]) == (None, None, None)


def test_the_paired_test_is_the_formula_and_knows_no_spread() -> None:
    differences = np.array([0.3, -0.1, 0.4, 0.2])
    t = differences.mean() / (differences.std(ddof=1) / math.sqrt(4))
    assert paired(differences.tolist()) == pytest.approx(2 * stats.t.sf(abs(t), 3))
    assert (paired([0.5]), paired([0.0, 0.0]), paired([0.5, 0.5])) == (None, 1.0, 0.0)


def test_welch_is_the_formula() -> None:
    a, b = [2.1, 2.5, 2.2, 2.9], [3.0, 3.9, 3.1]
    va, vb = np.var(a, ddof=1) / 4, np.var(b, ddof=1) / 3
    t = (np.mean(a) - np.mean(b)) / math.sqrt(va + vb)
    freedom = (va + vb) ** 2 / (va**2 / 3 + vb**2 / 2)
    assert welch(a, b) == pytest.approx(2 * stats.t.sf(abs(t), freedom))


@pytest.mark.parametrize(
    ("a", "b", "p"), [([1.0], [1.0, 2.0], None), ([2.0, 2.0], [2.0, 2.0], 1.0), ([2.0, 2.0], [3.0, 3.0], 0.0)]
)
def test_welch_without_spread_or_values(a: list[float], b: list[float], p: float | None) -> None:
    assert welch(a, b) == p


def test_holm_steps_down_and_leaves_out_what_is_missing() -> None:
    # a textbook case: 4 x .005, 3 x .01, 2 x .03, and .04 raised to the .06 before it
    assert holm([0.01, 0.04, None, 0.03, 0.005]) == pytest.approx([0.03, 0.06, None, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


@given(rankings)
def test_tau_is_scipys_with_ties(pair: tuple[list[float], list[float]]) -> None:
    found = agreement(*pair).tau
    want = stats.kendalltau(*pair).statistic
    assert (found is None and math.isnan(want)) or found == pytest.approx(want)


@given(rankings, st.data())
def test_bands_compare_within_themselves_only(pair: tuple[list[float], list[float]], data: st.DataObject) -> None:
    x, y = pair
    bands = data.draw(st.lists(st.integers(0, 2), min_size=len(x), max_size=len(x)))
    right = [
        0.5 if x[i] == x[j] else float((x[i] < x[j]) == (y[i] < y[j]))
        for i, j in combinations(range(len(x)), 2)
        if bands[i] == bands[j] and y[i] != y[j]
    ]
    found = agreement(x, y, bands=bands).accuracy
    assert found == (pytest.approx(sum(right) / len(right)) if right else None)


@given(rankings, st.data())
def test_counts_are_a_resample_whose_copies_are_not_compared(
    pair: tuple[list[float], list[float]], data: st.DataObject
) -> None:
    x, y = pair
    counts = data.draw(st.lists(st.integers(0, 3), min_size=len(x), max_size=len(x)))
    copies = [i for i, count in enumerate(counts) for _ in range(count)]
    pairs = [(i, j) for i, j in combinations(copies, 2) if i != j]
    signs = [(np.sign(x[i] - x[j]), np.sign(y[i] - y[j])) for i, j in pairs]
    norm = math.sqrt(sum(a != 0 for a, _ in signs) * sum(b != 0 for _, b in signs))
    found = agreement(x, y, counts=np.array(counts)).tau
    assert found == (pytest.approx(sum(a * b for a, b in signs) / norm) if norm else None)


def test_regret_is_what_choosing_by_the_prediction_costs() -> None:
    predicted, true = [1.0, 2.0, 3.0, 4.0], [5.0, 4.0, 2.5, 9.0]
    assert agreement(predicted, true, top_k=1).regret == 2.5
    assert agreement(predicted, true, top_k=2).regret == 1.5
    assert agreement(predicted, true, top_k=3).regret == 0.0
    assert agreement(predicted, true, top_k=4).regret is None, "taking all of them is no choice"
    assert agreement(predicted, true, bands=[0, 0, 1, 1], top_k=1).regret == 0.5, "the mean of 1.0 and 0.0"


def test_a_perfect_and_a_reversed_prediction() -> None:
    true = [3.0, 1.0, 2.0, 5.0, 4.0]
    perfect = agreements(true, true, np.random.default_rng(0), resamples=200)
    assert perfect.pairs == 10
    assert perfect.tau == perfect.accuracy == (1.0, 1.0, 1.0)
    assert perfect.regret == (0.0, 0.0, 0.0)
    reversed_ = agreements([-value for value in true], true, np.random.default_rng(0), resamples=200)
    assert reversed_.tau.value == -1.0
    assert reversed_.accuracy.value == 0.0
    assert reversed_.regret.value == 4.0


def test_bootstrap_intervals_cover_the_true_tau() -> None:
    """Of 60 samples of correlated normals, τ = 2/π·asin(ρ) lies in most of the 90 % intervals, and not in all."""
    rng, rho = np.random.default_rng(1), 0.6
    want, covered = 2.0 / math.pi * math.asin(rho), 0
    for _ in range(60):
        x_n, noise_n = rng.standard_normal((2, 30))
        y_n = rho * x_n + math.sqrt(1.0 - rho**2) * noise_n
        tau = agreements(x_n.tolist(), y_n.tolist(), rng, resamples=100, level=0.9).tau
        assert tau.low is not None
        assert tau.high is not None
        covered += tau.low <= want <= tau.high
    assert 48 <= covered < 60


@given(st.lists(st.floats(1e3, 2e3), min_size=1, max_size=20))
def test_sizes_in_a_band_are_within_its_tolerance_and_bands_do_not_overlap(sizes: list[float]) -> None:
    bands = size_bands(sizes, 0.05)
    ends = []
    for band in range(max(bands) + 1):
        members = [size for size, own in zip(sizes, bands, strict=True) if own == band]
        assert max(members) / min(members) <= 1.05 / 0.95 * (1 + 1e-12)
        ends.append((min(members), max(members)))
    assert all(before[1] < after[0] for before, after in pairwise(ends))
