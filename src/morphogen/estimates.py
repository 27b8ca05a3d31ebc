"""Numbers that were measured of many parts of a text: their standard errors, alone and of paired differences.

The *influence* z_u of part u is how far it pushes a number off: to first order by how much the number would be another
one had the part been drawn once more (the infinitesimal jackknife: Efron 1982, chapter 6). Of a ratio Σa/Σb it is
z_u = (a_u − (Σa/Σb)·b_u)/Σb. The number's standard error over U parts is √(U/(U − 1)·Σ z_u²), and that of the
difference of two models on the same parts is the same of z_u − z'_u: what is hard for both cancels.
"""

import base64
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from morphogen.figures import Composite

Floats = NDArray[np.float64]

#: Of more parts several count as one: a record of them takes 4 bytes each, in base64.
MOST_PARTS = 128


class Estimate(float):
    """A number with the influence of every part that it was measured of, shape (U,)."""

    influence_U: Floats

    def __new__(cls, value: float, influence_U: Floats) -> Self:
        made = super().__new__(cls, value)
        made.influence_U = influence_U
        return made

    def __reduce__(self) -> tuple[type[Self], tuple[float, Floats]]:
        return type(self), (float(self), self.influence_U)


def summed(values_N: Floats, place_N: NDArray[np.integer[Any]]) -> Floats:
    """The sum of the values of each place, from 0 to the last that there is."""
    return np.bincount(place_N, weights=values_N).astype(np.float64)


def folded(values_U: Floats) -> Floats:
    """Sums over at most `MOST_PARTS` parts, each of every so many-th."""
    if len(values_U) <= MOST_PARTS:
        return values_U
    return summed(values_U, np.arange(len(values_U)) % MOST_PARTS)


def ratio(above_U: Floats, below_U: Floats) -> Estimate:
    """Σ above / Σ below, of parts that count as they are many."""
    total = float(below_U.sum())
    value = float(above_U.sum()) / total
    return Estimate(value, folded((above_U - value * below_U) / total))


def standard_error(influence_U: Floats) -> float | None:
    """Of a number, or of a difference; None of fewer than two parts, which tell nothing."""
    count = len(influence_U)
    if count < 2:
        return None
    return math.sqrt(count / (count - 1.0) * float(np.square(influence_U).sum()))


def errors_between(influence_nU: Floats) -> Floats:
    """The standard errors of all paired differences of n models on the same parts, shape (n, n)."""
    count = influence_nU.shape[1]
    square_n = np.square(influence_nU).sum(axis=1)
    square_nn = square_n[:, None] + square_n - 2.0 * influence_nU @ influence_nU.T
    np.fill_diagonal(square_nn, 0.0)
    error_nn: Floats = np.sqrt(np.maximum(square_nn, 0.0) * count / (count - 1.0))
    return error_nn


def derived(function: Callable[[Mapping[str, float]], float], of: Mapping[str, float]) -> float:
    """`function(of)`, an `Estimate` where any of the numbers `of` is one.

    The u-th parts of numbers that were measured of different texts are moved together: as independent ones, they push
    as far on average as one after another.
    """
    value = function(of)
    known = {name: one for name, one in of.items() if isinstance(one, Estimate)}
    count = max((len(one.influence_U) for one in known.values()), default=0)
    if not count or not math.isfinite(value):
        return value
    moved_U = np.zeros(count)
    for u in range(count):
        pushed = {name: one + one.influence_U[u] for name, one in known.items() if u < len(one.influence_U)}
        moved_U[u] = function({**of, **pushed}) - value
    return Estimate(value, moved_U)


def composed(figures: Mapping[str, float], composites: Mapping[str, "Composite"]) -> dict[str, float]:
    """The composite metrics that can be made of `figures` and of one another, each of those named before it."""
    known = dict(figures)
    for name, composite in composites.items():
        parts = {part: known[part] for part in composite.names if part in known}
        value = derived(composite.value, parts) if parts.keys() == set(composite.names) else math.nan
        if math.isfinite(value):
            known[name] = value
    return {name: known[name] for name in composites if name in known}


def mean(of: Mapping[str, float], weights: Mapping[str, float]) -> float:
    """The weighted mean of numbers of different texts; an `Estimate` where all of them are."""
    total = math.fsum(weights[name] for name in of)
    value = math.fsum(weights[name] * of[name] for name in of) / total
    pushes = [weights[name] / total * one.influence_U for name, one in of.items() if isinstance(one, Estimate)]
    return Estimate(value, folded(np.concatenate(pushes))) if len(pushes) == len(of) else value


def known_of(metrics: Mapping[str, float]) -> dict[str, dict[str, Any]]:
    """The fields of a record of metrics: these, the errors of those that are an `Estimate`, and their influences."""
    known = {name: one.influence_U for name, one in metrics.items() if isinstance(one, Estimate)}
    errors = {name: error for name, z_U in known.items() if (error := standard_error(z_U)) is not None}
    return {
        "metrics": {name: float(value) for name, value in metrics.items()},
        "errors": errors,
        "influence": {name: packed(known[name]) for name in errors},
    }


def packed(influence_U: Floats) -> str:
    """As text for records: base64 of little-endian 32-bit floats."""
    return base64.b64encode(influence_U.astype("<f4").tobytes()).decode("ascii")


def unpacked(text: str) -> Floats:
    """What was `packed`. ValueError for any other text."""
    return np.frombuffer(base64.b64decode(text, validate=True), dtype="<f4").astype(np.float64)
