"""What probes found of a run's frontier and root: with standard errors, beside what chance gives."""

from collections.abc import Sequence

from morphogen.candidate import Report, Status
from morphogen.figures import Figure as Meaning
from morphogen.figures import find
from morphogen.report.charts import BLUE, GREY, Figure, drawn, figure, text
from morphogen.report.shown import RunShown
from morphogen.report.tables import Row
from morphogen.report.wording import finite, number

#: A value nearer to chance than so many standard errors stands at chance.
_Z = 1.96


def probed(run: RunShown) -> list[tuple[str, Meaning]]:
    """The figures that say what chance gives, of those that somebody has."""
    names = sorted({name for report in run.reports.values() for name in report.metrics})
    found = [(name, figure) for name in names if (figure := find(name)) is not None]
    return [(name, figure) for name, figure in found if figure.chance]


def probe_rows(run: RunShown) -> list[Row]:
    """A row for every probe's figure of the root and of everyone on the frontier."""
    rows: list[Row] = []
    for name, meaning in probed(run):
        for report in _shown(run):
            value = finite(report.value(name))
            if value is not None:
                error, chance = report.error(name), _chance(report, meaning, name)
                rows.append(
                    {"figure": name, "candidate": report.id, "value": value, "±": error, "chance": chance}
                    | {"at chance": _at_chance(value, error, chance, meaning)}
                )
    return rows


def _shown(run: RunShown) -> list[Report]:
    """The root, then the frontier in order of age."""
    ids = [run.root, *(one.id for one in run.in_order if one.id in run.frontier and one.id != run.root)]
    return [run.reports[id] for id in ids if id in run.reports and run.reports[id].status is Status.TRAINED]


def _chance(report: Report, meaning: Meaning, name: str) -> float | None:
    value: float | None = finite(report.value(meaning.chance_of(name)))
    return value


def _at_chance(value: float, error: float | None, chance: float | None, meaning: Meaning) -> str:
    if chance is None:
        return "-"
    better = value - chance if meaning.better != "min" else chance - value
    return "yes" if better <= _Z * (error or 0.0) else "no"


def probes_chart(run: RunShown) -> Figure | None:
    """Every probe of the root and of the frontier with a standard error each way, and chance."""
    rows = [row for row in probe_rows(run) if abs(row["value"]) < 1e100]
    if not rows:
        return None
    places = [f"{row['figure']} · {row['candidate']}" for row in rows]
    spots = _points("value ± standard error", places, [row["value"] for row in rows], BLUE, "circle")
    errors = [drawn(row["±"] or 0.0) for row in rows]
    spots["error_x"] = {"type": "data", "array": errors, "color": BLUE, "thickness": 1.4, "width": 4}
    known = [(place, row["chance"]) for place, row in zip(places, rows, strict=True) if row["chance"] is not None]
    chance = _points("chance", [place for place, _ in known], [value for _, value in known], GREY, "line-ns-open")
    chart = figure([spots, chance], "", "")
    chart["layout"]["yaxis"] |= {"type": "category", "autorange": "reversed"}
    chart["layout"]["height"] = 120 + 19 * len(rows)
    return chart


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
