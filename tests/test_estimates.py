"""Standard errors from the influence of parts: against the textbook's, and the jackknife."""

import math
import pickle

import numpy as np
import pytest

from morphogen.estimates import (
    MOST_PARTS,
    Estimate,
    derived,
    errors_between,
    known_of,
    mean,
    packed,
    ratio,
    standard_error,
    unpacked,
)

RNG = np.random.default_rng(0)


def test_the_error_of_a_mean_is_the_textbooks() -> None:
    values = RNG.normal(size=50)
    made = ratio(values, np.ones(50))
    assert made == pytest.approx(values.mean())
    assert standard_error(made.influence_U) == pytest.approx(values.std(ddof=1) / math.sqrt(50))


def test_the_error_of_a_ratio_is_about_the_jackknifes() -> None:
    below = RNG.uniform(50.0, 150.0, 100)
    above = 2.0 * below + RNG.normal(0.0, 20.0, 100)
    made = ratio(above, below)
    left_out = np.array([np.delete(above, u).sum() / np.delete(below, u).sum() for u in range(100)])
    jackknife = math.sqrt(99 / 100 * np.square(left_out - left_out.mean()).sum())
    assert standard_error(made.influence_U) == pytest.approx(jackknife, rel=0.02)


def test_what_is_hard_for_both_cancels_in_a_paired_difference() -> None:
    hard, size = RNG.normal(200.0, 50.0, 80), np.full(80, 100.0)
    one, other = (ratio(hard + RNG.normal(0.0, 1.0, 80), size) for _ in range(2))
    alone = standard_error(one.influence_U)
    error_nn = errors_between(np.stack([one.influence_U, other.influence_U]))
    assert alone is not None
    assert error_nn[0, 1] == pytest.approx(standard_error(one.influence_U - other.influence_U))
    assert error_nn[0, 1] < alone / 10.0
    assert error_nn[0, 0] == 0.0


def test_many_parts_are_folded_and_the_error_stays() -> None:
    values = RNG.normal(size=20 * MOST_PARTS)
    made = ratio(values, np.ones_like(values))
    assert len(made.influence_U) == MOST_PARTS
    assert standard_error(made.influence_U) == pytest.approx(values.std(ddof=1) / math.sqrt(len(values)), rel=0.2)


def test_what_is_derived_has_the_error_of_its_parts() -> None:
    one, other = Estimate(4.0, RNG.normal(0.0, 0.01, 30)), Estimate(2.0, RNG.normal(0.0, 0.01, 20))
    made = derived(lambda of: of["a"] / of["b"], {"a": one, "b": other, "c": 7.0})
    wanted = math.hypot(standard_error(one.influence_U) or 0.0, 2.0 * (standard_error(other.influence_U) or 0.0)) / 2.0
    assert isinstance(made, Estimate)
    assert made == 2.0
    assert standard_error(made.influence_U) == pytest.approx(wanted, rel=0.35)  # 20 and 30 parts are few
    plain = derived(lambda of: of["c"], {"c": 7.0})
    assert (plain, isinstance(plain, Estimate)) == (7.0, False)


def test_a_mean_over_texts_has_the_error_of_independent_ones() -> None:
    one, other = Estimate(1.0, RNG.normal(size=100)), Estimate(3.0, RNG.normal(size=100))
    made = mean({"a": one, "b": other}, {"a": 3.0, "b": 1.0})
    assert isinstance(made, Estimate)
    assert made == pytest.approx(1.5)
    alone = [standard_error(it.influence_U) or 0.0 for it in (one, other)]
    assert standard_error(made.influence_U) == pytest.approx(math.hypot(0.75 * alone[0], 0.25 * alone[1]), rel=0.01)


def test_records_hold_errors_and_influences_of_estimates_alone() -> None:
    made = Estimate(1.0, np.array([0.5, -0.25, -0.25]))
    fields = known_of({"bpb": made, "instability": 0.5, "single": Estimate(2.0, np.zeros(1))})
    assert fields["metrics"] == {"bpb": 1.0, "instability": 0.5, "single": 2.0}
    assert type(fields["metrics"]["bpb"]) is float
    assert fields["errors"].keys() == fields["influence"].keys() == {"bpb"}
    assert unpacked(fields["influence"]["bpb"]).tolist() == [0.5, -0.25, -0.25]
    assert len(packed(np.zeros(MOST_PARTS))) == 684
    again = pickle.loads(pickle.dumps(made))
    assert (again, again.influence_U.tolist()) == (1.0, [0.5, -0.25, -0.25])
