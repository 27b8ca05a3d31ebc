"""Pictures of evidence, as PNG: differences with their intervals. Plain data in; no torch."""

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from morphogen.report.wording import number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Figures are drawn at this many dots an inch, whoever's settings say otherwise.
DPI = 110
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

    every = list(dict.fromkeys(bar.row for bar in bars))
    rows = every[:MOST_ROWS]
    title += f"\nthe first {MOST_ROWS} of {len(every)}" if len(every) > MOST_ROWS else ""
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


def scaling(told: Mapping[str, Any]) -> bytes:
    """The picture of a scaling fit, as plain data of its file: points, lines, and targets with their intervals."""
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    fits = told["fits"]
    figure = Figure(figsize=(9.0, 6.4), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    for axis, fit in zip(figure.subplots(2, 2).ravel(), fits, strict=False):
        axis.set(xlabel=fit["x"], ylabel=fit["y"], xscale="log", yscale="log")
        axis.grid(alpha=0.25, which="both")
        axis.scatter(*zip(*fit["points"], strict=True), s=16, color="C0") if fit["points"] else None
        if fit["slope"] is None:
            axis.set_title("too few points", fontsize=9)
            continue
        ends = "" if fit["low"] is None else f" ({fit['low']:.3g} to {fit['high']:.3g})"
        axis.set_title(f"slope {fit['slope']:.3g}{ends}, {fit['n']} points", fontsize=9)
        far = fit["target"] or fit["most"]
        x = np.geomspace(min(fit["least"], far), max(fit["most"], far), 50)
        axis.plot(x, np.exp(fit["intercept"]) * x ** fit["slope"], color="C1", linewidth=1.2)
        axis.axvspan(fit["least"], fit["most"], color="0.5", alpha=0.12, label="the data")
        if fit["target"] is not None:
            value, low, high = fit["predicted"]
            bars = None if low is None else [[value - low], [high - value]]
            axis.errorbar([fit["target"]], [value], yerr=bars, fmt="D", color="C3", markersize=5, label="target")
        axis.legend(fontsize=7)
    figure.suptitle(f"{told['candidates']} candidates of {len(told['runs'])} frontiers", fontsize=10)
    return png(figure)
