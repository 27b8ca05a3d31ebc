"""Tables for people and machines. Each is a list of rows (plain dicts); one function makes rows, three show them."""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Literal

from rich import box
from rich.table import Table
from rich.text import Text

from morphogen.candidate import Candidate, Report, Status
from morphogen.report.wording import edits_short, finite, number

Row = dict[str, Any]

COSTS = ("params", "flops_per_token", "kv_bytes_per_token")


def frontier_rows(
    candidates: Mapping[str, Candidate],
    reports: Mapping[str, Report],
    ids: Iterable[str],
    objectives: Mapping[str, Literal["min", "max"]],
) -> list[Row]:
    """One row per candidate: id, generation, objectives, those of COSTS that are known, tokens, edits.

    Sorted by the first objective, best first; candidates without it come last.
    """
    ids = list(ids)
    known = [cost for cost in COSTS if any(reports[id].value(cost) is not None for id in ids)]
    names = list(dict.fromkeys([*objectives, *known]))
    rows = []
    for id in ids:
        candidate, report = candidates[id], reports[id]
        row: Row = {"id": id, "generation": candidate.generation}
        row |= {name: report.value(name) for name in names}
        row |= {"tokens": report.tokens.own, "lineage_tokens": report.tokens.lineage, "edits": edits_short(candidate)}
        rows.append(row)
    first, direction = next(iter(objectives.items()))
    sign = 1.0 if direction == "min" else -1.0
    rows.sort(key=lambda row: (finite(row[first]) is None, sign * (finite(row[first]) or 0.0), row["id"]))
    return rows


def operator_rows(
    candidates: Mapping[str, Candidate], reports: Mapping[str, Report], survivors: Collection[str]
) -> list[Row]:
    """One row per operator that was used: children made with it, what became of them, and how many survive."""
    rows: dict[str, Row] = {}
    for id in sorted(candidates, key=lambda id: candidates[id].index):
        status = reports[id].status if id in reports else Status.PROPOSED
        for edit in {edit.operator: edit for edit in candidates[id].edits}.values():
            row = rows.setdefault(
                edit.operator,
                {"operator": edit.operator, "exact": edit.preserves, "children": 0}
                | {str(kind): 0 for kind in (Status.TRAINED, Status.GATED, Status.FAILED, Status.REJECTED)}
                | {"survivors": 0},
            )
            row["children"] += 1
            row["survivors"] += id in survivors
            if status in row:
                row[str(status)] += 1
    return [rows[name] for name in sorted(rows)]


def reason_rows(candidates: Mapping[str, Candidate], reports: Mapping[str, Report]) -> list[Row]:
    """One row per candidate that was rejected, gated or failed, with the reason."""
    lost = (Status.REJECTED, Status.GATED, Status.FAILED)
    return [
        {"id": id, "generation": candidates[id].generation, "status": str(report.status), "reason": report.reason}
        for id in sorted(candidates, key=lambda id: candidates[id].index)
        if (report := reports.get(id)) is not None and report.status in lost
    ]


def cell(value: object) -> str:
    """A value as it stands in a table."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float) or value is None:
        return number(value)
    return str(value)


def headers(rows: Sequence[Row]) -> list[str]:
    """The columns, in order of first appearance over all rows."""
    return list(dict.fromkeys(name for row in rows for name in row))


def as_table(rows: Sequence[Row], title: str) -> Table:
    """A rich table: numbers to the right, text to the left."""
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold", pad_edge=False)
    for name in headers(rows):
        side: Literal["left", "right"] = "right" if _numeric(rows, name) else "left"
        table.add_column(name, justify=side, overflow="fold", no_wrap=name == "id")
    for row in rows:
        table.add_row(*(Text(cell(row.get(name))) for name in headers(rows)))
    return table


def as_text(rows: Sequence[Row]) -> str:
    """Aligned plain text without colours or borders, a newline at the end; empty for no rows."""
    names = headers(rows)
    lines = [names, *([cell(row.get(name)) for name in names] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(names))]
    right = [_numeric(rows, name) for name in names]
    text = ""
    for line in lines if names else []:
        cells = [c.rjust(w) if r else c.ljust(w) for c, w, r in zip(line, widths, right, strict=True)]
        text += "  ".join(cells).rstrip() + "\n"
    return text


def as_json(rows: Sequence[Row]) -> str:
    """The rows as valid JSON with exact numbers; what is not finite stands as null."""
    strict = [{name: finite(value) for name, value in row.items()} for row in rows]
    return json.dumps(strict, indent=2, ensure_ascii=False, allow_nan=False)


def _numeric(rows: Sequence[Row], name: str) -> bool:
    values = [row[name] for row in rows if row.get(name) is not None]
    return bool(values) and all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
