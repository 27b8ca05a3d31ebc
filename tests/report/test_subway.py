"""The subway map: layout by its promises, SVG by its parts and bytes."""

import os
import re
import subprocess
import sys
from itertools import combinations, pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest
from made_runs import made_edit, made_report, make_run, shown

from morphogen.candidate import Candidate, Edit, Report, Status
from morphogen.report import layout
from morphogen.report.layout import lay_out
from morphogen.report.outlines import lineage_dot, lineage_mermaid
from morphogen.report.png import MOST, png
from morphogen.report.subway import color, lineage_panes, lineage_svg

OBJECTIVES = {"bpb": "min", "recall": "max"}
SVG = "{http://www.w3.org/2000/svg}"
SIZES = {"tiny": (1, 2, 2), "readable": (4, 6, 5), "wide": (12, 40, 8), "deep": (60, 6, 4), "many lines": (4, 60, 40)}


def draw(run):
    return lineage_svg("run", *run, OBJECTIVES)


def of_class(svg, name):
    return [element for element in ElementTree.fromstring(svg).iter() if name in element.get("class", "").split()]


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES.keys())
def test_stations_never_overlap_and_columns_follow_generations(size):
    candidates, _, finalists = make_run(*size)
    plan = lay_out(candidates, finalists)
    assert set(plan.places) == set(candidates)
    by_column = {}
    for id, place in plan.places.items():
        assert place.column == candidates[id].generation
        by_column.setdefault(place.column, []).append(place)
    assert all(left.x < right.x for left, right in zip(plan.columns, plan.columns[1:], strict=False))
    for places in by_column.values():
        for one, other in combinations(places, 2):
            if abs(one.x - other.x) < 1:
                assert abs(one.y - other.y) >= one.half + other.half + 7.0, (one, other)


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES.keys())
def test_every_finalist_has_its_own_lane_and_lines_never_change_sides(size):
    candidates, _, finalists = make_run(*size)
    plan = lay_out(candidates, finalists)
    assert sorted(plan.finalists) == sorted(finalists)
    assert len(set(plan.lanes)) == len(plan.lanes) == len(plan.routes)

    def path(id):
        chain = [id]
        while candidates[chain[-1]].parents:
            chain.append(candidates[chain[-1]].parents[0])
        return chain

    for (high, above), (low, below) in combinations(list(zip(plan.lanes, plan.finalists, strict=True)), 2):
        assert high < low
        rows_above = {plan.places[id].column: plan.places[id].y for id in path(above)}
        rows_below = {plan.places[id].column: plan.places[id].y for id in path(below)}
        assert all(rows_above[c] <= rows_below[c] for c in rows_above.keys() & rows_below.keys())


def test_routes_start_at_the_root_pass_their_stations_and_end_at_their_lane():
    candidates, _, finalists = make_run(4, 6, 5)
    plan = lay_out(candidates, finalists)
    root = plan.places["seed-0-9c1e"]
    for lane, (route, tail) in enumerate(plan.routes):
        numbers = [float(n) for n in re.findall(r"-?\d+\.\d+", route + tail)]
        points = list(zip(numbers[::2], numbers[1::2], strict=True))
        assert points[0][0] == pytest.approx(root.x, abs=0.06)
        assert abs(points[0][1] - root.y) <= root.half + 0.06
        assert points[-1] == pytest.approx((plan.end, plan.lanes[lane]), abs=0.06)
        assert [x for x, _ in points] == sorted(x for x, _ in points)  # never backwards
        station = plan.places[plan.finalists[lane]]
        assert any(
            x == pytest.approx(station.x, abs=0.06) and abs(y - station.y) <= station.half + 0.06 for x, y in points
        )


def test_one_station_per_edit_and_one_line_per_finalist():
    candidates, reports, finalists = make_run(4, 6, 5)
    on_line = {id for id, place in lay_out(candidates, finalists).places.items() if place.on_line}
    svg = draw((candidates, reports, finalists))
    marks = [*of_class(svg, "stop"), *of_class(svg, "crossing")]
    stations = [e for e in marks if e.get("data-id") and e.tag != f"{SVG}text"]
    assert len(stations) == sum(max(1, len(candidates[id].edits)) for id in on_line)
    named = [e.text for e in of_class(svg, "name") if "halo" not in e.get("class").split()]
    wanted = [edit.operator for id in on_line for edit in candidates[id].edits]
    wanted += ["copy" if candidates[id].parents else "seed" for id in on_line if not candidates[id].edits]
    assert sorted(named) == sorted(wanted)
    for lane in range(len(finalists)):
        lines = [e for e in of_class(svg, "route") if e.get("stroke") == color(lane)]
        assert len(lines) == 2  # with edits, then on to the end as it is
    assert len({color(lane) for lane in range(40)}) == 40


def test_tooltips_tell_operator_and_before_and_after():
    svg = draw(make_run(4, 6, 5))
    titles = [element.text for element in ElementTree.fromstring(svg).iter(f"{SVG}title")]
    assert any("widen_ffn b0 (keeps the function)" in t for t in titles)
    assert any('blocks.b0.ffn.hidden: 64 → {"a": "<&>", "b": [1, 2]}' in t for t in titles)
    assert any('gated: ppl 900 > 500 & "gate" <x>' in t for t in titles)


def test_terminals_show_objectives_with_the_best_in_bold():
    reports = {"a": made_report("a", Status.TRAINED, 2.5, 1.0), "b": made_report("b", Status.TRAINED, 2.25, 1.0)}
    candidates = {id: Candidate(id=id, index=i, generation=0, blueprint={}) for i, id in enumerate("ab")}
    svg = lineage_svg("two roots", candidates, reports, ["a", "b"], OBJECTIVES)
    assert [e.text for e in of_class(svg, "end")] == ["a", "b"]
    assert [e.text for e in of_class(svg, "value")] == ["2.5", "-", "2.25", "-"]
    assert [e.text for e in of_class(svg, "best")] == ["2.25"]
    assert {"bpb ↓", "recall ↑"} <= {e.text for e in of_class(svg, "head")}


def crossed():
    """seed -> a, b, c; x = a crossed with b survives; y = a crossed with the dead end c survives."""
    rows = [("seed", 0, 0, ()), ("a", 1, 1, ("seed",)), ("b", 2, 1, ("seed",)), ("c", 3, 1, ("seed",))]
    rows += [("x", 4, 2, ("a", "b")), ("y", 5, 2, ("a", "c")), ("lost", 6, 2, ("a",))]
    candidates = {
        id: Candidate(id=id, index=i, generation=g, blueprint={}, parents=p, edits=(made_edit(f"op_{id}", True),))
        for id, i, g, p in rows
    }
    return candidates, {id: made_report(id, Status.TRAINED, 2.0, 1.0) for id in candidates}, ["b", "x", "y"]


def test_crossovers_are_transfers_in_the_colour_of_the_giving_line():
    candidates, reports, finalists = crossed()
    plan = lay_out(candidates, finalists)
    lanes = {(parent, child): lane for parent, child, lane, _ in plan.transfers}
    assert lanes == {("b", "x"): plan.finalists.index("b"), ("c", "y"): None}
    assert {child: giver for child, giver, _ in plan.twigs} == {"c": True, "lost": False}
    svg = draw((candidates, reports, finalists))
    titles = [e.text for e in ElementTree.fromstring(svg).iter(f"{SVG}title")]
    assert "genes of b enter x" in titles
    assert len(of_class(svg, "dead-giver")) == 2  # the mark and its legend


def test_marks_of_those_that_led_nowhere_follow_their_status():
    candidates, reports, finalists = crossed()
    for status, name in [
        (Status.FAILED, "cross"),
        (Status.REJECTED, "cross"),
        (Status.GATED, "gated"),
        (Status.TRAINED, "dead"),
    ]:
        reports["lost"] = Report(id="lost", status=status)
        assert len(of_class(draw((candidates, reports, finalists)), name)) == 2
    del reports["lost"]  # proposed, nothing known yet
    assert len(of_class(draw((candidates, reports, finalists)), "dead")) == 2


@pytest.mark.parametrize(
    "run",
    [
        ({}, {}, []),
        (*make_run(2, 3, 2)[:2], []),
        (*make_run(0, 0, 1)[:2], ["seed-0-9c1e"]),
        (*make_run(2, 3, 2)[:2], ["no-such-candidate"]),
        ({"orphan": Candidate(id="orphan", index=3, generation=4, blueprint={}, parents=("gone",))}, {}, ["orphan"]),
        (
            {
                id: Candidate(id=id, index=i, generation=0, blueprint={}, parents=("a",) if i else ())
                for i, id in enumerate("ab")
            },
            {},
            ["b"],
        ),
    ],
    ids=[
        "nothing",
        "no finalists",
        "only the seed",
        "unknown finalist",
        "missing parent",
        "child in its parent's generation",
    ],
)
def test_odd_lineages_still_draw(run):
    ElementTree.fromstring(draw(run))
    assert lineage_dot(*run).endswith("}\n")


def test_hostile_text_stays_valid_xml():
    hostile = 'x"><script>&\x00\x1b\ud800\u202e'
    edit = Edit(operator=hostile, target=hostile, preserves=False)
    root = Candidate(id="root", index=0, generation=0, blueprint={})
    child = Candidate(id="child", index=1, generation=1, blueprint={}, parents=("root",), edits=(edit,))
    svg = lineage_svg(f"</svg>{hostile}", {"root": root, "child": child}, {}, ["child"], {'<"&': "min"})
    assert not of_class(svg, "script")
    assert [e.text for e in of_class(svg, "title")] == ['</svg>x"><script>&' + "\ufffd" * 4]


def test_bytes_do_not_depend_on_insertion_order_or_hash_seed():
    candidates, reports, finalists = make_run(6, 12, 5)
    want = draw((candidates, reports, finalists))
    backwards = (dict(reversed(candidates.items())), dict(reversed(reports.items())), finalists[::-1])
    assert draw(backwards) == want
    assert lineage_dot(*backwards) == lineage_dot(candidates, reports, finalists)
    code = (
        "import sys; from made_runs import make_run; from morphogen.report.subway import lineage_svg;"
        "sys.stdout.buffer.write(lineage_svg('run', *make_run(6, 12, 5), {'bpb': 'min', 'recall': 'max'}).encode())"
    )
    places = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    for seed in ("1", "2"):
        env = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": places}
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, check=True)
        assert done.stdout.decode() == want


def test_large_lineages_leave_names_to_tooltips_and_stay_valid(monkeypatch):
    monkeypatch.setattr(layout, "NAMED", 30)
    small, large = draw(make_run(4, 6, 5)), draw(make_run(30, 60, 10))
    assert of_class(small, "name")
    assert not of_class(large, "name")
    assert len(of_class(large, "twig")) > 1000


def test_a_picture_needs_nothing_from_outside_and_follows_the_theme():
    svg = draw(make_run(3, 6, 3))
    assert "prefers-color-scheme:dark" in svg
    assert not re.search(r"(href|src|url\(|@import)", svg)
    assert re.findall(r"https?://[^\"]*", svg) == ["http://www.w3.org/2000/svg"]


def test_a_crossover_has_a_mark_that_no_shared_edit_has():
    candidates, reports, finalists = make_run(12, 25, 12)
    plan, svg = lay_out(candidates, finalists), draw((candidates, reports, finalists))
    crossed = {child for _, child, _, _ in plan.transfers if plan.places[child].on_line}
    marks = [e for e in of_class(svg, "crossing") if e.get("data-id")]
    assert sorted(e.get("data-id") for e in marks) == sorted(crossed)
    assert {e.tag for e in marks} == {f"{SVG}path"}
    assert {e.tag for e in of_class(svg, "stop") if e.get("data-id") and e.tag != f"{SVG}text"} == {f"{SVG}rect"}
    for mark in marks:  # it stands at the edit that crossed, where the other parent's genes arrive
        x = float(re.match(r"M([\d.]+) ", mark.get("d"))[1])
        arrivals = {
            float(path.rpartition("H")[2]) for _, child, _, path in plan.transfers if child == mark.get("data-id")
        }
        assert all(arrival == pytest.approx(x, abs=0.06) for arrival in arrivals)


@pytest.mark.parametrize("size", [(12, 25, 12), (24, 12, 8), (4, 75, 20)])
def test_three_hundred_candidates_have_named_stations_and_their_ends_stay_in_view(size):
    run = make_run(*size)
    plan = lay_out(*run[::2])
    assert plan.scale.labels
    assert plan.end < 190 * len(plan.columns)
    lines, ends, legend = lineage_panes(shown(run, OBJECTIVES))
    for part in (lines, ends, f"<p>{legend}</p>"):
        ElementTree.fromstring(part)
    assert [e.text for e in of_class(ends, "end")] == list(plan.finalists)
    assert float(ElementTree.fromstring(ends).get("width")) < 480
    assert not of_class(lines, "end")
    assert of_class(lines, "name")


def test_slanted_names_do_not_run_into_one_another():
    candidates, _, finalists = make_run(12, 25, 12)
    plan = lay_out(candidates, finalists)
    assert plan.scale.slant
    for place in plan.places.values():
        if place.on_line:
            xs = [*place.stops, place.x]
            assert all(right - left >= 20 for left, right in pairwise(xs))


def test_a_legend_fits_its_picture():
    for size in SIZES.values():
        root = ElementTree.fromstring(draw(make_run(*size)))
        width, height = float(root.get("width")), float(root.get("height"))
        for group in root.iter(f"{SVG}g"):
            if (text := group.find(f"{SVG}text")) is not None and text.get("class") == "dim":
                x, y = map(float, re.findall(r"[\d.]+", group.get("transform")))
                assert x + 14 + 6 * len(text.text) < width
                assert y < height


def test_a_png_is_the_picture_with_letters_of_its_own_and_known_as_ours():
    data = png(draw(make_run(2, 3, 2)))
    assert data.startswith(b"\x89PNG")
    assert b"a morphogen lineage" in data[:200]
    width, height = (int.from_bytes(data[at : at + 4], "big") for at in (16, 20))
    assert width * height <= MOST
    assert len(data) > 20_000  # with its words


def test_mermaid_text_names_every_candidate_and_edge_and_fades_the_ends():
    candidates, reports, finalists = crossed()
    text = lineage_mermaid(candidates, reports, finalists)
    assert text.startswith("%% a morphogen lineage\nflowchart LR\n")
    assert all(f'"{id}"' in text for id in candidates)
    assert '  n1 -->|"op_x"| n4\n  n2 -.->|"op_x"| n4\n' in text
    assert 'n4{{"x"}}:::finalist' in text
    assert 'n6("lost"):::faded' in text
    assert 'n1("a")\n' in text
    tricky = candidates["a"].replace(edits=(made_edit('--> "x" & <b>;end', True),))
    label = lineage_mermaid({**candidates, "a": tricky}, reports, finalists).splitlines()
    assert sum("#34;x#34;" in line and line.count('"') == 2 for line in label) == 1


def test_dot_text_names_every_candidate_and_edge():
    candidates, reports, finalists = crossed()
    dot = lineage_dot(candidates, reports, finalists)
    assert all(f"\t{id} [label={id} " in dot for id in candidates)
    assert "\ta -> x [label=op_x]\n" in dot
    assert "\tb -> x [label=op_x style=dashed]\n" in dot
