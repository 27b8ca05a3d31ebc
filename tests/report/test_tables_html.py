"""Tables in three forms, and the one-page report."""

import base64
import hashlib
import io
import json
import math
import re
from html.parser import HTMLParser

import pytest
from made_runs import make_run
from rich.cells import cell_len
from rich.console import Console

from morphogen.against_root import Difference
from morphogen.candidate import Candidate, Edit, Report, Status, Twin
from morphogen.report.charts import DRAWABLE, hypervolume_chart, objective_charts
from morphogen.report.html import report_html
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


class Page(HTMLParser):
    """A page taken apart; fails on a tag that is not closed in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.seen, self.outside, self.scripts, self.policy = [], [], [], [], ""
        self.feed(text)
        self.close()
        assert self.open == []
        self.charts = json.loads(self.scripts[0], parse_constant=pytest.fail)

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append(tag)
        self.outside += [f"{tag} {name}" for name, _ in attrs if name in ("href", "src", "srcset", "data", "action")]
        self.outside += [f"{tag} {name}" for name, _ in attrs if name.startswith("on")]
        if dict(attrs).get("http-equiv") == "Content-Security-Policy":
            self.policy = dict(attrs)["content"]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] == ["script"]:
            self.scripts.append(data)


def points(charts):
    return [trace["x"] for chart in charts if chart for trace in chart["data"]]


def test_the_page_is_balanced_complete_and_self_contained(run):
    candidates, reports, finalists = run
    text = report_html("run <1>", *run, OBJECTIVES, [0.1, 0.2, 0.2], {"seed": "0", "text": "<stdlib>"})
    page = Page(text)
    assert page.seen.count("svg") == 1  # the lineage
    assert page.outside == []
    assert not re.search(r"(url\(|@import)", text.replace(page.scripts[1], ""))
    assert "&lt;stdlib&gt;" in text
    assert "<stdlib>" not in text
    assert all(text.count(id) >= 2 for id in finalists)
    trained = sum(report.status is Status.TRAINED for report in reports.values())
    assert [len(xs) for xs in points(page.charts)] == [3, trained - len(finalists), len(finalists)]
    assert len(re.findall(r'<div id="chart-[01]">', text)) == 2
    backwards = (dict(reversed(candidates.items())), dict(reversed(reports.items())), finalists)
    again = report_html("run <1>", *backwards, OBJECTIVES, [0.1, 0.2, 0.2], {"seed": "0", "text": "<stdlib>"})
    assert again == text


def test_a_page_may_run_its_own_scripts_and_fetch_nothing(run):
    page = Page(report_html("run", *run, OBJECTIVES, [0.1], {}))
    rules = dict(rule.strip().split(" ", 1) for rule in page.policy.split(";"))
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in page.scripts[1:]]
    assert rules.pop("script-src") == " ".join(f"'sha256-{hash}'" for hash in hashes)
    assert rules == {"default-src": "'none'", "img-src": "data: blob:", "style-src": "'unsafe-inline'"}
    assert len(hashes) == 2


def test_charts_are_such_as_plotly_knows(run):
    from plotly.graph_objects import Figure

    figures = [hypervolume_chart([0.1, 0.2]), *objective_charts(*run, {**OBJECTIVES, "params": "max"}).values()]
    assert len(figures) == 4
    for figure in figures:
        assert Figure(figure).to_dict()["data"]


def test_a_spot_says_which_candidate_it_is_and_what_made_it(run):
    candidates, reports, finalists = run
    (chart,) = objective_charts(*run, OBJECTIVES).values()
    others, best = chart["data"]
    assert best["mode"] == "lines+markers"
    assert best["x"] == sorted(reports[id].metrics["bpb"] for id in finalists)
    tips = others["text"] + best["text"]
    for id in finalists:
        (tip,) = (tip for tip in tips if tip.startswith(f"{id} "))
        assert all(edit.operator in tip for edit in candidates[id].edits)
        assert f"bpb {number(reports[id].metrics['bpb'])}" in tip


def test_standard_errors_stand_beside_their_figures_and_as_bars(run):
    candidates, reports, finalists = run
    sure, *others = finalists
    known = {**reports, **{id: reports[id].replace(errors={"bpb": 0.01}) for id in others}}
    rows = frontier_rows(candidates, known, finalists, OBJECTIVES)
    assert list(rows[0])[2:5] == ["bpb", "bpb ±", "flops_per_token"]
    assert {row["id"]: row["bpb ±"] for row in rows} == dict.fromkeys(others, 0.01) | {sure: None}
    twin = Twin(metrics={"bpb": 1.0}, errors={"bpb": 0.02}, share=1.0, tokens=1, steps=1, flops=1.0)
    judged = {id: report.replace(twin=twin) for id, report in known.items()}
    rows = frontier_rows(candidates, judged, others, {"bpb": "min"})
    assert {(row["bpb"], row["bpb ±"]) for row in rows} == {(1.0, 0.02)}
    (chart,) = objective_charts(candidates, known, finalists, OBJECTIVES).values()
    assert sorted(chart["data"][1]["error_x"]["array"]) == [0.0, *[0.01] * len(others)]
    assert "error_y" not in chart["data"][1]
    assert "error_x" not in chart["data"][0]


def test_what_repeats_show_stands_beside_every_finalist(run):
    candidates, reports, finalists = run
    shown = {"better": (-0.03, -0.01), "worse": (0.01, 0.03), "no": (-0.01, 0.02)}
    means = {"figure": "bpb", "value": 1.0, "root": 1.1, "pairs": 3}
    against = {
        id: (Difference(**means, difference=(low + high) / 2, low=low, high=high, shown=word),)
        for id, (word, (low, high)) in zip(finalists, shown.items(), strict=False)
    }
    table = frontier_rows(candidates, reports, finalists, OBJECTIVES, against)
    rows = {row["id"]: row["bpb - root's"] for row in table}
    told = ["-0.0200 ± 0.0100 better", "+0.0200 ± 0.0100 worse", "+0.0050 ± 0.0150 not shown"]
    assert [rows[id] for id in finalists] == [*told, *["not compared"] * (len(finalists) - 3)]
    page = report_html("run", candidates, reports, finalists, OBJECTIVES, [0.1], {}, against)
    best = min(against, key=lambda id: (reports[id].metrics["bpb"], id))
    assert f"best: {best}, bpb 1.0000, against the root&#39;s 1.1000 after the same training: " in page
    assert all(text in page for text in told)


def test_three_objectives_have_three_charts_whose_frontier_is_no_line(run):
    charts = objective_charts(*run, {**OBJECTIVES, "params": "max"})
    assert list(charts) == ["bpb against flops_per_token", "bpb against params", "flops_per_token against params"]
    assert {trace["mode"] for chart in charts.values() for trace in chart["data"]} == {"markers"}


def test_an_empty_run_still_makes_a_page():
    page = report_html("empty", {}, {}, [], {"bpb": "min", "a": "max", "b": "max"}, [], {})
    assert Page(page).charts == [None] * 3
    assert page.count("nothing measured") == 3
    assert page.count(">none<") == 3


@pytest.mark.parametrize("values", [(1.7e308, -1.7e308), (5e-324, 5e-324), (1e300, 1e-300), (0.0, -0.0), (math.nan, 1)])
def test_a_page_draws_whatever_numbers_there_are(values):
    candidates = {id: Candidate(id=id, index=i, generation=i, blueprint={}) for i, id in enumerate("ab")}
    reports = {
        id: Report(id=id, status=Status.TRAINED, metrics={"x": value, "y": 1.0})
        for id, value in zip("ab", values, strict=True)
    }
    page = Page(report_html("run", candidates, reports, ("a",), {"x": "min", "y": "max"}, [0.0, 1e300], {}))
    assert points(page.charts)[0] == [0]
    shown = [x for xs in points(page.charts[1:]) for x in xs]
    assert len(shown) == sum(abs(value) < DRAWABLE for value in values)


@pytest.mark.parametrize(
    "text",
    [
        "</script><script>alert(1)</script>",
        "<!--<script>",
        '"><img src=x onerror=alert(1)>',
        '<a href="https://x.example">y</a>',
        "{{ 7 * 7 }}{% raw %}",
        "%{x}<br>&lt;b&gt;",
        "\u2028\u202e\x00",
    ],
)
def test_hostile_names_stay_text_in_the_page_and_in_its_charts(text):
    edit = Edit(operator=text, target=text, preserves=False)
    candidates = {"a": Candidate(id="a", index=0, generation=0, blueprint={}, edits=(edit,))}
    reports = {"a": Report(id="a", status=Status.TRAINED, metrics={text: 1.0, "y": 1.0})}
    page = report_html(text, candidates, reports, ("a",), {text: "min", "y": "max"}, [1.0], {text: text})
    plain = Page(report_html("t", candidates, reports, ("a",), {"y": "min", text: "max"}, [1.0], {"t": "t"}))
    shown = Page(page)
    assert sorted(shown.seen) == sorted(plain.seen)
    assert shown.outside == []
    assert shown.scripts[1:] == plain.scripts[1:]
    if "7 * 7" in text:
        assert "7 * 7" in page
    (told,) = shown.charts[1]["data"][0]["text"]
    assert "<" not in told.replace("<br>", "")  # which Plotly would read as a tag
    assert told.count("<br>") == 2
    assert "<" not in shown.charts[1]["layout"]["xaxis"]["title"]["text"]
    assert not re.search("[\u2028\u202e\x00]", page.replace(shown.scripts[1], ""))
