"""Statistics for evidence: intervals, tests and rank agreement. Pure functions of numbers.

n candidates, B bootstrap resamples. Values are "lower is better" where an order of merit matters.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from morphogen.analysis.records import Interval
from morphogen.estimates import standard_error

Floats = NDArray[np.float64]


def t_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """Mean ± t·s/√n, Student's t with n − 1 degrees of freedom; without ends where n < 2. All None for no values."""
    count = len(values)
    if count == 0:
        return Interval(None, None, None)
    mean = math.fsum(values) / count
    if count == 1:
        return Interval(mean, None, None)
    half = float(stats.t.ppf(0.5 + level / 2.0, count - 1)) * float(np.std(values, ddof=1)) / math.sqrt(count)
    return Interval(mean, mean - half, mean + half)


def over_seeds_and_texts(
    differences: Sequence[float], influence_U: Floats | None = None, level: float = 0.95
) -> Interval:
    """The mean of paired differences, one a seed, with an interval among other seeds and other texts like this one.

    influence_U: how far every part of the text pushes the mean (see `estimates`), whose error e adds to that of the
    seeds, s/√n: mean ± t·√(s²/n + e²), with the degrees of freedom of Welch and Satterthwaite; None where nobody knows,
    which leaves the seeds. Without ends where n < 2.
    """
    alone, count = t_interval(differences, level), len(differences)
    error = None if influence_U is None else standard_error(influence_U)
    if alone.value is None or alone.low is None or influence_U is None or not error:
        return alone
    of_seeds, of_texts = float(np.var(differences, ddof=1)) / count, error**2
    freedom = (of_seeds + of_texts) ** 2 / (of_seeds**2 / (count - 1) + of_texts**2 / (len(influence_U) - 1))
    half = float(stats.t.ppf(0.5 + level / 2.0, freedom)) * math.sqrt(of_seeds + of_texts)
    return Interval(alone.value, alone.value - half, alone.value + half)


def welch(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Two-sided p of Welch's t-test that two means are equal; None where a sample has fewer than two values.

    Samples without any spread are equal (p = 1) or not (p = 0). Ref: Welch 1947, Biometrika 34.
    """
    if min(len(a), len(b)) < 2:
        return None
    if np.ptp(a) == 0.0 and np.ptp(b) == 0.0:
        return 1.0 if a[0] == b[0] else 0.0
    return float(stats.ttest_ind(a, b, equal_var=False).pvalue)


def paired(differences: Sequence[float]) -> float | None:
    """Two-sided p of the t-test that paired differences are zero on average; None for fewer than two of them.

    Differences without any spread are none (p = 1) or one (p = 0). Ref: Student 1908, Biometrika 6.
    """
    if len(differences) < 2:
        return None
    if np.ptp(differences) == 0.0:
        return 1.0 if differences[0] == 0.0 else 0.0
    return float(stats.ttest_1samp(differences, 0.0).pvalue)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down correction: the k-th smallest of m (from 0) becomes the largest so far of (m − k)·p, at most 1.

    Missing values stay missing and do not count. Ref: Holm 1979, Scandinavian Journal of Statistics 6.
    """
    known = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for k, (p, i) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - k) * p))
        corrected[i] = largest
    return corrected


def benjamini_hochberg(p_values: Sequence[float]) -> list[float]:
    """Corrected so that of those at most q a share of at most q is wrong on average: the k-th smallest of m (from 1)
    becomes the least of m/j·p over j ≥ k, at most 1. Ref: Benjamini and Hochberg 1995, JRSS B 57."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    corrected, least = [1.0] * len(p_values), 1.0
    for k, i in reversed(list(enumerate(order, start=1))):
        least = min(least, p_values[i] * len(p_values) / k)
        corrected[i] = least
    return corrected


class Table(NamedTuple):
    """Of those chosen, and of the others: how many have something, of how many."""

    chosen_with: int
    chosen: int
    others_with: int
    others: int


def exact_excess(tables: Sequence[Table]) -> float:
    """One-sided p of so many among the chosen, or more, if having it has nothing to do with being chosen.

    Of one table Fisher's exact test; of several the sum over tables, each of its own hypergeometric distribution, which
    conditions on the margins of every one. Ref: Fisher 1934; Gart 1971, International Statistical Review 39.
    """
    chance = np.ones(1)
    for table in tables:
        counts = np.arange(table.chosen + 1)
        whole, having = table.chosen + table.others, table.chosen_with + table.others_with
        chance = np.convolve(chance, stats.hypergeom.pmf(counts, whole, having, table.chosen))
    return float(min(1.0, chance[sum(table.chosen_with for table in tables) :].sum()))


class Line(NamedTuple):
    """log y = intercept + slope · log x, by least squares. n: points. r2: the share of the variance of log y that it
    explains. low, high: ends of the slope's t interval; None for two points. spread: standard deviation of residuals.
    """

    slope: float
    low: float | None
    high: float | None
    intercept: float
    r2: float | None
    n: int
    spread: float | None


def log_line(x: Sequence[float], y: Sequence[float], level: float = 0.95) -> Line | None:
    """The line through points in logarithms; None for fewer than two different x. All must be positive."""
    x_n, y_n = np.log(np.asarray(x, dtype=np.float64)), np.log(np.asarray(y, dtype=np.float64))
    if len(x_n) < 2 or np.ptp(x_n) == 0.0:
        return None
    found = stats.linregress(x_n, y_n)
    slope, intercept, count = float(found.slope), float(found.intercept), len(x_n)
    left_n = y_n - intercept - slope * x_n
    varies = float(((y_n - y_n.mean()) ** 2).sum())
    r2 = 1.0 - float((left_n**2).sum()) / varies if varies else None
    if count == 2:
        return Line(slope, None, None, intercept, None, count, None)
    half = float(stats.t.ppf(0.5 + level / 2.0, count - 2)) * float(found.stderr)
    spread = math.sqrt(float((left_n**2).sum()) / (count - 2))
    return Line(slope, slope - half, slope + half, intercept, r2, count, spread)


def extrapolated(line: Line, x: Sequence[float], at: float, level: float = 0.95) -> Interval:
    """What the line says of one more point at `at`, with its prediction interval; ends are None where spread is."""
    x_n, place = np.log(np.asarray(x, dtype=np.float64)), math.log(at)
    value = line.intercept + line.slope * place
    if line.spread is None:
        return Interval(_exp(value), None, None)
    away = (place - float(x_n.mean())) ** 2 / float(((x_n - x_n.mean()) ** 2).sum())
    half = float(stats.t.ppf(0.5 + level / 2.0, line.n - 2)) * line.spread * math.sqrt(1.0 + 1.0 / line.n + away)
    return Interval(_exp(value), _exp(value - half), _exp(value + half))


def _exp(x: float) -> float | None:
    """e^x; None where no number holds it."""
    return math.exp(x) if abs(x) < 700.0 else None


class Agreement(NamedTuple):
    """How well one ranking predicts another. tau: Kendall's τ-b. accuracy: share of pairs ordered alike, those that the
    prediction ties counting one half. regret: the best true value among the `top_k` predicted best less the best of
    all, in the values' unit; a mean over bands. None where there is nothing to compare."""

    tau: float | None
    accuracy: float | None
    regret: float | None


class Agreements(NamedTuple):
    """`Agreement` with bootstrap intervals. pairs: how many are compared."""

    pairs: int
    tau: Interval
    accuracy: Interval
    regret: Interval


def agreement(
    predicted: Sequence[float],
    true: Sequence[float],
    *,
    bands: Sequence[int] | None = None,
    top_k: int = 1,
    counts: NDArray[np.int64] | None = None,
) -> Agreement:
    """Agreement of two rankings of n candidates, both "lower is better".

    bands: only candidates of the same band are compared. counts_n: how often each candidate stands in a resample; its
    copies are not compared with one another. τ-b = Σ sign·sign / √(untied predicted pairs · untied true pairs).
    """
    x_n, y_n = np.asarray(predicted, dtype=np.float64), np.asarray(true, dtype=np.float64)
    band_n = np.zeros(len(x_n), dtype=np.int64) if bands is None else np.asarray(bands)
    count_n = np.ones(len(x_n), dtype=np.int64) if counts is None else counts
    weight_nn = np.triu(np.outer(count_n, count_n) * (band_n[:, None] == band_n), k=1)
    one_nn, other_nn = np.sign(x_n[:, None] - x_n), np.sign(y_n[:, None] - y_n)
    both = float((weight_nn * one_nn * other_nn).sum())
    untied_x, untied_y = float((weight_nn * np.abs(one_nn)).sum()), float((weight_nn * np.abs(other_nn)).sum())
    norm = math.sqrt(untied_x * untied_y)
    return Agreement(
        tau=both / norm if norm else None,
        # alike − unlike = both, and a predicted tie is half of each
        accuracy=0.5 + 0.5 * both / untied_y if untied_y else None,
        regret=_regret(x_n, y_n, band_n, count_n, top_k),
    )


def _regret(x_n: Floats, y_n: Floats, band_n: NDArray[np.int64], count_n: NDArray[np.int64], k: int) -> float | None:
    """The mean over bands with more than k candidates of (best true value among the k predicted best − best)."""
    found = []
    for band in np.unique(band_n):
        members = np.flatnonzero((band_n == band) & (count_n > 0))
        if len(members) > k:
            chosen = members[np.argsort(x_n[members], kind="stable")[:k]]
            found.append(float(y_n[chosen].min() - y_n[members].min()))
    return math.fsum(found) / len(found) if found else None


def agreements(
    predicted: Sequence[float],
    true: Sequence[float],
    rng: np.random.Generator,
    *,
    bands: Sequence[int] | None = None,
    top_k: int = 1,
    resamples: int = 2000,
    level: float = 0.95,
) -> Agreements:
    """`agreement` of at least one candidate, with percentile intervals over `resamples` draws with replacement.

    Resamples in which nothing can be compared are left out. Ref: Efron and Tibshirani 1993, chapter 13.
    """
    count = len(predicted)
    point = agreement(predicted, true, bands=bands, top_k=top_k)
    drawn_Bn = rng.multinomial(count, np.full(count, 1.0 / count), size=resamples)
    tries = [agreement(predicted, true, bands=bands, top_k=top_k, counts=drawn_n) for drawn_n in drawn_Bn]
    band_n = np.zeros(count) if bands is None else np.asarray(bands)
    pairs = int(np.triu(band_n[:, None] == band_n, k=1).sum())
    tau, accuracy, regret = (
        _percentiles(value, [found for one in tries if (found := one[i]) is not None], level)
        for i, value in enumerate(point)
    )
    return Agreements(pairs, tau, accuracy, regret)


def _percentiles(value: float | None, tries: Sequence[float], level: float) -> Interval:
    if value is None or not tries:
        return Interval(value, None, None)
    low, high = np.quantile(tries, [0.5 - level / 2.0, 0.5 + level / 2.0]).tolist()
    return Interval(value, low, high)


def size_bands(sizes: Sequence[float], tolerance: float = 0.05) -> list[int]:
    """The band of each size: from the smallest on, a band takes all within ± `tolerance` of its centre.

    A band that begins at s ends at s·(1 + tolerance)/(1 − tolerance); the next begins at the first size beyond.
    """
    bands = [0] * len(sizes)
    number, end = -1, -math.inf
    for i in sorted(range(len(sizes)), key=lambda i: sizes[i]):
        if sizes[i] > end:
            number, end = number + 1, sizes[i] * (1.0 + tolerance) / (1.0 - tolerance)
        bands[i] = number
    return bands
