"""Tables for people and machines. Each is a list of rows (plain dicts); one function makes rows, three show them."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from rich.cells import cell_len

from morphogen.against_root import NOT_MEASURED, AgainstRoot
from morphogen.candidate import Candidate, Report, origin
from morphogen.escape import visible
from morphogen.report.wording import differs, edits_short, finite, number

if TYPE_CHECKING:
    from rich.table import Table

Row = dict[str, Any]

COSTS = ("params", "flops_per_token", "kv_bytes_per_token")
#: Columns between two columns of a table.
GAP = 2
#: What is left of a long text where there is no room: less says nothing.
SHORTEST_TEXT = 24


def frontier_rows(
    candidates: Mapping[str, Candidate],
    reports: Mapping[str, Report],
    ids: Iterable[str],
    objectives: Mapping[str, Literal["min", "max"]],
    against_root: AgainstRoot = NOT_MEASURED,
) -> list[Row]:
    """One row per candidate: id, generation, objectives with their standard errors, what was measured against the root,
    those of COSTS that are known, tokens, edits.

    Sorted by the first objective, best first; candidates without it come last.
    """
    ids = list(ids)
    known = [cost for cost in COSTS if any(reports[id].value(cost) is not None for id in ids)]
    names = list(dict.fromkeys([*objectives, *known]))
    uncertain = {name for name in objectives if any(reports[id].error(name) is not None for id in ids)}
    compared = list(dict.fromkeys(one.figure for id in ids for one in against_root.get(id, ())))
    rows = []
    for id in ids:
        candidate, report = candidates[id], reports[id]
        row: Row = {"id": id, "generation": candidate.generation}
        for name in objectives:
            row[name] = report.value(name)
            if name in uncertain:
                row[f"{name} ±"] = report.error(name)
        told = {one.figure: differs(one) for one in against_root.get(id, ())}
        row |= {f"{name} - root's": told.get(name, "not compared") for name in compared}
        row |= {name: report.value(name) for name in names}
        row |= {"tokens": report.tokens.own, "lineage_tokens": report.tokens.lineage, "edits": _made_by(candidates, id)}
        rows.append(row)
    first, direction = next(iter(objectives.items()))
    sign = 1.0 if direction == "min" else -1.0
    rows.sort(key=lambda row: (finite(row[first]) is None, sign * (finite(row[first]) or 0.0), row["id"]))
    return rows


def _made_by(candidates: Mapping[str, Candidate], id: str) -> str:
    """The edits of a candidate, or of the one that it continues."""
    first = origin(candidates, candidates[id])
    return edits_short(first) + ("" if first.id == id else ", continued")


def cell(value: object) -> str:
    """A value as it stands in a table."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float) or value is None:
        return number(value)
    return visible(str(value))


def headers(rows: Sequence[Row]) -> list[str]:
    """The columns, in order of first appearance over all rows."""
    return list(dict.fromkeys(name for row in rows for name in row))


@dataclass(frozen=True)
class Fitted:
    """A table as it is shown: columns, rows of their cells, which columns stand to the right, what found no room."""

    names: tuple[str, ...]
    cells: tuple[tuple[str, ...], ...]
    right: tuple[bool, ...]
    left_out: tuple[str, ...]

    @property
    def note(self) -> str:
        """What is not shown, and how to see it; empty where all is."""
        return f"not shown: {', '.join(self.left_out)} (--wide or --json shows all)" if self.left_out else ""


def fit(rows: Sequence[Row], width: int | None, first: Sequence[str] = ()) -> Fitted:
    """The rows in at most `width` terminal columns (None: as many as they take), with columns left out if need be.

    Numbers are never cut. Columns go from the last to the first, those named in `first` last of all; a text keeps
    SHORTEST_TEXT of its characters before its column goes. What is shortened has an ellipsis: at its end, in an id
    (whose end tells it from others) in the middle.
    """
    rows = [{visible(name): value for name, value in row.items()} for row in rows]
    names, first = headers(rows), [visible(name) for name in first]
    text = {name: [cell(row.get(name)) for row in rows] for name in names}
    right = {name: is_numeric(rows, name) for name in names}
    full = {name: max(map(cell_len, (name, *text[name]))) for name in names}
    least = {name: full[name] if right[name] else min(full[name], max(SHORTEST_TEXT, cell_len(name))) for name in names}
    shown = list(names)
    by_worth = sorted(names, key=lambda name: (name not in first and name != names[0], names.index(name)))
    while width is not None and len(shown) > 1 and _taken(least, shown) > width:
        shown.remove(by_worth.pop())
    room = dict(full)
    for name in reversed(shown):
        if width is not None and (over := _taken(room, shown) - width) > 0 and not right[name]:
            room[name] = max(least[name], room[name] - over)
    for name in shown:
        text[name] = [_cut(value, room[name], middle=name == "id") for value in text[name]]
    return Fitted(
        tuple(shown),
        tuple(zip(*(text[name] for name in shown), strict=True)),
        tuple(right[name] for name in shown),
        tuple(name for name in names if name not in shown),
    )


def _taken(widths: Mapping[str, int], names: Sequence[str]) -> int:
    return sum(widths[name] for name in names) + GAP * (len(names) - 1)


def _cut(text: str, width: int, *, middle: bool) -> str:
    """`text` in at most `width` terminal columns, an ellipsis standing for what is left out."""
    if cell_len(text) <= width:
        return text
    head, tail = text, text[1:] if middle else ""
    while cell_len(tail) > width // 2:
        tail = tail[1:]
    while head and cell_len(head) + 1 + cell_len(tail) > width:
        head = head[:-1]
    return f"{head}…{tail}"


def as_table(rows: Sequence[Row], title: str, width: int | None = None, first: Sequence[str] = ()) -> "Table":
    """A rich table in at most `width` columns, as `fit` has it: numbers to the right, text to the left."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    fitted = fit(rows, width, first)
    table = Table(
        title=Text(visible(title)),
        title_justify="left",
        title_style="bold",
        caption=Text(fitted.note) if fitted.note else None,
        caption_justify="left",
    )
    table.box, table.pad_edge, table.show_edge = box.SIMPLE_HEAD, False, False
    table.padding = (0, GAP - 1, 0, 0)  # the box has a blank of its own between columns
    for name, right in zip(fitted.names, fitted.right, strict=True):
        side: Literal["left", "right"] = "right" if right else "left"
        table.add_column(Text(name), justify=side, no_wrap=True)
    for cells in fitted.cells:
        table.add_row(*map(Text, cells))
    return table


def as_text(rows: Sequence[Row], width: int | None = None, first: Sequence[str] = ()) -> str:
    """Aligned plain text without colours or borders, as `fit` has it, a newline at the end; empty for no rows."""
    fitted = fit(rows, width, first)
    lines = [fitted.names, *fitted.cells] if fitted.names else []
    widths = [max(map(cell_len, column)) for column in zip(*lines, strict=True)]
    text = ""
    for line in lines:
        padded = []
        for value, room, right in zip(line, widths, fitted.right, strict=True):
            space = " " * (room - cell_len(value))
            padded.append(space + value if right else value + space)
        text += (" " * GAP).join(padded).rstrip() + "\n"
    return text + (f"{fitted.note}\n" if fitted.note else "")


def as_json(rows: Sequence[Row]) -> str:
    """The rows as valid JSON with exact numbers; what is not finite stands as null."""
    strict = [{name: finite(value) for name, value in row.items()} for row in rows]
    return json.dumps(strict, indent=2, ensure_ascii=False, allow_nan=False)


def is_numeric(rows: Sequence[Row], name: str) -> bool:
    """Whether a column holds numbers, and nothing else beside what is not known."""
    values = [row[name] for row in rows if row.get(name) is not None]
    return bool(values) and all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
