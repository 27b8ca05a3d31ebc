"""What the page's own scripts compute, where node can run them."""

import json
import shutil
import subprocess
from importlib import resources

import pytest
from made_runs import make_run, shown

from morphogen.report.held import held
from morphogen.report.html import SCRIPTS
from morphogen.report.meanings import meanings, names
from morphogen.report.wording import number

pytestmark = pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")

#: As much of a browser as the scripts need to be read.
BROWSER = """
const texts = { data: DATA };
globalThis.document = { getElementById: (id) => ({ textContent: texts[id] }), title: "t" };
globalThis.sessionStorage = { getItem: () => null, setItem: () => null };
"""


def run_scripts(expression, runs=()):
    """What an expression gives after the page's scripts, but for the one that puts the page together."""
    known = names(runs)
    data = json.dumps(held(runs, known, meanings(runs, known)) | {"charts": []})
    page = resources.files("morphogen.report") / "page"
    source = "\n".join((page / name).read_text(encoding="utf-8") for name in SCRIPTS if name != "page.js")
    code = f"{BROWSER.replace('DATA', json.dumps(data))}\n{source}\nconsole.log(JSON.stringify({expression}));"
    done = subprocess.run(["node", "-"], input=code, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_every_script_can_be_read():
    page = resources.files("morphogen.report") / "page"
    source = "\n".join((page / name).read_text(encoding="utf-8") for name in SCRIPTS)
    done = subprocess.run(["node", "--check", "-"], input=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_numbers_read_as_everywhere_else():
    values = [0, 1, 2.31415, 9999, 12_345, 1.2e6, -3.4e9, 1e18, 0.00012345]
    assert run_scripts(f"{json.dumps(values)}.map(number)") == [number(float(value)) for value in values]


def test_differences_are_minimal_and_give_both_texts():
    before, after = "a\nb\nc\nd\ne\nf", "a\nx\nc\nd\nf\ng"
    found = run_scripts(f"differences({json.dumps(before)}, {json.dumps(after)})")
    assert "\n".join(text for mark, text in found if mark != "+") == before
    assert "\n".join(text for mark, text in found if mark != "-") == after
    assert [mark + text for mark, text in found if mark != " "] == ["-b", "+x", "-e", "+g"]
    assert run_scripts('differences("a", "a").every(([mark]) => mark === " ")') is True


def test_conditions_and_words_filter_and_columns_sort():
    made = make_run(4, 6, 5)
    run = shown(made, {"bpb": "min", "flops_per_token": "min"})
    place = {one.id: k for k, one in enumerate(run.in_order)}
    words = json.dumps(["xover", "generation>=2", "flops_per_token<1.8M"])
    chosen = run_scripts(f"data.candidates.filter((one) => meets(one, {words})).map((one) => one.id)", [run])
    want = [
        one.id
        for one in run.in_order
        if "xover" in one.id and one.generation >= 2 and made[1][one.id].value("flops_per_token") < 1.8e6
    ]
    assert chosen == want != []
    order = run_scripts(
        "(state.by = 'bpb', state.up = false, ordered(data.candidates.map((_, place) => place)))", [run]
    )
    values = {place[id]: float(f"{report.value('bpb'):.7g}") for id, report in made[1].items()}
    assert [values[k] for k in order] == sorted(values.values(), reverse=True)


def test_the_front_of_two_figures_is_what_none_beats():
    made = make_run(4, 6, 5)
    run = shown(made, {"bpb": "min", "flops_per_token": "min"})
    ids = run_scripts(
        "firstFront(data.candidates.map((one, at) => [one, at]), 'bpb', 'flops_per_token').map(([one]) => one.id)",
        [run],
    )
    spots = {id: (report.value("bpb"), report.value("flops_per_token")) for id, report in made[1].items()}
    beaten = {
        id for id, (x, y) in spots.items() if any(a <= x and b <= y and (a, b) != (x, y) for a, b in spots.values())
    }
    assert set(ids) == set(spots) - beaten


def test_a_curve_lies_where_its_tokens_are():
    candidates, reports, finalists = make_run(1, 3, 2)
    some = finalists[0]
    reports = {**reports, some: reports[some].replace(losses=((1, 3.0), (2, 2.5)))}
    run = shown((candidates, reports, finalists), {"bpb": "min"})
    found = run_scripts(f"curve(data.candidates.find((one) => one.id === {json.dumps(some)}))", [run])
    assert found == {"x": [250_000, 300_000], "y": [3.0, 2.5]}  # 100,000 of its own after 200,000
