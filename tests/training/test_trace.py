"""A training's curve, as it is kept."""

import math

import pytest

from morphogen.candidate import Report, Status
from morphogen.training.trace import POINTS, thinned


def test_a_short_curve_is_kept_as_it_is():
    assert thinned([3.0, 2.5]) == ((1, 3.0), (2, 2.5))
    assert thinned([]) == ()


@pytest.mark.parametrize("steps", [200, 201, 399, 1000, 12_345])
def test_a_long_curve_has_at_most_so_many_points_whose_means_cover_every_step(steps):
    losses = [math.sin(step) + 3.0 for step in range(steps)]
    curve = thinned(losses)
    assert POINTS / 2 < len(curve) <= POINTS
    assert curve[-1][0] == steps
    ends = [0, *(step for step, _ in curve)]
    for (step, loss), start in zip(curve, ends, strict=False):
        assert loss == pytest.approx(sum(losses[start:step]) / (step - start), rel=1e-4)


def test_a_training_in_two_parts_has_one_curve():
    losses = [5.0 / (1 + step) for step in range(600)]
    curve = thinned(losses[300:], thinned(losses[:300]))
    assert len(curve) <= POINTS
    steps = [step for step, _ in curve]
    assert steps == sorted(set(steps))
    assert steps[-1] == 600


def test_losses_that_are_not_finite_are_left_out_and_a_report_holds_the_rest():
    curve = thinned([2.0, math.nan, math.inf, 1.0])
    assert curve == ((1, 2.0), (4, 1.0))
    report = Report(id="a", status=Status.TRAINED, losses=curve)
    assert Report.model_validate_json(report.model_dump_json()) == report
    assert "losses" not in Report(id="a", status=Status.TRAINED).model_dump()
