"""Tables in three forms, and the one-page report."""

import io
import json
import math
import re
from html.parser import HTMLParser

import pytest
from made_runs import make_run
from rich.cells import cell_len
from rich.console import Console

from morphogen.candidate import Candidate, Report, Status
from morphogen.report.html import _ticks, report_html
from morphogen.report.tables import as_json, as_table, as_text, fit, frontier_rows, operator_rows, reason_rows
from morphogen.report.wording import number, plain

OBJECTIVES = {"bpb": "min", "flops_per_token": "min"}


@pytest.fixture(scope="module")
def run():
    return make_run(4, 6, 5)


def test_frontier_rows_are_sorted_by_the_first_objective_in_its_direction(run):
    candidates, reports, ids = run
    rows = frontier_rows(candidates, reports, ids[::-1], OBJECTIVES)
    assert [row["bpb"] for row in rows] == sorted(reports[id].metrics["bpb"] for id in ids)
    assert list(rows[0]) == [
        "id",
        "generation",
        "bpb",
        "flops_per_token",
        "params",
        "tokens",
        "lineage_tokens",
        "edits",
    ]
    most = frontier_rows(candidates, reports, ids, {"flops_per_token": "max"})
    assert [row["flops_per_token"] for row in most] == sorted((row["flops_per_token"] for row in most), reverse=True)


def test_missing_and_nan_objectives_come_last_and_json_stays_strict():
    candidates = {id: Candidate(id=id, index=i, generation=0, blueprint={}) for i, id in enumerate("abc")}
    values = {"a": {}, "b": {"bpb": math.nan}, "c": {"bpb": 2.0}}
    reports = {id: Report(id=id, status=Status.TRAINED, metrics=metrics) for id, metrics in values.items()}
    rows = frontier_rows(candidates, reports, "abc", {"bpb": "min"})
    assert [row["id"] for row in rows] == ["c", "a", "b"]
    assert [row["bpb"] for row in json.loads(as_json(rows), parse_constant=pytest.fail)] == [2.0, None, None]


def test_operator_rows_count_children_by_fate(run):
    candidates, reports, finalists = run
    rows = {row["operator"]: row for row in operator_rows(candidates, reports, finalists)}
    children = [id for id, c in candidates.items() if any(edit.operator == "widen_ffn" for edit in c.edits)]
    row = rows["widen_ffn"]
    assert row["children"] == len(children) == sum(row[name] for name in ("trained", "gated", "failed", "rejected"))
    assert row["on_frontier"] == len(set(children) & set(finalists))
    assert row["exact"] is True
    assert rows["xover"]["exact"] is False
    assert list(rows) == sorted(rows)


def test_reason_rows_list_the_lost_with_why(run):
    candidates, reports, _ = run
    rows = reason_rows(candidates, reports)
    assert {row["id"] for row in rows} == {id for id, r in reports.items() if r.status is not Status.TRAINED}
    assert all(row["reason"] for row in rows)


def test_text_is_aligned_and_rich_shows_the_same_cells(run):
    rows = frontier_rows(*run, OBJECTIVES)
    lines = as_text(rows).splitlines()
    assert len(lines) == len(rows) + 1
    edge = lines[0].index("bpb") + 3
    assert all(line[edge - 1].isdigit() and line[edge] == " " for line in lines[1:])
    console = Console(file=io.StringIO(), width=200)
    console.print(as_table(rows, "Frontier [bold]"))
    shown = console.file.getvalue()
    assert all(row["id"] in shown and number(row["bpb"]) in shown for row in rows)
    assert as_text([]) == ""
    assert json.loads(as_json([])) == []


LONG = {
    "id": "drop_upcycle+narrow_experts+insert_associative_memory-1234-4f70",
    "generation": 12,
    "bpb": 2.3456,
    "flops_per_token": 1.26e9,
    "train_memory_bytes": 134_100_000,
    "kv_bytes_per_token": 64,
    "lineage_tokens": 38_400_000,
    "edits": "drop_upcycle + narrow_experts + insert_associative_memory",
}


@pytest.mark.parametrize("width", [40, 60, 80, 120, 160])
@pytest.mark.parametrize("name", ["plain", "数据模型" * 8])
def test_a_table_keeps_to_its_width_and_cuts_no_number(width, name):
    rows = [LONG, {**LONG, "id": name, "bpb": None}]
    first = ("id", "bpb", "flops_per_token", "train_memory_bytes")
    console = Console(file=io.StringIO(), width=width)
    console.print(as_table(rows, "frontier", width, first))
    fitted = fit(rows, width, first)
    for text in (as_text(rows, width, first), console.file.getvalue()):
        table = [line for line in text.splitlines() if "shown" not in line]
        assert max(map(cell_len, table)) <= width
        whole = {number(LONG[name]) for name in fitted.names if name not in ("id", "edits")}
        assert whole <= set(text.split())
        assert "1234-4f70" in text  # what tells the id from others
    assert [name for name in LONG if name in fitted.left_out] == list(fitted.left_out)
    assert set(fitted.names) | set(fitted.left_out) == set(LONG)
    assert width < 80 or set(first) <= set(fitted.names)
    assert bool(fitted.note) == bool(fitted.left_out)


def test_without_a_width_a_table_is_whole():
    assert fit([LONG], None).left_out == ()
    assert LONG["id"] in as_text([LONG])


def test_ids_are_not_read_as_markup():
    console = Console(file=io.StringIO(), width=80)
    console.print(as_table([{"id": "[red]x[/red]"}], "t"))
    assert "[red]x[/red]" in console.file.getvalue()


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (0.0, "0"), (2.31415, "2.314"), (9999, "9999"), (12_345, "12.35k"), (1.2e6, "1.2M"),
     (-3.4e9, "-3.4G"), (1e18, "1000P"), (math.nan, "nan"), (1e-7, "1e-07")],
)  # fmt: skip
def test_numbers_read_well(value, text):
    assert number(value) == text


def test_values_of_blueprints_are_short():
    assert plain(None) == "∅"
    assert plain({"b": 1, "a": "é"}) == '{"a": "é", "b": 1}'
    assert len(plain("x" * 500)) == 60


@pytest.mark.parametrize("values", [[1.0], [0.0, 0.0], [-3.0, 5.0], [1e-9, 2e-9], [1e12, 1.1e12], [2.3, 2.31, 9.7]])
def test_ticks_are_few_rising_and_enclose_the_values(values):
    ticks = _ticks(values)
    assert 2 <= len(ticks) <= 9
    assert ticks == sorted(set(ticks))
    slack = 1e-6 * (ticks[-1] - ticks[0])
    assert ticks[0] <= min(values) + slack
    assert ticks[-1] >= max(values) - slack


class Balance(HTMLParser):
    """Fails on a tag that is not closed in order."""

    def __init__(self):
        super().__init__()
        self.open, self.seen = [], []

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_balanced_complete_and_self_contained(run):
    candidates, reports, finalists = run
    page = report_html("run <1>", *run, OBJECTIVES, [0.1, 0.2, 0.2], {"seed": "0", "text": "<stdlib>"})
    checker = Balance()
    checker.feed(page)
    assert checker.open == []
    assert checker.seen.count("svg") == 3  # hypervolume, one scatter, lineage
    assert "script" not in checker.seen
    assert not re.search(r"(href|src|url\(|@import)", page)
    assert "&lt;stdlib&gt;" in page
    assert "<stdlib>" not in page
    assert all(page.count(id) >= 2 for id in finalists)
    trained = sum(report.status is Status.TRAINED for report in reports.values())
    assert page.count('class="front"') + page.count('class="other"') == trained
    assert page.count('class="dot"') == 3
    backwards = (dict(reversed(candidates.items())), dict(reversed(reports.items())), finalists)
    again = report_html("run <1>", *backwards, OBJECTIVES, [0.1, 0.2, 0.2], {"seed": "0", "text": "<stdlib>"})
    assert again == page


def test_an_empty_run_still_makes_a_page():
    page = report_html("empty", {}, {}, [], {"bpb": "min", "a": "max", "b": "max"}, [], {})
    assert page.count("nothing measured") == 3
    assert page.count(">none<") == 3


def test_values_that_differ_in_their_last_bits_have_axes_too():
    for low, high in ((8.0, 8.0 + 2e-15), (1e9, 1e9 + 2e-7), (-3.0 - 1e-15, -3.0)):
        ticks = _ticks([low, high])
        assert ticks[0] < ticks[-1]
        assert len(set(ticks)) == len(ticks)


@pytest.mark.parametrize("values", [(1.7e308, -1.7e308), (5e-324, 5e-324), (1e300, 1e-300), (0.0, -0.0)])
def test_a_page_draws_whatever_finite_numbers_there_are(values):
    candidates = {id: Candidate(id=id, index=i, generation=i, blueprint={}) for i, id in enumerate("ab")}
    reports = {
        id: Report(id=id, status=Status.TRAINED, metrics={"x": value, "y": 1.0})
        for id, value in zip("ab", values, strict=True)
    }
    page = report_html("run", candidates, reports, ("a",), {"x": "min", "y": "max"}, [0.0, 1e300], {})
    assert "nan" not in page
    assert "inf" not in page
