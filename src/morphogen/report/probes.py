"""What probes found of a run's frontier and root: with standard errors, beside what chance gives."""

import re
from collections.abc import Mapping, Sequence

from morphogen.candidate import Report, Status
from morphogen.figures import Figure as Meaning
from morphogen.figures import find
from morphogen.report.charts import BLUE, COLOURS, DRAWABLE, GREY, Figure, drawn, figure, text
from morphogen.report.shown import RunShown
from morphogen.report.tables import Row
from morphogen.report.wording import finite, number

#: A value nearer to chance than so many standard errors stands at chance.
_Z = 1.96
#: Of one probe in sequences of a length, where what has to be known stands at a depth, in per cent.
_DEEP = re.compile(r"acc_(.+)_len_([0-9]+)_depth_([0-9]+)")
#: So many of the frontier have their probes drawn; all stand in the table.
_DRAWN = 7
#: Colours of lengths.
_LENGTHS = COLOURS


def probed(run: RunShown) -> list[tuple[str, Meaning]]:
    """The figures that say what chance gives, of those that somebody has; those of one depth apart are for charts."""
    names = sorted({name for report in run.reports.values() for name in report.metrics})
    found = [(name, figure) for name in names if (figure := find(name)) is not None]
    return [(name, figure) for name, figure in found if figure.chance and not _DEEP.fullmatch(name)]


def probe_rows(run: RunShown) -> list[Row]:
    """A row for every probe's figure of the root and of everyone on the frontier."""
    rows: list[Row] = []
    for name, meaning in probed(run):
        for report in _shown(run):
            value = finite(report.value(name))
            if value is not None:
                error, chance = report.error(name), finite(report.value(meaning.chance_of(name)))
                rows.append(
                    {"figure": name, "candidate": report.id, "value": value, "±": error, "chance": chance}
                    | {"at chance": _at_chance(value, error, chance, meaning)}
                )
    return rows


def _shown(run: RunShown) -> list[Report]:
    """The root, then the frontier in order of age."""
    ids = [run.root, *(one.id for one in run.in_order if one.id in run.frontier and one.id != run.root)]
    return [run.reports[id] for id in ids if id in run.reports and run.reports[id].status is Status.TRAINED]


def _at_chance(value: float, error: float | None, chance: float | None, meaning: Meaning) -> str:
    if chance is None:
        return "-"
    better = value - chance if meaning.better != "min" else chance - value
    return "yes" if better <= _Z * (error or 0.0) else "no"


def probes_chart(run: RunShown) -> Figure | None:
    """Every probe of the root and of the youngest of the frontier with a standard error each way, and chance."""
    ids = [report.id for report in _shown(run)]
    drawn_ids = {*ids[:1], *ids[-_DRAWN:]}
    rows = [row for row in probe_rows(run) if abs(row["value"]) < DRAWABLE and row["candidate"] in drawn_ids]
    if not rows:
        return None
    places = [f"{row['figure']} · {row['candidate']}" for row in rows]
    spots = _points("value ± standard error", places, [row["value"] for row in rows], BLUE, "circle")
    errors = [drawn(row["±"] or 0.0) for row in rows]
    spots["error_x"] = {"type": "data", "array": errors, "color": BLUE, "thickness": 1.4, "width": 4}
    known = [(place, row["chance"]) for place, row in zip(places, rows, strict=True) if row["chance"] is not None]
    chance = _points("chance", [place for place, _ in known], [value for _, value in known], GREY, "line-ns-open")
    chart = figure([spots, chance], "", "")
    chart["layout"]["yaxis"] |= {"type": "category", "autorange": "reversed", "tickvals": [text(it) for it in places]}
    chart["layout"]["yaxis"]["ticktext"] = [text(_short(place)) for place in places]
    chart["layout"]["height"] = 120 + 19 * len(rows)
    return chart


def _short(place: str) -> str:
    """Its two ends, by which candidates are told apart, where it would leave a chart no room."""
    return place if len(place) <= 34 else f"{place[:21]}…{place[-12:]}"


def _points(name: str, places: Sequence[str], values: Sequence[float], colour: str, symbol: str) -> Figure:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": [drawn(value) for value in values],
        "y": [text(place) for place in places],
        "text": [text(f"{place}: {number(value)}") for place, value in zip(places, values, strict=True)],
        "hoverinfo": "text",
        "marker": {"color": colour, "size": 9, "symbol": symbol, "line": {"width": 2}},
    }


def depth_charts(run: RunShown) -> dict[str, Figure]:
    """Probe -> accuracy by depth, a line per length, of the root (dotted) and of the one on the frontier that answers
    best; with chance."""
    known = sorted({name for report in run.reports.values() for name in report.metrics})
    found = [(deep[1], int(deep[2]), int(deep[3]), name) for name in known if (deep := _DEEP.fullmatch(name))]
    charts = {}
    for probe in dict.fromkeys(probe for probe, *_ in found):
        places: dict[int, dict[int, str]] = {}
        for _, length, depth, name in sorted(one for one in found if one[0] == probe):
            places.setdefault(length, {})[depth] = name
        if traces := _depth_lines(run, probe, places):
            charts[f"{probe} by depth and length"] = figure(
                traces, "depth of what has to be known, per cent", "accuracy"
            )
    return charts


def _depth_lines(run: RunShown, probe: str, places: Mapping[int, Mapping[int, str]]) -> list[Figure]:
    """places: length -> depth -> figure."""
    shown = _shown(run)
    best = max(shown[1:], key=lambda report: finite(report.value(f"acc_{probe}")) or 0.0, default=None)
    traces: list[Figure] = []
    for report in (*shown[:1], *([best] if best is not None else [])):
        for number_, (length, names) in enumerate(places.items()):
            points = {
                depth: value for depth, name in names.items() if (value := finite(report.value(name))) is not None
            }
            if points:
                told = f"{report.id}, length {length}"
                line = _points(
                    told, [told] * len(points), list(points.values()), _LENGTHS[number_ % len(_LENGTHS)], "circle"
                )
                line |= {"x": list(points), "y": line["x"], "mode": "lines+markers"}
                errors = [drawn(report.error(names[depth]) or 0.0) for depth in points]
                line["error_y"] = {"type": "data", "array": errors, "thickness": 1.0, "width": 3}
                line["line"] = {"dash": "dot" if report is shown[0] else "solid", "color": line["marker"]["color"]}
                traces.append(line)
    chance = next((value for one in shown if (value := finite(one.value(f"chance_{probe}"))) is not None), None)
    if traces and chance is not None:
        depths = sorted({depth for names in places.values() for depth in names})
        line = _points("chance", ["chance"] * len(depths), [chance] * len(depths), GREY, "circle")
        traces.append(line | {"x": depths, "y": line["x"], "mode": "lines", "line": {"dash": "dash", "color": GREY}})
    return traces
