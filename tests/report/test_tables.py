"""Tables in three forms."""

import io
import json
import math

import pytest
from made_runs import make_run
from rich.cells import cell_len
from rich.console import Console

from morphogen.against_root import Difference
from morphogen.candidate import Candidate, Report, Status, Twin
from morphogen.report.tables import as_json, as_table, as_text, fit, frontier_rows
from morphogen.report.wording import number, plain, verdict

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


def test_standard_errors_stand_beside_their_figures(run):
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
    best = min(against, key=lambda id: (reports[id].metrics["bpb"], id))
    line = verdict(against, reports, OBJECTIVES)
    assert line.startswith(f"best: {best}, bpb 1.0000, against the root's 1.1000 after the same training: ")
