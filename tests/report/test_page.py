"""The page: whole, on its own, safe, and with all that there is to see."""

import base64
import hashlib
import json
import math
import re
from html.parser import HTMLParser

import pytest
from made_runs import made_edit, made_report, make_run, shown
from plotly.graph_objects import Figure
from plotly.offline import get_plotlyjs
from ruamel.yaml import YAML

from morphogen.candidate import Candidate, Edit, Report, Status, Tokens
from morphogen.reading import read_experiment
from morphogen.report.blueprints import pieces
from morphogen.report.charts import hypervolume_chart, operators_chart, tokens_chart
from morphogen.report.html import report_html
from morphogen.report.operators import mean, operator_rows, share, wilson
from morphogen.report.probes import depth_charts, probe_rows, probes_chart
from morphogen.report.wording import number

OBJECTIVES = {"bpb": "min", "flops_per_token": "min"}


@pytest.fixture(scope="module")
def run():
    return make_run(4, 6, 5)


class Page(HTMLParser):
    """A page taken apart; fails on a tag that is not closed in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.seen, self.outside, self.scripts, self.policy = [], [], [], [], ""
        self.feed(text)
        self.close()
        assert self.open == []
        self.data = json.loads(self.scripts[0], parse_constant=pytest.fail)

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


def page_of(made, objectives=OBJECTIVES, **more):
    return report_html([shown(made, objectives, **{"hypervolumes": [0.1], **more})])


def test_the_page_is_balanced_complete_and_self_contained(run):
    candidates, reports, finalists = run
    told = {"run": "run <1>", "hypervolumes": [0.1, 0.2, 0.2], "facts": {"seed": "0", "text": "<stdlib>"}}
    text = page_of(run, **told)
    page = Page(text)
    assert page.outside == []
    assert not re.search(r"(url\(|@import)", text.replace(page.scripts[1], ""))
    assert "&lt;stdlib&gt;" in text
    assert "<stdlib>" not in text
    assert all(text.count(id) >= 3 for id in finalists)
    assert len(re.findall(r'<div id="chart-[0-9]+"', text)) == len(page.data["charts"]) == 3
    backwards = (dict(reversed(candidates.items())), dict(reversed(reports.items())), finalists)
    assert page_of(backwards, **told) == text


def test_a_page_may_run_its_own_scripts_and_fetch_nothing(run):
    page = Page(page_of(run))
    rules = dict(rule.strip().split(" ", 1) for rule in page.policy.split(";"))
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in page.scripts[1:]]
    assert rules.pop("script-src") == " ".join(f"'sha256-{hash}'" for hash in hashes)
    assert rules == {"default-src": "'none'", "img-src": "data: blob:", "style-src": "'unsafe-inline'"}
    assert len(hashes) == 2


def test_a_page_holds_every_candidate_with_its_figures_edits_parents_and_curve(run):
    candidates, reports, finalists = run
    some = finalists[0]
    reports = {**reports, some: reports[some].replace(losses=((1, 3.0), (2, 2.5)), errors={"bpb": 0.01})}
    data = Page(page_of((candidates, reports, finalists))).data
    held = {one["id"]: one for one in data["candidates"]}
    assert list(held) == sorted(candidates, key=lambda id: candidates[id].index)
    assert (held[some]["steps"], held[some]["losses"], held[some]["errors"]) == ([1, 2], [3.0, 2.5], {"bpb": 0.01})
    order = list(held)
    for id, one in held.items():
        assert [order[place] for place in one["parents"]] == list(candidates[id].parents)
        assert one["status"] == reports[id].status
        assert bool(one.get("frontier")) is (id in finalists)
        assert bool(one.get("root")) is (not candidates[id].parents)
        values = dict(zip(data["names"], one["values"], strict=True))
        assert values["bpb"] == float(f"{reports[id].metrics['bpb']:.7g}")
        assert values["lineage_tokens"] == reports[id].tokens.lineage
        assert all(edit.operator in one["edits"] for edit in candidates[id].edits)
        assert one.get("reason", "") == reports[id].reason


def test_every_figure_says_what_it_is(run):
    made = {"thrift": {"op": "ratio", "of": ["bpb", "params"], "better": "min"}}
    candidates, reports, finalists = run
    reports = {id: report.replace(metrics={**report.metrics, "thrift": 1.0}) for id, report in reports.items()}
    text = page_of((candidates, reports, finalists), {**OBJECTIVES, "thrift": "min"}, composites=made)
    figures = Page(text).data["figures"]
    assert set(figures) == set(Page(text).data["names"])
    assert figures["bpb"]["unit"] == "bits/byte"
    assert "ratio" in figures["thrift"]["summary"]
    assert "Held-out loss per byte of text" in text.split("What the figures are")[1]


def test_blueprints_stand_in_pieces_that_are_shared_and_read_as_the_same_yaml():
    model = read_experiment("configs/live_phi_tiny.yaml").model.to_json()
    odd = {
        **model,
        "name": "yes",
        "text": ["- x", "#", "", "é\u202e", "a: b", "1e3", "null"],
        "deep": {"a": {}, "b": [[1], []]},
    }
    for blueprint in (model, odd, {"name": "x"}, {**model, "blocks": []}, {**model, "x": [1e-8, 0.1, 1e22, math.inf]}):
        assert YAML(typ="safe").load("".join(pieces(blueprint))) == {"model": blueprint}
    other = {**model, "blocks": [*model["blocks"][:-1], {**model["blocks"][-1], "id": "new"}]}
    assert pieces(other)[:-1] == pieces(model)[:-1]


def test_a_page_shows_blueprints_as_trained():
    blueprint = {"name": "m", "blocks": [{"id": "b0", "ffn": {"hidden": 8}}]}
    grown = {"name": "m", "blocks": [{"id": "b0", "ffn": {"hidden": 9}}]}
    candidates = {"a": Candidate(id="a", index=0, generation=0, blueprint=blueprint)}
    reports = {
        "a": Report(id="a", status=Status.TRAINED, blueprint=grown, metrics={"bpb": 1.0, "flops_per_token": 1.0})
    }
    data = Page(page_of((candidates, reports, ["a"]))).data
    text = "".join(data["pieces"][piece] for piece in data["candidates"][0]["blueprint"])
    assert YAML(typ="safe").load(text) == {"model": grown}


def test_charts_are_such_as_plotly_knows(run):
    one = shown(run, OBJECTIVES, hypervolumes=[0.1, 0.2], survivors=[run[2]])
    for chart in (hypervolume_chart([one, one]), tokens_chart([one, one]), operators_chart(operator_rows(one))):
        assert Figure(chart).to_dict()["data"]


def test_plotly_is_text_until_the_first_chart_is_drawn(run):
    text = page_of(run)
    assert text.count(f'<script type="text/plain" id="plotly">{get_plotlyjs()}</script>') == 1
    scripts = Page(text).scripts
    assert [script.count('$("plotly").textContent') for script in scripts] == [0, 0, 1]


def test_loss_against_tokens_has_a_line_for_the_control_where_there_is_one(run):
    lone = tokens_chart([shown(run, OBJECTIVES)])
    assert [trace["name"] for trace in lone["data"]] == ["trained", "best"]
    spent = Tokens(own=1, lineage=500_000, unique=1)
    beside = [Report(id=f"c~{k}", status=Status.TRAINED, metrics={"bpb": 2.0 + k}, tokens=spent) for k in (0, 1)]
    chart = tokens_chart([shown(run, OBJECTIVES, controls=beside)])
    control = chart["data"][-1]
    assert control["name"] == "without edits"
    assert (control["x"], control["y"][1]) == ([300_000.0, 500_000.0], 2.5)
    copies = {
        f"c{k}": Candidate(id=f"c{k}", index=k, generation=k, blueprint={}, parents=(f"c{k - 1}",) if k else ())
        for k in range(3)
    }
    reports = {
        id: made_report(id, Status.TRAINED, 3.0 - k, 1.0).replace(tokens=Tokens(own=1, lineage=k + 1, unique=1))
        for k, id in enumerate(copies)
    }
    both = tokens_chart([shown(run, OBJECTIVES), shown((copies, reports, ["c2"]), OBJECTIVES, run="control")])
    assert [trace["name"] for trace in both["data"]] == ["trained of run", "best of run", "without edits of control"]
    assert both["data"][-1]["y"] == [3.0, 2.0, 1.0]
    best = both["data"][1]["y"]
    assert best == sorted(best, reverse=True)


def test_operators_are_judged_by_their_children_with_intervals(run):
    candidates, _, finalists = run
    rows = {row["operator"]: row for row in operator_rows(shown(run, OBJECTIVES, survivors=[finalists]))}
    children = [id for id, c in candidates.items() if any(edit.operator == "widen_ffn" for edit in c.edits)]
    row = rows["widen_ffn"]
    assert row["children"] == len(children) == sum(row[name] for name in ("trained", "gated", "failed", "rejected"))
    assert row["survived"] == len(set(children) & set(finalists))
    assert row["in_lineages"] >= row["survived"]
    assert row["share"] == share(row["survived"], row["trained"])
    assert row["exact"] is True
    assert rows["xover"]["exact"] is False
    assert list(rows) == sorted(rows)


def test_a_child_is_compared_with_its_parent_trained_as_long():
    edit = (made_edit("widen_ffn", True),)
    rows = [("root", 0, (), (), 3.0), ("on", 1, ("root",), (), 2.5)]
    rows += [(f"child{k}", 1, ("root",), edit, 2.5 - value) for k, value in enumerate((0.1, 0.2, 0.3))]
    candidates = {
        id: Candidate(id=id, index=k, generation=g, blueprint={}, parents=p, edits=e)
        for k, (id, g, p, e, _) in enumerate(rows)
    }
    reports = {id: made_report(id, Status.TRAINED, bpb, 1.0) for id, *_, bpb in rows}
    (row,) = operator_rows(shown((candidates, reports, ["child2"]), {"bpb": "min"}))
    assert row["bpb - parent's"] == "-0.2 ± 0.2484"  # 4.303 · 0.1 / √3


@pytest.mark.parametrize(
    ("count", "of", "low", "high"), [(0, 10, 0.0, 0.2775), (5, 10, 0.2366, 0.7634), (10, 10, 0.7225, 1.0)]
)
def test_shares_have_wilson_s_interval(count, of, low, high):
    assert wilson(count, of) == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))
    assert share(0, 0) == mean([]) == "-"


def test_probes_stand_beside_chance(run):
    candidates, reports, finalists = run
    good, poor = finalists[:2]
    known = {"recall_chance": 0.1}
    reports = {
        **reports,
        good: reports[good].replace(metrics={"bpb": 1.0, "long_recall": 0.9, **known}, errors={"long_recall": 0.05}),
        poor: reports[poor].replace(metrics={"bpb": 1.0, "long_recall": 0.15, **known}, errors={"long_recall": 0.05}),
    }
    one = shown((candidates, reports, finalists), OBJECTIVES)
    assert {row["candidate"]: row["at chance"] for row in probe_rows(one)} == {good: "no", poor: "yes"}
    assert Figure(probes_chart(one)).to_dict()["data"]
    assert "<h2>Probes</h2>" in report_html([one])
    assert "<h2>Probes</h2>" not in page_of(run)


def test_probes_of_a_large_frontier_are_drawn_of_the_root_and_the_youngest_with_short_names():
    candidates, reports, _ = make_run(5, 8, 5)
    front = [id for id, report in reports.items() if report.status is Status.TRAINED][1:]
    probed = {"bpb": 1.0, "long_recall": 0.9, "recall_chance": 0.1}
    reports = {id: report.replace(metrics=probed) for id, report in reports.items()}
    root, names = "seed-0-9c1e", {id: f"{'x' * 40}-{id}" for id in front}
    candidates = {
        names.get(id, id): one.replace(
            id=names.get(id, id), parents=tuple(names.get(parent, parent) for parent in one.parents)
        )
        for id, one in candidates.items()
    }
    reports = {names.get(id, id): report.replace(id=names.get(id, id)) for id, report in reports.items()}
    one = shown((candidates, reports, list(names.values())), OBJECTIVES)
    assert len(probe_rows(one)) == 1 + len(front) > 20
    chart = probes_chart(one)
    places = [f"long_recall · {id}" for id in (root, *list(names.values())[-7:])]
    assert chart["data"][0]["y"] == chart["layout"]["yaxis"]["tickvals"] == places
    shorter = chart["layout"]["yaxis"]["ticktext"]
    assert len(set(shorter)) == len(shorter)
    assert max(map(len, shorter)) <= 34


def test_probes_by_depth_and_length_are_lines_beside_chance(run):
    candidates, reports, finalists = run
    deep = {f"acc_passkey_len_{n}_depth_{d}": n / 3000 + d / 1000 for n in (512, 2048) for d in (0, 20, 40, 60, 80)}
    deep |= {"acc_passkey": 0.5, "acc_passkey_len_512": 0.5, "chance_passkey": 0.1}
    probed = ["seed-0-9c1e", finalists[0]]
    reports = reports | {
        id: reports[id].replace(metrics={"bpb": 1.0, **deep}, errors={"acc_passkey": 0.02, "acc_passkey_len_512": 0.9})
        for id in probed
    }
    one = shown((candidates, reports, finalists), OBJECTIVES)
    ((title, chart),) = depth_charts(one).items()
    assert title == "passkey by depth and length"
    assert Figure(chart).to_dict()["data"]
    names = [f"{id}, length {length}" for id in probed for length in (512, 2048)]
    assert [trace["name"] for trace in chart["data"]] == [*names, "chance"]
    assert all(trace["x"] == [0, 20, 40, 60, 80] for trace in chart["data"])
    assert chart["data"][-1]["y"] == [0.1] * 5
    told = {(row["figure"], row["at chance"]) for row in probe_rows(one)}
    assert told == {("acc_passkey", "no"), ("acc_passkey_len_512", "yes")}
    assert depth_charts(shown(run, OBJECTIVES)) == {}
    assert title in report_html([one])


def test_several_runs_stand_side_by_side(run):
    other = make_run(3, 5, 3, seed=1)
    reference = {"bpb": 3.0}
    runs = [
        shown(run, OBJECTIVES, run="search", hypervolumes=[0.1, 0.2], reference=reference),
        shown(other, OBJECTIVES, run="control", hypervolumes=[0.1, 0.15], reference={"bpb": 2.0}),
    ]
    text = report_html(runs)
    page = Page(text)
    assert page.outside == []
    assert [one["name"] for one in page.data["runs"]] == ["search", "control"]
    held = page.data["candidates"]
    assert [one["run"] for one in held] == [0] * len(run[0]) + [1] * len(other[0])
    for place, one in enumerate(held):  # parents are found within the run, whose ids may be another's too
        assert all(held[parent]["run"] == one["run"] and parent < place for parent in one["parents"])
    assert "compare shapes alone" in text
    assert "compare shapes alone" not in report_html([runs[0], runs[0]])


def test_a_page_of_a_run_that_goes_on_says_so(run):
    assert 'id="follow"' in page_of(run, ongoing=True)
    assert 'id="follow"' not in page_of(run)


def test_an_empty_run_still_makes_a_page():
    page = report_html([shown(({}, {}, []), {"bpb": "min", "a": "max"})])
    assert Page(page).data["candidates"] == []
    assert page.count(">none<") >= 2
    lone = {"a": Candidate(id="a", index=0, generation=0, blueprint={})}
    assert Page(page_of((lone, {}, []))).data["candidates"][0]["status"] == "proposed"


@pytest.mark.parametrize("values", [(1.7e308, -1.7e308), (5e-324, 5e-324), (1e300, 1e-300), (0.0, -0.0), (math.nan, 1)])
def test_a_page_holds_whatever_numbers_an_axis_can_show(values):
    candidates = {id: Candidate(id=id, index=i, generation=i, blueprint={}) for i, id in enumerate("ab")}
    reports = {
        id: Report(id=id, status=Status.TRAINED, metrics={"x": value, "bpb": value})
        for id, value in zip("ab", values, strict=True)
    }
    data = Page(page_of((candidates, reports, ("a",)), {"x": "min", "bpb": "max"}, hypervolumes=[0.0, 1e300])).data
    place = data["names"].index("x")
    drawable = [value if abs(value) < 1e100 else None for value in values]
    assert [one["values"][place] for one in data["candidates"]] == [
        None if value is None else float(f"{value:.7g}") if abs(value) > 1e-290 else 0 for value in drawable
    ]


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
    def page_with(word):
        edit = Edit(operator=word, target=word, preserves=False)
        candidates = {
            "a": Candidate(id="a", index=0, generation=0, blueprint={"name": word, word: [word]}),
            "b": Candidate(id="b", index=1, generation=1, blueprint={}, parents=("a",), edits=(edit,)),
        }
        metrics = {word: 1.0, "bpb": 1.0}
        reports = {id: Report(id=id, status=Status.TRAINED, metrics=metrics, reason=word) for id in candidates}
        told = {"run": word, "facts": {word: word}, "environment": {word: word}, "evidence": {word: [{word: word}]}}
        return page_of((candidates, reports, ("b",)), {word: "min", "bpb": "max"}, survivors=["b"], **told)

    page = page_with(text)
    shown_page, plain = Page(page), Page(page_with("t"))
    assert sorted(shown_page.seen) == sorted(plain.seen)
    assert shown_page.outside == []
    assert shown_page.scripts[1:] == plain.scripts[1:]
    for chart in shown_page.data["charts"]:
        told = [
            *(tip for trace in chart["data"] for tip in trace["text"]),
            *(trace["name"] for trace in chart["data"] if "name" in trace),
        ]
        assert not [tip for tip in told if "<" in tip]  # which Plotly would read as a tag
    assert not re.search("[\u2028\u202e\x00]", page.replace(shown_page.scripts[1], ""))
    assert not [word for word in words(shown_page.data) if re.search("[\u2028\u202e\x00]", word)]


def words(data):
    """Every text in plain data."""
    if isinstance(data, str):
        return [data]
    inner = [*data, *data.values()] if isinstance(data, dict) else data if isinstance(data, list) else []
    return [word for each in inner for word in words(each)]


def test_a_thousand_candidates_stay_small():
    candidates, reports, finalists = make_run(25, 40, 10)
    model = read_experiment("configs/live_phi_tiny.yaml").model.to_json()
    curve = tuple((step, 2.3456) for step in range(1, 201))
    candidates = {id: one.model_copy(update={"blueprint": model}) for id, one in candidates.items()}
    reports = {id: report.model_copy(update={"losses": curve}) for id, report in reports.items()}
    assert len(candidates) > 1000
    assert len(page_of((candidates, reports, finalists)).encode()) < 15e6


def test_numbers_of_the_frontier_stand_in_its_table(run):
    text = page_of(run)
    assert all(f">{number(run[1][id].metrics['bpb'])}<" in text for id in run[2])
