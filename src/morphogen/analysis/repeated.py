"""What repeats of finalists on other seeds show: each figure's difference from the root that was trained as long."""

import math

from morphogen.candidate import Difference, Report, Status
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
    from morphogen.analysis.statistics import t_interval  # brings scipy

    values = []
    known = {key: one.report.metrics[name] for key, one in engine.again.items() if _has(one.report, name)}
    for one, other in pairs(engine, id, len(engine.again)):
        if one in known and other in known:
            values.append((known[one], known[other]))
    if not values:
        return None
    mean, low, high = t_interval([one - other for one, other in values])
    assert mean is not None
    sign = 1.0 if better == "min" else -1.0
    ends = [] if low is None or high is None else sorted((sign * low, sign * high))
    return Difference(
        figure=name,
        value=sum(one for one, _ in values) / len(values),
        root=sum(other for _, other in values) / len(values),
        difference=mean,
        low=low,
        high=high,
        pairs=len(values),
        shown="better" if ends and ends[1] < 0.0 else "worse" if ends and ends[0] > 0.0 else "no",
    )


def _has(report: Report, name: str) -> bool:
    """Whether there is a number to compare."""
    return report.status is Status.TRAINED and math.isfinite(report.metrics.get(name, math.nan))
