"""The charts of a run's page, as data for Plotly: plain dictionaries that the page's own script draws.

Building them imports nothing, so that a run can write its page after every generation.
"""

from collections.abc import Collection, Mapping, Sequence
from html import escape
from itertools import combinations
from typing import Any, Literal

from morphogen.candidate import Candidate, Report, Status
from morphogen.escape import harmless
from morphogen.report.wording import edits_short, number, shorten

Objectives = Mapping[str, Literal["min", "max"]]
#: What Plotly calls a figure: `{"data": [traces], "layout": {...}}`.
Figure = dict[str, Any]

#: Numbers beyond it, which no axis shows beside others, are left out of charts.
DRAWABLE = 1e100
#: So many pairs of objectives have a chart each.
PAIRS = 3
BLUE, RED, GREY = "#1f78d1", "#e4453a", "#9aa4af"
#: Of text and lines that read on a light page and on a dark one.
_INK, _GRID = "#7d8590", "rgba(125,133,144,0.22)"
#: Of edits in a tooltip.
_EDITS = 90


def hypervolume_chart(volumes: Sequence[float]) -> Figure:
    """The hypervolume that the frontier has after each generation, from generation 0."""
    shown = {generation: _drawn(volume) for generation, volume in enumerate(volumes) if abs(volume) < DRAWABLE}
    line = {
        "type": "scatter",
        "mode": "lines+markers",
        "x": list(shown),
        "y": list(shown.values()),
        "text": [f"generation {generation}: {volumes[generation]:.6g}" for generation in shown],
        "hoverinfo": "text",
        "line": {"color": BLUE, "width": 2.4},
        "marker": {"color": BLUE, "size": 8},
    }
    drawn = figure([line], "generation", "hypervolume")
    drawn["layout"]["yaxis"]["rangemode"] = "tozero"
    if len(volumes) <= 12:
        drawn["layout"]["xaxis"]["dtick"] = 1
    return drawn


def objective_charts(
    candidates: Mapping[str, Candidate],
    reports: Mapping[str, Report],
    frontier: Collection[str],
    objectives: Objectives,
) -> dict[str, Figure | None]:
    """What was trained, by two objectives at a time: title -> chart; None where nothing was measured."""
    return {
        f"{x} against {y}": _scatter((x, y), candidates, reports, frontier, objectives)
        for x, y in list(combinations(objectives, 2))[:PAIRS]
    }


def _scatter(
    axes: tuple[str, str],
    candidates: Mapping[str, Candidate],
    reports: Mapping[str, Report],
    frontier: Collection[str],
    objectives: Objectives,
) -> Figure | None:
    """The frontier in red above the others, joined in order of x where there are no more than these two objectives."""
    spots: dict[str, tuple[float, float]] = {}
    for id in sorted(candidates, key=lambda id: candidates[id].index):
        report = reports.get(id)
        if report is not None and report.status is Status.TRAINED:
            x, y = (report.value(name) for name in axes)
            if x is not None and y is not None and abs(x) < DRAWABLE and abs(y) < DRAWABLE:
                spots[id] = (_drawn(x), _drawn(y))
    if not spots:
        return None
    best = sorted((id for id in spots if id in frontier), key=lambda id: (spots[id], id))
    others = [id for id in spots if id not in frontier]

    def trace(ids: Sequence[str], name: str, color: str, size: int) -> Figure:
        return {
            "type": "scatter",
            "mode": "lines+markers" if ids is best and len(objectives) == 2 else "markers",
            "name": name,
            "x": [spots[id][0] for id in ids],
            "y": [spots[id][1] for id in ids],
            "text": [_tip(candidates[id], reports[id], objectives) for id in ids],
            "hoverinfo": "text",
            "line": {"color": color, "width": 1.4},
            "marker": {"color": color, "size": size, "opacity": 0.6 if ids is others else 1.0},
            **({} if ids is others else _error_bars(axes, [reports[id] for id in ids], color)),
        }

    titles = [f"{name} {'↓' if objectives[name] == 'min' else '↑'}" for name in axes]
    traces = [trace(others, "trained", GREY, 7), trace(best, "frontier", RED, 10)]
    return figure([one for one in traces if one["x"]], *titles)


def _error_bars(axes: tuple[str, str], reports: Sequence[Report], color: str) -> Figure:
    """Of the figures that have a standard error, one of it each way."""
    bars = {}
    for side, name in zip(("error_x", "error_y"), axes, strict=True):
        errors = [report.error(name) for report in reports]
        if any(error is not None for error in errors):
            array = [_drawn(error or 0.0) for error in errors]
            bars[side] = {"type": "data", "array": array, "color": color, "thickness": 1.2, "width": 3}
    return bars


def figure(traces: list[Figure], x_title: str, y_title: str) -> Figure:
    """Traces on two axes, as every chart of a page looks."""
    axis = {"gridcolor": _GRID, "linecolor": _INK, "zeroline": False, "exponentformat": "SI", "automargin": True}
    return {
        "data": traces,
        "layout": {
            "xaxis": {**axis, "title": {"text": text(x_title)}},
            "yaxis": {**axis, "title": {"text": text(y_title)}},
            "font": {"color": _INK, "size": 12},
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "margin": {"l": 56, "r": 16, "t": 30, "b": 48},
            "height": 320,
            "hovermode": "closest",
            "showlegend": len(traces) > 1,
            "legend": {"orientation": "h", "x": 0, "y": 1.12},
        },
    }


def _tip(candidate: Candidate, report: Report, objectives: Objectives) -> str:
    """Which candidate a spot is, what made it, and what it was measured at."""
    values = ", ".join(f"{name} {number(report.value(name))}" for name in objectives)
    lines = [f"{candidate.id} · generation {candidate.generation}", shorten(edits_short(candidate), _EDITS), values]
    return "<br>".join(map(text, lines))


def text(words: str) -> str:
    """Text as Plotly shows it, which reads tags and entities in it."""
    return escape(harmless(words), quote=False)


def _drawn(value: float) -> float:
    """`value`, with those that are nothing beside others as 0."""
    return 0.0 if abs(value) < 1e-290 else value
