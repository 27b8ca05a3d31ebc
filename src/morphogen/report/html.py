"""`report.html`: a run on one page that needs nothing outside itself. The same data gives the same bytes.

The page is a template (`page/report.html`); what it shows is put together here. It holds Plotly's script, so that
charts can be read off and zoomed into without a network, and forbids its reader's browser everything else.
"""

import base64
import hashlib
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from morphogen.against_root import NOT_MEASURED, AgainstRoot
from morphogen.candidate import Candidate, Report, Status
from morphogen.escape import harmless
from morphogen.report.charts import Figure, hypervolume_chart, objective_charts
from morphogen.report.grown import growth_charts, growth_rows
from morphogen.report.subway import lineage_svg
from morphogen.report.tables import Row, cell, frontier_rows, headers, is_numeric, operator_rows, reason_rows
from morphogen.report.wording import number, verdict

if TYPE_CHECKING:
    from jinja2 import Template


class Shown(NamedTuple):
    """A table as the template takes it: its columns, whether each holds numbers, and its rows in words."""

    names: list[str]
    right: list[bool]
    rows: list[list[str]]


def report_html(
    run: str,
    candidates: Mapping[str, Candidate],
    reports: Mapping[str, Report],
    frontier: Collection[str],
    objectives: Mapping[str, Literal["min", "max"]],
    hypervolumes: Sequence[float],
    facts: Mapping[str, str],
    against_root: AgainstRoot = NOT_MEASURED,
) -> str:
    """The page: facts, frontier table, hypervolume per generation, Pareto scatters, lineage, operators, the lost ones.

    Args:
        run: The run's name.
        candidates: All that were ever asked for, by id.
        reports: What was measured of them, by id.
        frontier: Ids of those on the frontier.
        objectives: What the search is for, and which way.
        hypervolumes: One per closed generation, from generation 0.
        facts: What else to say of the run, name to text.
        against_root: What repeats on other seeds found of the frontier.

    Returns:
        HTML that refers to nothing outside itself.
    """
    from markupsafe import Markup

    counted = {str(status): sum(report.status is status for report in reports.values()) for status in Status}
    told = {
        **facts,
        "candidates": str(len(candidates)) + "".join(f", {n} {name}" for name, n in counted.items() if n),
        "training tokens": number(sum(report.tokens.own for report in reports.values())),
        "training FLOPs": number(sum(report.flops for report in reports.values())),
    }
    charts: dict[str, Figure | None] = {}
    if hypervolumes:
        charts["Hypervolume"] = hypervolume_chart(hypervolumes)
    charts |= objective_charts(candidates, reports, frontier, objectives) | growth_charts(reports)
    return _template().render(
        run=run,
        facts=told,
        charts=charts,
        verdict=verdict(against_root, reports, objectives),
        frontier=_shown(frontier_rows(candidates, reports, frontier, objectives, against_root)),
        lineage=Markup(lineage_svg(run, candidates, reports, frontier, objectives)),
        growth=_shown(growth_rows(reports)),
        operators=_shown(operator_rows(candidates, reports, frontier)),
        lost=_shown(reason_rows(candidates, reports)),
        **_assets(),
    )


def _shown(rows: Sequence[Row]) -> Shown:
    names = headers(rows)
    right = [is_numeric(rows, name) for name in names]
    return Shown(names, right, [[cell(row.get(name)) for name in names] for row in rows])


@cache
def _template() -> "Template":
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("morphogen.report", "page"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda value: harmless(value) if type(value) is str else value,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html")


@cache
def _assets() -> dict[str, Any]:
    """Style and scripts of every page, and the hashes by which a browser is to know the scripts: it runs no others."""
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    page = resources.files("morphogen.report") / "page"
    scripts = [get_plotlyjs(), (page / "draw.js").read_text(encoding="utf-8")]
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    return {
        "style": Markup((page / "style.css").read_text(encoding="utf-8")),
        "scripts": [Markup(script) for script in scripts],
        "hashes": hashes,
    }
