"""`report.html`: runs on one page that needs nothing outside itself. The same data gives the same bytes.

The page is a template (`page/report.html`); what it shows is put together here. It holds Plotly's script, so that
charts can be read off and zoomed into without a network, and forbids its reader's browser everything else.
"""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any, NamedTuple

from morphogen.candidate import Status
from morphogen.escape import harmless
from morphogen.report.charts import Figure, cleaned, hypervolume_chart, operators_chart, tokens_chart
from morphogen.report.grown import growth_charts, growth_rows
from morphogen.report.held import held
from morphogen.report.meanings import meaning_rows, meanings, names
from morphogen.report.operators import operator_rows
from morphogen.report.probes import depth_charts, probe_rows, probes_chart
from morphogen.report.shown import RunShown
from morphogen.report.subway import lineage_panes
from morphogen.report.tables import Row, cell, frontier_rows, headers, is_numeric
from morphogen.report.wording import number, verdict

if TYPE_CHECKING:
    from jinja2 import Template

#: The page's own scripts, in order: they are one.
SCRIPTS = ("data.js", "charts.js", "table.js", "candidate.js", "page.js")


class Shown(NamedTuple):
    """A table as the template takes it: its columns, whether each holds numbers, and its rows in words."""

    names: list[str]
    right: list[bool]
    rows: list[list[str]]


def report_html(runs: Sequence[RunShown]) -> str:
    """The page of a run, or of several side by side.

    Args:
        runs: What it shows; at least one.

    Returns:
        HTML that refers to nothing outside itself.
    """
    from markupsafe import Markup

    known = names(runs)
    figures = meanings(runs, known)
    operators = [operator_rows(run) for run in runs]
    charts = _charts(runs, operators)
    titles = dict.fromkeys(title for run in runs for title in run.evidence)
    return _template().render(
        title=" · ".join(run.run for run in runs),
        several=len(runs) > 1,
        ongoing=any(run.ongoing for run in runs),
        facts=_shown(_facts(runs)),
        verdicts=[
            line for run in runs for line in (run.unmet, verdict(run.against_root, run.reports, run.objectives)) if line
        ],
        frontier=_shown(_of_all(runs, [_frontier(run) for run in runs])),
        charts=charts,
        panes=[(run.run, *map(Markup, lineage_panes(run))) for run in runs],
        growth=_shown(_of_all(runs, [growth_rows(run.reports) for run in runs])),
        probes=_shown(_of_all(runs, [probe_rows(run) for run in runs])),
        evidence={title: _shown(_of_all(runs, [run.evidence.get(title, ()) for run in runs])) for title in titles},
        operators=_shown(_of_all(runs, operators)),
        compared=next((name for run in runs for name in run.objectives), ""),
        lost=any(_lost(run) for run in runs),
        meanings=_shown(meaning_rows(figures)),
        environments=[(run.run, _shown(_flat(run.environment))) for run in runs if run.environment],
        hypervolume_note=_hypervolume_note(runs),
        data=cleaned({"charts": list(charts.values())}) | held(runs, known, figures),
        **_assets(),
    )


def _charts(runs: Sequence[RunShown], operators: Sequence[Sequence[Row]]) -> dict[str, Figure | None]:
    """Title -> chart."""
    name = "bpb" if any("bpb" in report.metrics for run in runs for report in run.reports.values()) else ""
    charts = {"Bits per byte against training": tokens_chart(runs)} if name else {}
    if any(run.hypervolumes for run in runs):
        charts["Hypervolume of the frontier"] = hypervolume_chart(runs)
    for run, rows in zip(runs, operators, strict=True):
        of = f" · {run.run}" if len(runs) > 1 else ""
        found = {"Operators": operators_chart(rows), "Probes": probes_chart(run), **depth_charts(run)} | growth_charts(
            run.reports
        )
        charts |= {f"{title}{of}": chart for title, chart in found.items() if chart is not None}
    return charts


def _of_all(runs: Sequence[RunShown], tables: Sequence[Sequence[Mapping[str, Any]]]) -> list[Row]:
    """The rows of all runs, with the run's name first where there are several."""
    if len(runs) == 1:
        return [dict(row) for row in tables[0]]
    return [{"run": run.run, **row} for run, rows in zip(runs, tables, strict=True) for row in rows]


def _frontier(run: RunShown) -> list[Row]:
    ids = [id for id in run.frontier if id in run.candidates and id in run.reports]
    return frontier_rows(run.candidates, run.reports, ids, run.objectives, run.against_root) if run.objectives else []


def _facts(runs: Sequence[RunShown]) -> list[Row]:
    """What there is to say of each run: a row a fact, a column a run."""
    told = [_facts_of(run) for run in runs]
    titles = dict.fromkeys(title for facts in told for title in facts)
    columns = [run.run if len(runs) > 1 else "value" for run in runs]
    return [
        {"fact": title, **{name: facts.get(title, "-") for name, facts in zip(columns, told, strict=True)}}
        for title in titles
    ]


def _facts_of(run: RunShown) -> dict[str, str]:
    reports = run.reports.values()
    counted = {str(status): sum(report.status is status for report in reports) for status in Status}
    best = {
        f"best {name} {'↓' if way == 'min' else '↑'}": number((min if way == "min" else max)(values))
        for name, way in run.objectives.items()
        if (
            values := [v for id in run.frontier if id in run.reports and (v := run.reports[id].value(name)) is not None]
        )
    }
    return {
        **run.facts,
        "generations": str(max(0, len(run.hypervolumes) - 1)) + (", and it goes on" if run.ongoing else ""),
        "candidates": str(len(run.candidates)) + "".join(f", {n} {name}" for name, n in counted.items() if n),
        "on the frontier": str(len(run.frontier)),
        "survivors": str(len(run.survivors[-1]) if run.survivors else 0),
        **best,
        "hypervolume": number(run.hypervolumes[-1] if run.hypervolumes else None),
        "training tokens": number(sum(report.tokens_spent for report in reports)),
        "training FLOPs": number(sum(report.flops for report in reports)),
    }


def _hypervolume_note(runs: Sequence[RunShown]) -> str:
    """Whether hypervolumes can be compared."""
    if len(runs) > 1 and any(run.reference != runs[0].reference for run in runs[1:]):
        return "Hypervolumes are measured from each run's own reference point, and these differ: compare shapes alone."
    return ""


def _lost(run: RunShown) -> bool:
    return any(report.status in (Status.REJECTED, Status.GATED, Status.FAILED) for report in run.reports.values())


def _flat(data: Mapping[str, Any], name: str = "") -> list[Row]:
    """Nested plain data as rows of a name and a text."""
    rows: list[Row] = []
    for key, value in sorted(data.items()):
        path = f"{name}.{key}" if name else str(key)
        if isinstance(value, Mapping) and value:
            rows += _flat(value, path)
        else:
            rows.append({"name": path, "value": value if isinstance(value, str) else json.dumps(value, sort_keys=True)})
    return rows


def _shown(rows: Sequence[Row]) -> Shown:
    columns = headers(rows)
    right = [is_numeric(rows, name) for name in columns]
    return Shown(columns, right, [[cell(row.get(name)) for name in columns] for row in rows])


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
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False, "ensure_ascii": False}
    return environment.get_template("report.html")


@cache
def _assets() -> dict[str, Any]:
    """Style and scripts of every page, and the hashes by which a browser is to know the scripts: it runs no others.

    Plotly's stands in the page as text, which takes a browser no time until the page's own script has it run.
    """
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    page = resources.files("morphogen.report") / "page"
    own = "\n".join((page / name).read_text(encoding="utf-8") for name in SCRIPTS)
    plotly = get_plotlyjs()
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in (plotly, own)]
    return {
        "style": Markup((page / "style.css").read_text(encoding="utf-8")),
        "plotly": Markup(plotly),
        "own": Markup(own),
        "hashes": hashes,
    }
