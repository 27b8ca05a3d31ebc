"""What repeats of finalists on other seeds show: each figure's difference from the root that was trained as long."""

import math
from collections.abc import Sequence

import numpy as np

from morphogen.against_root import Difference
from morphogen.candidate import Report, Status
from morphogen.estimates import Floats
from morphogen.figures import Direction
from morphogen.search.engine import Engine
from morphogen.search.repeats import finalists, pairs


def against_root(engine: Engine) -> dict[str, tuple[Difference, ...]]:
    """Of every finalist with repeats: how each measured objective differs. Empty where nothing was repeated."""
    if not engine.again:
        return {}
    found = {
        id: tuple(
            difference
            for name, better in engine.evolution.objectives.items()
            if (difference := _difference(engine, id, name, better)) is not None
        )
        for id in finalists(engine)
    }
    return {id: differences for id, differences in found.items() if differences}


def _difference(engine: Engine, id: str, name: str, better: Direction) -> Difference | None:
    from morphogen.analysis.statistics import over_seeds_and_texts  # brings scipy

    twins = engine.evolution.twin_share > 0.0
    known = {key: one.report for key, one in engine.again.items() if _has(one.report, name, twins)}
    measured = [
        (known[one], known[other])
        for one, other in pairs(engine, id, len(engine.again))
        if one in known and other in known
    ]
    if not measured:
        return None
    values = [(_value(one, name), _value(other, name)) for one, other in measured]
    mean, low, high = over_seeds_and_texts([one - other for one, other in values], text_influence(measured, name))
    assert mean is not None
    sign = 1.0 if better == "min" else -1.0
    ends = [] if low is None or high is None else sorted((sign * low, sign * high))
    return Difference(
        figure=name,
        value=math.fsum(one for one, _ in values) / len(values),
        root=math.fsum(other for _, other in values) / len(values),
        difference=mean,
        low=low,
        high=high,
        pairs=len(values),
        shown="better" if ends and ends[1] < 0.0 else "worse" if ends and ends[0] > 0.0 else "no",
    )


def text_influence(measured: Sequence[tuple[Report, Report]], name: str) -> Floats | None:
    """How far every part of the text pushes the mean difference of pairs; None where that is not known of all."""
    found = [(one.influence_of(name), other.influence_of(name)) for one, other in measured]
    moved = [one - other for one, other in found if one is not None and other is not None and len(one) == len(other)]
    return np.mean(moved, axis=0) if moved and len(moved) == len(found) else None


def _has(report: Report, name: str, twins: bool) -> bool:
    """Whether there is a number to compare, with a twin behind it where selection reads those."""
    alike = (report.twin is not None) == twins
    return alike and report.status is Status.TRAINED and math.isfinite(_value(report, name))


def _value(report: Report, name: str) -> float:
    """What selection would read; NaN for what is no metric of it."""
    value = report.value(name) if name in report.metrics else None
    return math.nan if value is None else value
