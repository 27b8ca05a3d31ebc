"""`report.html`: a run on one page that needs nothing outside itself. The same data gives the same bytes."""

import math
from collections.abc import Collection, Mapping, Sequence
from itertools import combinations
from typing import Literal

from morphogen.candidate import Candidate, Report, Status
from morphogen.escape import xml
from morphogen.report.subway import lineage_svg
from morphogen.report.tables import Row, cell, frontier_rows, headers, operator_rows, reason_rows
from morphogen.report.wording import number, story

PAGE_STYLE = """
:root{color-scheme:light dark}
body{margin:0 auto;max-width:1240px;padding:28px 24px 60px;font:14px/1.5 "Helvetica Neue",Helvetica,Arial,sans-serif;
background:#f5f6f4;color:#22272e}
h1{font-size:27px;margin:0 0 4px}h2{font-size:17px;margin:34px 0 10px}.note{color:#6a737d;margin:0 0 8px}
.card{background:#fcfcfa;border:1px solid #e2e5e0;border-radius:10px;padding:14px 16px;overflow:auto}
.row{display:flex;flex-wrap:wrap;gap:16px}table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
.t{text-align:left}th{font-size:11.5px;color:#6a737d;border-bottom:1px solid #d5d9d3}th,td{padding:5px 10px 5px 0}
td{border-bottom:1px solid #eceee9;vertical-align:top}.n{text-align:right}
dl{display:grid;grid-template-columns:max-content 1fr;gap:3px 18px;margin:0}dt{color:#6a737d}dd{margin:0}
.chart text{font-size:11px;fill:#6a737d}.chart .axis{stroke:#c9cec6;fill:none}.chart .grid{stroke:#e8ebe5}
.chart .line{fill:none;stroke:#1f78d1;stroke-width:2.4;stroke-linejoin:round}.chart .dot{fill:#1f78d1}
.chart .front{fill:#e4453a}.chart .step{fill:none;stroke:#e4453a;stroke-width:1.4;stroke-opacity:.55}
.chart .other{fill:#9aa4af;fill-opacity:.55}
@media (prefers-color-scheme:dark){body{background:#0e1115;color:#e6edf3}.card{background:#14181d;border-color:#262c34}
th{border-color:#39414b}td{border-color:#20262d}th,dt,.note,.chart text{color:#9aa4af;fill:#9aa4af}
.chart .axis{stroke:#39414b}.chart .grid{stroke:#20262d}}
"""

#: Numbers beyond it, which no axis shows beside others, are left out of charts.
DRAWABLE = 1e100
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 560.0, 300.0, 62.0, 18.0, 14.0, 42.0


def report_html(
    run: str,
    candidates: Mapping[str, Candidate],
    reports: Mapping[str, Report],
    frontier: Collection[str],
    objectives: Mapping[str, Literal["min", "max"]],
    hypervolumes: Sequence[float],
    facts: Mapping[str, str],
) -> str:
    """The page: facts, frontier table, hypervolume per generation, Pareto scatters, lineage, operators, the lost ones.

    hypervolumes: one per closed generation, from generation 0. facts: what else to say of the run, name to text.
    """
    counted = {str(status): sum(report.status is status for report in reports.values()) for status in Status}
    all_facts = {
        **facts,
        "candidates": str(len(candidates)) + "".join(f", {n} {name}" for name, n in counted.items() if n),
        "training tokens": number(sum(report.tokens.own for report in reports.values())),
        "training FLOPs": number(sum(report.flops for report in reports.values())),
    }
    facts_html = "".join(f"<dt>{xml(name)}</dt><dd>{xml(text)}</dd>" for name, text in all_facts.items())
    charts = [_card("Hypervolume", _hypervolume_chart(hypervolumes))] if hypervolumes else []
    charts += [
        _card(f"{x} against {y}", _scatter(x, y, reports, candidates, frontier, objectives))
        for x, y in list(combinations(objectives, 2))[:3]
    ]
    picture = lineage_svg(run, candidates, reports, frontier, objectives)
    lost = reason_rows(candidates, reports)
    parts = [
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"/>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>',
        f"<title>{xml(run)} · morphogen</title><style>{PAGE_STYLE}</style></head><body>",
        f'<h1>{xml(run)}</h1><p class="note">A morphogen run</p><div class="card"><dl>{facts_html}</dl></div>',
        f"<h2>Frontier</h2>{_table(frontier_rows(candidates, reports, frontier, objectives))}",
        f'<h2>Progress</h2><div class="row">{"".join(charts)}</div>',
        f'<h2>Lineage</h2><p class="note">One line per frontier candidate, a station per edit. Hover for what an edit '
        f'changed.</p><div class="card" style="padding:0">{picture}</div>',
        f"<h2>Operators</h2>{_table(operator_rows(candidates, reports, frontier))}",
        f"<h2>Rejected, gated and failed</h2>{_table(lost)}",
        "</body></html>\n",
    ]
    return "\n".join(parts)


def _card(title: str, body: str) -> str:
    return f'<div class="card"><b>{xml(title)}</b><br/>{body}</div>'


def _table(rows: Sequence[Row]) -> str:
    if not rows:
        return '<div class="card">none</div>'
    names = headers(rows)
    right = {name for name in names if all(not isinstance(row[name], str | bool) for row in rows)}
    head = "".join(f'<th class="{"n" if name in right else "t"}">{xml(name)}</th>' for name in names)
    body = ""
    for row in rows:
        cells = (f'<td class="{"n" if name in right else "t"}">{xml(cell(row[name]))}</td>' for name in names)
        body += f"<tr>{''.join(cells)}</tr>\n"
    return f'<div class="card"><table><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table></div>'


class _Axes:
    """Linear axes with round ticks around the values given."""

    def __init__(self, xs: Sequence[float], ys: Sequence[float], whole_x: bool = False) -> None:
        self.x_ticks, self.y_ticks = _ticks(xs, whole_x), _ticks(ys)

    def x(self, value: float) -> float:
        low, high = self.x_ticks[0], self.x_ticks[-1]
        return LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        low, high = self.y_ticks[0], self.y_ticks[-1]
        return HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    def draw(self, x_name: str, y_name: str) -> list[str]:
        floor, parts = HEIGHT - BOTTOM, []
        for tick in self.y_ticks:
            y = self.y(tick)
            parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
            parts.append(f'<text x="{LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">{number(tick)}</text>')
        for tick in self.x_ticks:
            parts.append(f'<text x="{self.x(tick):.1f}" y="{floor + 16}" text-anchor="middle">{number(tick)}</text>')
        parts.append(f'<path class="axis" d="M{LEFT} {TOP}V{floor}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 8}" text-anchor="end">{xml(x_name)}</text>')
        parts.append(f'<text x="{LEFT + 6}" y="{TOP + 10}">{xml(y_name)}</text>')
        return parts


def _drawable(value: float) -> float:
    """`value`, or the end of what axes can hold: distances between such numbers are floats that can be divided by."""
    return 0.0 if abs(value) < 1e-290 else min(max(value, -1e300), 1e300)


def _ticks(values: Sequence[float], whole: bool = False) -> list[float]:
    """Four to eight round numbers that enclose the values."""
    low, high = min(values), max(values)
    span = max(high - low, 1e-9 * max(abs(low), abs(high))) if high > low else abs(high) or 1.0  # ticks have 12 digits
    step = 10.0 ** math.floor(math.log10(span / 4))
    step *= next(factor for factor in (1, 2, 5, 10) if span / (step * factor) <= 6)
    if whole:
        step = max(1.0, math.ceil(step))
    first = math.floor(low / step + 1e-9)
    last = max(first + 1, math.ceil(high / step - 1e-9))
    return [float(f"{number_ * step:.12g}") for number_ in range(first, last + 1)]


def _chart(parts: Sequence[str], about: str) -> str:
    size = f'viewBox="0 0 {WIDTH:.0f} {HEIGHT:.0f}" width="{WIDTH:.0f}" height="{HEIGHT:.0f}"'
    return f'<svg class="chart" role="img" aria-label="{xml(about)}" {size}>{"".join(parts)}</svg>'


def _hypervolume_chart(volumes: Sequence[float]) -> str:
    shown = {generation: volume for generation, volume in enumerate(volumes) if abs(volume) < DRAWABLE}
    axes = _Axes([0.0, float(max(1, len(volumes) - 1))], [0.0, *shown.values()], whole_x=True)
    points = {generation: (axes.x(generation), axes.y(volume)) for generation, volume in shown.items()}
    parts = axes.draw("generation", "hypervolume")
    parts.append('<polyline class="line" points="' + " ".join(f"{x:.1f},{y:.1f}" for x, y in points.values()) + '"/>')
    for generation, (x, y) in points.items():
        tip = f"generation {generation}: {volumes[generation]:.6g}"
        parts.append(f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="4"><title>{tip}</title></circle>')
    return _chart(parts, "hypervolume per generation")


def _scatter(
    x_name: str,
    y_name: str,
    reports: Mapping[str, Report],
    candidates: Mapping[str, Candidate],
    frontier: Collection[str],
    objectives: Mapping[str, Literal["min", "max"]],
) -> str:
    """Trained candidates by two objectives; the frontier in red, joined in order of x when there are only two."""
    spots = []
    for id in sorted(candidates, key=lambda id: (id in frontier, candidates[id].index)):
        report = reports.get(id)
        if report is not None and report.status is Status.TRAINED:
            x, y = report.value(x_name), report.value(y_name)
            if x is not None and y is not None and max(abs(x), abs(y)) < DRAWABLE:
                spots.append((id, _drawable(x), _drawable(y)))
    if not spots:
        return "nothing measured"
    axes = _Axes([x for _, x, _ in spots], [y for _, _, y in spots])
    parts = axes.draw(*(f"{name} {'↓' if objectives[name] == 'min' else '↑'}" for name in (x_name, y_name)))
    best = sorted((x, y) for id, x, y in spots if id in frontier)
    if len(objectives) == 2 and len(best) > 1:
        joined = " ".join(f"{axes.x(x):.1f},{axes.y(y):.1f}" for x, y in best)
        parts.append(f'<polyline class="step" points="{joined}"/>')
    for id, x, y in spots:
        look, radius = ("front", 5.0) if id in frontier else ("other", 3.6)
        tip = xml(story(candidates[id], reports[id]))
        place = f'cx="{axes.x(x):.1f}" cy="{axes.y(y):.1f}" r="{radius}"'
        parts.append(f'<circle class="{look}" {place}><title>{tip}</title></circle>')
    return _chart(parts, f"{x_name} against {y_name}")
