"""Charts of a page that follow from its runs as they are, as data for Plotly: plain dictionaries that the page draws.

Charts in which a reader chooses what to see are made by the page's own script. Building these imports nothing, so that
a run can write its page after every generation.
"""

import math
from collections.abc import Mapping, Sequence
from html import escape
from statistics import fmean
from typing import Any

from morphogen.candidate import Report, Status
from morphogen.escape import harmless
from morphogen.report.operators import wilson
from morphogen.report.shown import RunShown
from morphogen.report.tables import Row
from morphogen.report.wording import number

#: What Plotly calls a figure: `{"data": [traces], "layout": {...}}`.
Figure = dict[str, Any]

#: Numbers beyond it, which no axis shows beside others, are left out of charts.
DRAWABLE = 1e100
BLUE, RED, GREY, GREEN = "#1f78d1", "#e4453a", "#9aa4af", "#22a155"
#: Of runs, one after the other.
COLOURS = (BLUE, RED, GREEN, "#f0a202", "#8e4ec6", "#00a0b0", "#e26bb0", "#a0683a")
#: Of text and lines that read on a light page and on a dark one.
_INK, _GRID = "#7d8590", "rgba(125,133,144,0.22)"
#: So many operators have a bar: those used most.
_OPERATORS = 30


def hypervolume_chart(runs: Sequence[RunShown]) -> Figure | None:
    """The hypervolume that each run's frontier has after each generation, from generation 0."""
    traces = []
    for position, run in enumerate(runs):
        shown = {k: drawn(volume) for k, volume in enumerate(run.hypervolumes) if abs(volume) < DRAWABLE}
        if shown:
            tips = [f"{text(run.run)}, generation {k}: {run.hypervolumes[k]:.6g}" for k in shown]
            colour = COLOURS[position % len(COLOURS)]
            traces.append(_line(run.run, list(shown), list(shown.values()), tips, colour, "lines+markers"))
    if not traces:
        return None
    chart = figure(traces, "generation", "hypervolume")
    chart["layout"]["yaxis"]["rangemode"] = "tozero"
    if max(len(run.hypervolumes) for run in runs) <= 12:
        chart["layout"]["xaxis"]["dtick"] = 1
    return chart


def _line(name: str, xs: list[Any], ys: list[float], tips: list[str], colour: str, mode: str) -> Figure:
    return {
        "type": "scatter",
        "mode": mode,
        "name": text(name),
        "x": xs,
        "y": ys,
        "text": tips,
        "hoverinfo": "text",
        "line": {"color": colour, "width": 2.2},
        "marker": {"color": colour, "size": 7},
    }


def tokens_chart(runs: Sequence[RunShown], name: str = "bpb") -> Figure | None:
    """Held-out loss against the training tokens of the lineage: every trained candidate, and per run a line through the
    best that so many tokens gave, and one through the root without edits, where that was trained on."""
    traces = []
    for position, run in enumerate(runs):
        colour = COLOURS[position % len(COLOURS)]
        of = f" of {run.run}" if len(runs) > 1 else ""
        spots = {id: spot for id, report in run.reports.items() if (spot := _spot(report, name)) is not None}
        if not spots:
            continue
        order = sorted(spots, key=lambda id: (spots[id], run.candidates[id].index))
        if not run.unedited:
            xs, ys = (list(axis) for axis in zip(*(spots[id] for id in order), strict=True))
            tips = [text(f"{id}: {name} {number(spots[id][1])}, {number(spots[id][0])} tokens") for id in order]
            dots = {
                **_line(f"trained{of}", xs, ys, tips, colour, "markers"),
                "customdata": [[position, i] for i in order],
            }
            dots["marker"] = {"color": colour if len(runs) > 1 else GREY, "size": 6, "opacity": 0.5}
            traces.append(dots)
            traces.append(_best_line(f"best{of}", [spots[id] for id in order], colour))
        if control := _control(run, name):
            xs, ys = (list(axis) for axis in zip(*control, strict=True))
            tips = [f"without edits: {name} {number(y)}, {number(x)} tokens" for x, y in control]
            line = _line(f"without edits{of}", xs, ys, tips, colour if len(runs) > 1 else _INK, "lines+markers")
            line["line"] |= {"dash": "dot" if run.unedited else "dash"}
            traces.append(line | {"marker": {"color": line["line"]["color"], "size": 8, "symbol": "diamond-open"}})
    return figure(traces, "training tokens of the lineage", name) if traces else None


def _spot(report: Report, name: str) -> tuple[float, float] | None:
    value = report.value(name) if report.status is Status.TRAINED else None
    if value is None or not abs(value) < DRAWABLE:
        return None
    return float(report.tokens.lineage), drawn(value)


def _best_line(name: str, spots: list[tuple[float, float]], colour: str) -> Figure:
    """The least value among those with at most so many tokens, in steps."""
    best: list[tuple[float, float]] = []
    for tokens, value in spots:
        if not best or value < best[-1][1]:
            best.append((tokens, value))
    best.append((spots[-1][0], best[-1][1]))
    xs, ys = (list(axis) for axis in zip(*best, strict=True))
    line = _line(name, xs, ys, [f"best so far {number(y)}, {number(x)} tokens" for x, y in best], colour, "lines")
    line["line"] |= {"shape": "hv"}
    return line


def _control(run: RunShown, name: str) -> list[tuple[float, float]]:
    """The root and what trains it on without edits, in the run and beside it: by tokens the mean. Empty where there is
    the root alone."""
    found: dict[float, list[float]] = {}
    plain: set[str] = set()
    for candidate in run.in_order:
        if not candidate.edits and all(parent in plain for parent in candidate.parents):
            plain.add(candidate.id)
    reports = [report for id, report in run.reports.items() if id in plain]
    for spot in (_spot(report, name) for report in (*reports, *run.controls)):
        if spot is not None:
            found.setdefault(spot[0], []).append(spot[1])
    return sorted((tokens, fmean(values)) for tokens, values in found.items()) if len(found) > 1 else []


def operators_chart(rows: Sequence[Row]) -> Figure | None:
    """How often children of an operator survived, with 95 % intervals; those used most."""
    used = sorted((row for row in rows if row["trained"]), key=lambda row: (-row["trained"], row["operator"]))
    used = used[:_OPERATORS]
    if not used:
        return None
    parts = [row["survived"] / row["trained"] for row in used]
    ends = [wilson(row["survived"], row["trained"]) for row in used]
    bars = {
        "type": "scatter",
        "mode": "markers",
        "x": parts,
        "y": [text(row["operator"]) for row in used],
        "text": [text(f"{row['operator']}: {row['survived']} of {row['trained']}, {row['share']}") for row in used],
        "hoverinfo": "text",
        "marker": {"color": BLUE, "size": 8},
        "error_x": {
            "type": "data",
            "symmetric": False,
            "array": [high - part for part, (_, high) in zip(parts, ends, strict=True)],
            "arrayminus": [part - low for part, (low, _) in zip(parts, ends, strict=True)],
            "color": BLUE,
            "thickness": 1.4,
            "width": 4,
        },
    }
    chart = figure([bars], "share that survived, 95 %", "")
    chart["layout"]["xaxis"] |= {"range": [-0.02, 1.02]}
    chart["layout"]["yaxis"] |= {"autorange": "reversed", "type": "category"}
    chart["layout"]["height"] = 110 + 19 * len(used)
    return chart


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
            "height": 340,
            "hovermode": "closest",
            "showlegend": len(traces) > 1,
            "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
            "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": _INK},
        },
    }


def text(words: str) -> str:
    """Text as Plotly shows it, which reads tags and entities in it."""
    return escape(harmless(words), quote=False)


def drawn(value: float) -> float:
    """`value`, with those that are nothing beside others as 0."""
    return 0.0 if abs(value) < 1e-290 else value


def plain_number(value: Any) -> Any:
    """A number as a page holds it: to seven digits, and None where no axis shows it."""
    if isinstance(value, int):
        return value if abs(value) < 2**53 else float(f"{value:.7g}")
    if not math.isfinite(value) or abs(value) >= DRAWABLE:
        return None
    return int(value) if value.is_integer() and abs(value) < 2**53 else float(f"{drawn(value):.7g}")


def cleaned(data: Any) -> Any:
    """Plain data, with every text in it harmless."""
    if isinstance(data, str):
        return harmless(data)
    if isinstance(data, int | float | None):
        return data
    if isinstance(data, Mapping):
        return {harmless(str(name)): cleaned(value) for name, value in data.items()}
    return [cleaned(item) for item in data]
