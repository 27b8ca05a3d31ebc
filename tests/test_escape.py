"""Hostile text in every place that data is shown: nothing that a terminal, a browser or a spreadsheet would obey."""

import csv
import io
import json
import re
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from morphogen.candidate import Candidate, Change, Edit, Report, Status
from morphogen.cli.facts import show_facts
from morphogen.cli.live import Live
from morphogen.cli.status import ancestry
from morphogen.escape import csv_cell, json_shown, visible, visible_lines, whole_characters, xml
from morphogen.notices import Began, Measured, log_line
from morphogen.report.html import report_html
from morphogen.report.outlines import lineage_dot, lineage_mermaid
from morphogen.report.shown import RunShown
from morphogen.report.subway import lineage_svg
from morphogen.report.tables import as_table, as_text
from morphogen.runfolder import events_csv, records
from morphogen.store.files import canonical_json
from morphogen.store.ledger import Generation

OBEYED = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
HOSTILE = [
    "\x1b[2J\x1b]0;title\x07\x9b31m",
    "\x1b]8;;http://example.org\x1b\\link\x1b]8;;\x1b\\",
    "\u202egpj.exe\u2066\u2069",
    "[bold red]x[/] [link=http://example.org]y[/link] [",
    "=cmd|' /C calc'!A0",
    "+1", "-1+1", "@SUM(A1)", "\t=1", "\r=1", " =1",
    '</title></text></svg><script>alert("1")</script>',
    "\" onload='x' &lt; ]]> <!-- -->",
    'a"];b[label="\\N\\G\\l',
    "two\nlines\r\nthree",
    "\x00\x7f\ud800\ufeff\uffff",
    "%%{init}%% graph TD; click a href",
]  # fmt: skip
texts = st.one_of(st.sampled_from(HOSTILE), st.text(st.characters(exclude_categories=()), max_size=20))


@given(texts)
def test_every_sink_has_its_own_escape(text: str) -> None:
    assert not OBEYED.search(visible(text))
    assert "\n" not in visible(text)
    assert not OBEYED.search(visible_lines(text))
    assert visible_lines(text).count("\n") == text.count("\n")
    raw = json.dumps({text: text}, ensure_ascii=False, indent=2)
    assert not OBEYED.search(json_shown(raw))
    assert json.loads(json_shown(raw)) == json.loads(raw)
    whole_characters(raw).encode()
    assert json.loads(canonical_json({text: text}).encode()) == {text: text}
    shown = ET.fromstring(f'<a b="{xml(text)}">{xml(text)}</a>')
    assert not re.search("[\x7f-\x9f\u202a-\u202e\u2066-\u2069]", (shown.text or "") + shown.attrib["b"])
    assert not csv_cell(text).lstrip().startswith(("=", "+", "-", "@"))


@pytest.mark.parametrize("text", ["plain", "ein Wort, größer", "日本語", "a_b-c+d", "1.5", "שלום"])
def test_ordinary_text_stays_as_it_is(text: str) -> None:
    assert visible(text) == visible_lines(text) == xml(text) == csv_cell(text) == json_shown(text) == text


def family(text: str) -> tuple[dict[str, Candidate], dict[str, Report]]:
    """A root and its child, everything about them called `text`."""
    change = Change(path=text, before={text: text}, after=[text])
    edit = Edit(operator=text, target=text, preserves=False, changes=(change,), template={"name": text})
    root = Candidate(id="root-0", index=0, generation=0, blueprint={"name": text})
    child = Candidate(id="child-1", index=1, generation=1, blueprint={}, parents=("root-0",), edits=(edit,))
    figures = {"bpb": 1.0, "params": 2.0, text: 3.0}
    reports = {
        "root-0": Report(id="root-0", status=Status.TRAINED, metrics=figures),
        "child-1": Report(id="child-1", status=Status.GATED, reason=text, metrics=figures),
    }
    return {one.id: one for one in (root, child)}, reports


@pytest.mark.parametrize("text", HOSTILE)
def test_a_run_with_hostile_names_is_shown_harmlessly(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = text.replace("\ud800", "")  # which no file can bring
    candidates, reports = family(text)
    closed = Generation(generation=0, survivors=(), frontier=("child-1",), hypervolume=1.0, reference={})
    for name, file in records(text, candidates, reports, [closed], {"bpb": "min", text: "max"}).items():
        file.encode()
        if name.endswith(".json"):
            json.loads(file)
    told = RunShown(
        text,
        candidates,
        reports,
        ["child-1"],
        {"bpb": "min", text: "max"},
        hypervolumes=[1.0],
        facts={text: text},
        environment={text: {text: text}},
        composites={text: {"op": text, "of": [text]}},
        evidence={text: [{"id": text, text: text}]},
    )
    page = report_html([told, told])
    own = re.sub(r'(<script type="text/plain" id="plotly">).*?(</script>)', r"\1\2", page, flags=re.DOTALL)
    assert "<script>alert" not in own
    assert own.count("<script") == 3
    assert not re.search(r"<[^>]*\bonload='", own)
    page.encode()
    for svg in (lineage_svg(text, candidates, reports, ["child-1"], {text: "min"}),):
        assert not [e for e in ET.fromstring(svg).iter() if e.tag.endswith("script")]
    for line in lineage_dot(candidates, reports, ["child-1"]).splitlines():
        assert re.sub(r'"([^"\\]|\\["\\])*"', "", line).count('"') == 0
    for line in lineage_mermaid(candidates, reports, ["child-1"]).splitlines():
        assert re.fullmatch(r'[\w %:,.(){}|~>"#;+@=^/\[\]-]*', line, re.ASCII)
        assert line.count('"') in (0, 2)
    for row in csv.reader(io.StringIO(events_csv(candidates, reports))):
        assert not [cell for cell in row if cell.lstrip().startswith(("=", "@")) or OBEYED.search(cell)]
        assert not [cell for cell in row if cell.startswith(("+", "-")) and not re.fullmatch(r"-?[\d.e+-]+", cell)]
    assert not OBEYED.search(ancestry(candidates, reports, "child-1"))
    assert ancestry(candidates, reports, "child-1").count("\n") == ancestry(*family("x"), "child-1").count("\n")
    rows = [{text: text, "n": 1}]
    assert not OBEYED.search(as_text(rows))
    assert as_text(rows).count("\n") == 2
    show_facts({text: text, "more": {text: 1}}, as_json=False)
    assert not OBEYED.search(capsys.readouterr().out)


@pytest.mark.parametrize("text", HOSTILE)
def test_a_terminal_shows_hostile_names_as_text(text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    text = text.replace("\ud800", "")
    candidates, reports = family(text)
    console = Console(file=io.StringIO(), force_terminal=True, color_system=None, width=200, legacy_windows=False)
    console.print(as_table([{text: text}], text))
    measured = Measured(candidates["child-1"], 1, 1, reports["child-1"], again=False)
    assert "\n" not in log_line(measured)
    live = Live(console)
    experiment = Stub()
    live(Began(text, tmp_path_factory.getbasetemp(), experiment, 0, "cpu", "cpu"))  # type: ignore[arg-type]
    live(measured)
    live.stop()
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    ours = re.sub(r"\x1b\[(\?25[lh]|[0-9;]*[mKAJ])|\r|\t", "", printed)  # what rich itself tells the terminal
    assert not OBEYED.search(ours)
    if text.startswith("["):
        assert "[bold red]" in printed


class Stub:
    """All that the display asks of an experiment."""

    class evolution:  # noqa: N801
        sizes = (1, 1)
        objectives = {"bpb": "min"}
