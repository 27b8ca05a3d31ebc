"""The one comparison of measured figures: which difference of two candidates is more than noise.

Two sources of noise are known. The measured text is a sample: its share is the standard error of the *paired*
difference, over the parts of the text that both were measured on. And two trainings that differ by luck alone end
apart: that share is `Noise.training` of either's value. A difference d counts where
|d| > z·√(paired error² + both trainings'²), else it is a tie. Figures without a standard error (costs, times) differ by
whatever they differ.

Ties are not transitive: a may tie with b and b with c, while a is shown to be better than c. `pareto` says how ranks
come of that. Legend: n candidates, m figures, U parts of the text.
"""

import math
from collections.abc import Sequence

import numpy as np

from morphogen.candidate import Report
from morphogen.estimates import Floats, errors_between
from morphogen.figures import Direction, Noise, find

#: Every difference counts.
NO_NOISE = Noise(z=0.0, training=0.0)


def tolerances(reports: Sequence[Report], names: Sequence[str], noise: Noise) -> Floats | None:
    """How far apart two candidates may be by noise alone, in every figure, shape (m, n, n); None where nothing has
    any."""
    if noise.z == 0.0 or not any(name in report.errors for report in reports for name in names):
        return None
    return np.stack([_tolerance(reports, name, noise) for name in names])


def _tolerance(reports: Sequence[Report], name: str, noise: Noise) -> Floats:
    tolerance_nn = np.zeros((len(reports), len(reports)))
    error_n = np.array([math.nan if (error := report.error(name)) is None else error for report in reports])
    value_n = np.array([report.value(name) or 0.0 for report in reports])
    known = np.flatnonzero(np.isfinite(error_n))
    if len(known) == 0:
        return tolerance_nn
    square_nn = np.square(error_n[known, None]) + np.square(error_n[known])  # of those measured on different parts
    influences = [reports[int(row)].influence_of(name) for row in known]
    counts = [0 if z_U is None else len(z_U) for z_U in influences]
    for count in sorted(set(counts) - {0, 1}):
        alike = np.array([place for place, it in enumerate(counts) if it == count])
        influence_nU = np.stack([z_U for z_U in influences if z_U is not None and len(z_U) == count])
        square_nn[np.ix_(alike, alike)] = np.square(errors_between(influence_nU))
    square_nn += noise.training**2 * (np.square(value_n[known, None]) + np.square(value_n[known]))
    tolerance_nn[np.ix_(known, known)] = noise.z * np.sqrt(square_nn)
    np.fill_diagonal(tolerance_nn, 0.0)
    return tolerance_nn


def shown(reports: Sequence[Report], name: str, better: Direction, noise: Noise) -> list[float]:
    """The value of each candidate, NaN for none that is finite; that of chance where it is not shown to be better."""
    values = [math.nan if (value := report.value(name)) is None else value for report in reports]
    values = [value if math.isfinite(value) else math.nan for value in values]
    if noise.z == 0.0 or not any(name in report.errors for report in reports):
        return values
    figure = find(name)
    if figure is None or not figure.chance:
        return values
    sign = 1.0 if better == "max" else -1.0
    found = []
    for value, report in zip(values, reports, strict=True):
        chance = report.value(figure.chance_of(name))
        sure = sign * value - noise.z * (report.error(name) or 0.0)
        found.append(chance if chance is not None and sure <= sign * chance else value)
    return found
