"""What candidates grew by in training: a table of the events, and charts of size and loss, for a run's page."""

from collections.abc import Mapping
from typing import Any

from morphogen.candidate import GrowthEvent, Report, Size
from morphogen.report.charts import BLUE, DRAWABLE, GREY, RED, Figure, figure, text
from morphogen.report.tables import Row

#: A chart has the curves of at most so many candidates: those that grew most often.
CURVES = 12
#: A table has at most so many events: the last.
ROWS = 200


def growth_rows(reports: Mapping[str, Report]) -> list[Row]:
    """A row for every event, candidate by candidate."""
    rows: list[Row] = [_row(report.id, event) for report in reports.values() for event in report.growth]
    return rows[-ROWS:]


def _row(id: str, event: GrowthEvent) -> Row:
    return {
        "candidate": id,
        "step": event.own_steps,
        "rule": event.rule,
        "because": event.reason,
        "action": f"{event.action} (taken back)" if event.taken_back else event.action,
        "layers": _both(event.before.layers, event.after.layers),
        "dim": _both(event.before.dim, event.after.dim),
        "experts": _both(_experts(event.before), _experts(event.after)),
        "params": float(event.after.params),
        "loss before": event.loss,
        "loss after": event.loss_after,
        "exact": "yes" if event.exact else "no",
    }


def _both(before: int, after: int) -> str:
    return str(after) if before == after else f"{before} → {after}"


def _experts(size: Size) -> int:
    return sum(size.experts.values())


def growth_charts(reports: Mapping[str, Report]) -> dict[str, Figure | None]:
    """Title -> chart, over the training steps of each candidate that grew; none where none did."""
    grown = sorted((report for report in reports.values() if report.growth), key=lambda report: -len(report.growth))
    chosen = grown[:CURVES]
    if not chosen:
        return {}
    charts: dict[str, Figure | None] = {
        f"{name} of those that grew": figure([_curve(report, of) for report in chosen], "training steps", name)
        for name, of in (
            ("parameters", lambda size: size.params),
            ("layers", lambda size: size.layers),
            ("experts", _experts),
        )
        if any(of(event.before) != of(event.after) for report in chosen for event in report.growth)
    }
    return charts | {"loss on a held batch when they grew": _losses(chosen)}


def _curve(report: Report, of: Any) -> Figure:
    """One candidate's size over its steps, with a mark at each event."""
    first = report.growth[0]
    ends = [0, *(event.own_steps for event in report.growth), max(report.steps, report.growth[-1].own_steps)]
    values = [of(first.before), *(of(event.after) for event in report.growth), of(report.growth[-1].after)]
    told = [report.id, *(f"{report.id}: {event.action} ({event.reason})" for event in report.growth), report.id]
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": text(report.id),
        "x": ends,
        "y": values,
        "text": [text(each) for each in told],
        "hoverinfo": "text+y",
        "line": {"shape": "hv", "width": 1.6},
        "marker": {"size": 6},
    }


def _losses(reports: list[Report]) -> Figure | None:
    """Right before and right after every event."""
    found = [(report.id, event) for report in reports for event in report.growth if abs(event.loss_after) < DRAWABLE]
    if not found:
        return None

    def trace(name: str, color: str, values: list[float]) -> Figure:
        return {
            "type": "scatter",
            "mode": "markers",
            "name": name,
            "x": [event.own_steps for _, event in found],
            "y": values,
            "text": [text(f"{id}: {event.action}, {event.loss:.4f} to {event.loss_after:.4f}") for id, event in found],
            "hoverinfo": "text",
            "marker": {"color": color, "size": 8},
        }

    before = trace("before", GREY, [event.loss for _, event in found])
    exact = all(event.exact for _, event in found)
    after = trace("after", BLUE if exact else RED, [event.loss_after for _, event in found])
    return figure([before, after], "training steps", "nats a token")
