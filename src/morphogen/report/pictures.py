"""Pictures of evidence, as PNG: differences with their intervals. Plain data in; no torch."""

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from morphogen.report.growth import DPI
from morphogen.report.wording import number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: A picture has at most so many rows: more would be too long to look at.
MOST_ROWS = 120


class Bar(NamedTuple):
    """One difference. row: what it is of; group: which of several differences of that row."""

    row: str
    group: str
    value: float
    low: float | None
    high: float | None


def png(figure: "Figure") -> bytes:
    """A figure's bytes, which say that they are of ours."""
    out = io.BytesIO()
    figure.savefig(out, format="png", metadata={"Software": "morphogen"})
    return out.getvalue()


def forest(bars: Sequence[Bar], title: str, axis_label: str, better: str) -> bytes:
    """Differences with their intervals, a row each, groups in colours, zero as a line. better: which side is."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = list(dict.fromkeys(bar.row for bar in bars))[:MOST_ROWS]
    groups = list(dict.fromkeys(bar.group for bar in bars))
    place = {row: i for i, row in enumerate(rows)}
    figure = Figure(figsize=(9.0, 1.6 + 0.34 * max(1, len(rows))), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axis: Any = figure.subplots()
    for k, group in enumerate(groups):
        own = [bar for bar in bars if bar.group == group and bar.row in place]
        shift = 0.3 * (k - (len(groups) - 1) / 2)
        at = [place[bar.row] + shift for bar in own]
        axis.scatter([bar.value for bar in own], at, s=18, color=f"C{k}", label=group, zorder=3)
        ends = [(bar.low, bar.high, y) for bar, y in zip(own, at, strict=True) if bar.low is not None]
        axis.hlines([y for *_, y in ends], [e[0] for e in ends], [e[1] for e in ends], color=f"C{k}", linewidth=1.6)
    axis.axvline(0.0, color="0.3", linewidth=1.0)
    axis.set_yticks(range(len(rows)), rows, fontsize=8)
    axis.set_ylim(len(rows) - 0.4, -0.6)
    axis.set_xlabel(f"{axis_label}   ({better})")
    axis.set_title(title, fontsize=10)
    axis.grid(axis="x", alpha=0.25)
    if len(groups) > 1:
        axis.legend(fontsize=8)
    return png(figure)


def ablations(told: Mapping[str, Any]) -> bytes:
    """The picture of an ablation report, as plain data of its file."""
    applied = [one for one in told["ablations"] if one["applied"] and one["difference"] is not None]
    several = len({one["id"] for one in applied}) > 1
    bars = [
        Bar(
            f"{one['id']}: {one['ablation']}" if several else one["ablation"],
            {"inherited": "going on from its weights", "scratch": "from scratch"}[one["start"]],
            one["difference"],
            one["low"],
            one["high"],
        )
        for one in applied
    ]
    whose = "" if several or not applied else f" of {applied[0]['id']}"
    seeds, level = len(told["seeds"]), number(100 * told["level"])
    title = f"Ablations{whose}: {told['metric']} without less with\n{told['tokens']:,} tokens, {seeds} seeds, {level} %"
    side = "right" if told["direction"] == "min" else "left"
    return forest(bars, title, f"difference in {told['metric']}", f"to the {side}: worse without")
