"""Trends in logarithms: planted slopes are found, and what lies beyond the data is told."""

import math

import numpy as np
import pytest
from scipy import stats

from morphogen.analysis.scaling import Fit, Point, fitted
from morphogen.analysis.statistics import extrapolated, log_line


def points(slope: float, noise: float, count: int, seed: int = 0) -> list[Point]:
    rng = np.random.default_rng(seed)
    sizes = np.geomspace(1e5, 1e7, count)
    return [
        Point(str(i), {"params": float(x), "bpb": float(30.0 * x**slope * math.exp(noise * rng.standard_normal()))})
        for i, x in enumerate(sizes)
    ]


def test_a_planted_slope_lies_within_its_interval_as_often_as_is_said() -> None:
    inside = covered = 0
    for seed in range(200):
        drawn = points(-0.2, 0.05, 8, seed)
        fit = fitted(drawn, "bpb", "params", 1e8)
        assert fit.low is not None
        assert fit.high is not None
        assert fit.predicted.low is not None
        assert fit.predicted.high is not None
        inside += fit.low <= -0.2 <= fit.high
        true = 30.0 * 1e8**-0.2 * math.exp(0.05 * np.random.default_rng(seed + 1000).standard_normal())
        covered += fit.predicted.low <= true <= fit.predicted.high
    assert 180 <= inside <= 199
    assert 180 <= covered <= 199


def test_a_line_is_that_of_least_squares() -> None:
    drawn = points(-0.3, 0.1, 12)
    x, y = [it.values["params"] for it in drawn], [it.values["bpb"] for it in drawn]
    line, theirs = log_line(x, y), stats.linregress(np.log(x), np.log(y))
    assert line is not None
    assert (line.slope, line.intercept) == pytest.approx((theirs.slope, theirs.intercept))
    assert line.r2 == pytest.approx(theirs.rvalue**2)
    assert extrapolated(line, x, x[0]).value == pytest.approx(math.exp(theirs.intercept) * x[0] ** theirs.slope)


def test_what_cannot_be_fitted_or_lies_far_away_is_said() -> None:
    far = fitted(points(-0.2, 0.1, 6), "bpb", "params", 1e9)
    assert far.beyond == pytest.approx(100.0)
    assert [line for line in far.remarks() if "100 times beyond the data (1e+05 to 1e+07)" in line]
    near = fitted(points(-0.2, 0.1, 6), "bpb", "params", 1e6)
    assert (near.beyond, list(near.remarks())) == (1.0, [])
    few = fitted(points(-0.2, 0.1, 2), "bpb", "params", None)
    assert (few.low, few.n) == (None, 2)
    assert "are few" in next(few.remarks())
    steep = fitted([Point(str(i), {"params": 1e5 + 100 * i, "bpb": 2.0**i}) for i in range(4)], "bpb", "params", 1.5e9)
    assert steep.predicted.value is None
    alike = fitted([Point(str(i), {"params": 5.0, "bpb": 1.0 + i}) for i in range(4)], "bpb", "params", 1e6)
    assert alike.slope is None
    assert "not fitted" in next(alike.remarks())
    none = fitted([Point("a", {"bpb": 1.0}), Point("b", {"params": 0.0, "bpb": 1.0})], "bpb", "params", 1e6)
    assert (none.n, none.slope) == (0, None)
    narrow = Fit(y="bpb", x="params", n=9, slope=-0.1, least=10.0, most=12.0)
    assert "spans only a factor of 1.2" in next(narrow.remarks())
