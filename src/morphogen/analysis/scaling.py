"""Trends of frontiers in logarithms: loss against parameters, tokens and FLOPs, throughput against width and heads.

A line through a few small models of one search says little of large ones: the points differ in much else than size,
they were chosen for being good, and their training was short. Slopes therefore have intervals, targets the wider ones
of prediction, and what lies beyond the data is told.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from morphogen.analysis.records import Interval
from morphogen.analysis.statistics import Line, extrapolated, log_line
from morphogen.candidate import Record, Status
from morphogen.errors import InputError, unknown
from morphogen.figures import find
from morphogen.store.documents import Document
from morphogen.store.frontier import Frontier
from morphogen.store.lineage import Lineage

PICTURE = "scaling.png"
LEVEL = 0.95
#: A training step computes the forward pass and about twice its FLOPs backwards.
TRAIN_FACTOR = 3.0
#: Points that span less than this factor tell nothing of a slope.
NARROW = 3.0


class Point(NamedTuple):
    """One candidate: what is known of it, by name."""

    id: str
    values: Mapping[str, float]


class Targets(NamedTuple):
    """What the lines are asked for; FLOPs default to 6·params·tokens."""

    params: float = 1.5e9
    tokens: float = 5e9
    flops: float | None = None
    width_heads: float | None = None

    def of(self, name: str) -> float | None:
        """By the name of an x."""
        known = {"params": self.params, "tokens": self.tokens, "width x heads": self.width_heads}
        return known[name] if name in known else self.flops or 6.0 * self.params * self.tokens


TARGETS = Targets()


class Fit(Record):
    """log y = intercept + slope·log x. n: points. low, high: of the slope. least, most: the x of the data. target: what
    was asked for; predicted: the y there, with its prediction interval; beyond: how many times the nearest x it is."""

    y: str
    x: str
    n: int
    slope: float | None = None
    low: float | None = None
    high: float | None = None
    intercept: float | None = None
    r2: float | None = None
    least: float | None = None
    most: float | None = None
    target: float | None = None
    predicted: Interval = Interval(None, None, None)
    beyond: float | None = None
    points: tuple[tuple[float, float], ...] = ()

    def remarks(self) -> Iterator[str]:
        """What should be known before it is believed."""
        name = f"{self.y} against {self.x}"
        if self.slope is None:
            yield f"{name}: not fitted, since {self.n} candidates have both and there are no two of another {self.x}"
            return
        assert self.least is not None
        assert self.most is not None
        if self.n < 5:
            yield f"{name}: {self.n} candidates are few; the interval of a slope needs 3"
        if self.most < NARROW * self.least:
            yield f"{name}: {self.x} spans only a factor of {self.most / self.least:.2g}"
        if self.target is not None and self.beyond is not None and self.beyond > 1.0:
            data = f"{self.least:.3g} to {self.most:.3g}"
            far = f"the target {self.target:.3g} is {self.beyond:,.3g} times beyond the data ({data})"
            yield f"{name}: {far}; no interval covers how far a line holds"


class Scaling(Document):
    """The file. runs: names of those whose candidates were read."""

    title: ClassVar[str] = "scaling fit"
    runs: tuple[str, ...]
    metric: str
    candidates: int
    level: float
    fits: tuple[Fit, ...]

    def rows(self) -> list[dict[str, Any]]:
        """The table: one row per fit."""
        return [
            {
                "y": one.y,
                "x": one.x,
                "n": one.n,
                "slope": one.slope,
                "low": one.low,
                "high": one.high,
                "r2": one.r2,
                "target": one.target,
                "predicted": one.predicted.value,
                "from": one.predicted.low,
                "to": one.predicted.high,
                "beyond data": one.beyond,
            }
            for one in self.fits
        ]

    def remarks(self) -> list[str]:
        """What should be known before the fits are believed."""
        return [line for one in self.fits for line in one.remarks()]


def scaling(
    paths: Sequence[Path], *, metric: str = "bpb", targets: Targets = TARGETS, everything: bool = False
) -> Scaling:
    """Fits the candidates of several frontiers, each a run's folder or its frontier.json.

    everything: all that were trained, as far as the lineage beside a frontier tells of them. InputError for files that
    cannot be read, a metric that no candidate has, and targets that are no positive numbers.
    """
    for name, value in targets._asdict().items():
        if value is not None and not (0.0 < value < math.inf):
            raise InputError(f"--target-{name.replace('_', '-')}: got {value:g}, expected a positive number")
    files = [path / "frontier.json" if path.is_dir() else path for path in paths]
    places = [file.resolve() for file in files]
    if again := [path for i, path in enumerate(paths) if places[i] in places[:i]]:
        raise InputError(f"{again[0]}: names a frontier once more, expected every one once")
    frontiers = [Frontier.read(file) for file in files]
    points = list[Point]()
    for file, frontier in zip(files, frontiers, strict=True):
        own = list(_of_frontier(frontier))
        known = {point.id for point in own}  # ids are a run's own: another's may be called alike
        rest = _of_lineage(Lineage.read(_lineage_beside(file))) if everything else ()
        points += [*own, *(point for point in rest if point.id not in known)]
    measured = sorted({name for point in points for name in point.values if _is_metric(name)})
    if metric not in measured:
        raise InputError(unknown("--metric", metric, measured))
    pairs = [(metric, "params"), (metric, "tokens"), (metric, "FLOPs"), ("throughput", "width x heads")]
    return Scaling(
        run=frontiers[0].run,
        runs=tuple(frontier.run for frontier in frontiers),
        metric=metric,
        candidates=len(points),
        level=LEVEL,
        fits=tuple(fitted(points, y, x, targets.of(x)) for y, x in pairs),
    )


def fitted(points: Sequence[Point], y: str, x: str, target: float | None) -> Fit:
    """One line, through the points that have both and are positive in both."""
    both = [(it.values[x], it.values[y]) for it in points if min(it.values.get(x, 0.0), it.values.get(y, 0.0)) > 0.0]
    xs, ys = [a for a, _ in both], [b for _, b in both]
    line: Line | None = log_line(xs, ys, LEVEL) if both else None
    if line is None:
        return Fit(y=y, x=x, n=len(both), target=target, points=tuple(both))
    least, most = min(xs), max(xs)
    beyond = None if target is None else max(1.0, target / most, least / target)
    return Fit(
        y=y,
        x=x,
        n=line.n,
        slope=line.slope,
        low=line.low,
        high=line.high,
        intercept=line.intercept,
        r2=line.r2,
        least=least,
        most=most,
        target=target,
        predicted=Interval(None, None, None) if target is None else extrapolated(line, xs, target, LEVEL),
        beyond=beyond,
        points=tuple(both),
    )


def _is_metric(name: str) -> bool:
    figure = find(name)
    return figure is not None and figure.sort == "metric"


def _lineage_beside(file: Path) -> Path:
    """The lineage that a frontier file belongs to: in its folder, or in that of its name."""
    places = [file.parent / "lineage.json", file.with_suffix("") / "lineage.json"]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise InputError(f"{file}: there is no {places[0]} beside it, which knows what else was trained")
    return found


def _of_frontier(frontier: Frontier) -> Iterator[Point]:
    for entry in frontier.candidates:
        found = {**entry.costs, **entry.metrics, **entry.timed}
        found |= _behind(entry.costs, entry.tokens.lineage)
        dim = (entry.blueprint.get("emb") or {}).get("dim")
        heads = [block["attn"]["heads"] for block in entry.blueprint.get("blocks", ()) if _has_heads(block)]
        if isinstance(dim, int) and heads:
            found["width x heads"] = dim * sum(heads) / len(heads)
        yield Point(entry.id, found)


def _has_heads(block: Mapping[str, Any]) -> bool:
    attn = block.get("attn")
    return isinstance(attn, Mapping) and isinstance(attn.get("heads"), int)


def _of_lineage(lineage: Lineage) -> Iterator[Point]:
    """Those that were trained to the end; the lineage does not tell their widths."""
    for node in lineage.nodes:
        if node.status is Status.TRAINED:
            found = {**node.costs, **node.metrics, **node.timed}
            yield Point(node.id, found | _behind(node.costs, node.tokens.lineage))


def _behind(costs: Mapping[str, float], tokens: int) -> dict[str, float]:
    """The tokens behind a candidate's weights, and the FLOPs that they would have taken in its own architecture."""
    found = {"tokens": float(tokens)}
    if "flops_per_token" in costs:
        found["FLOPs"] = TRAIN_FACTOR * costs["flops_per_token"] * tokens
    return found
