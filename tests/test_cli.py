"""The command line: what each command prints, what it leaves behind, and its exit codes."""

import io
import json
import os
import pkgutil
import re
import runpy
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from morphogen import __version__
from morphogen.blueprint.schema import Blueprint
from morphogen.blueprint.yaml import read
from morphogen.cli import commands
from morphogen.cli.app import app
from morphogen.cli.commands import FAMILIES, app_with, name_of
from morphogen.cli.commands.known import SCHEMAS
from morphogen.cli.console import Lines, observer_for
from morphogen.cli.drawing import told_apart
from morphogen.cli.explain import forecast
from morphogen.cli.launch import execute
from morphogen.cli.live import Live
from morphogen.cli.options import with_options
from morphogen.cli.status import Settings, evolution_of
from morphogen.cost import costs
from morphogen.data.prepare import prepare
from morphogen.errors import InputError, RunError
from morphogen.experiment import Experiment
from morphogen.knobs import knobs
from morphogen.network import LanguageModel, build
from morphogen.notices import Began, Measured, Notice
from morphogen.report.wording import duration
from morphogen.run import Run, evolve, load
from morphogen.store.frontier import Frontier
from morphogen.store.ledger import Start
from tiny import Cli, run_live, untimed, write_config

ROOT = Path(__file__).parent.parent


pytestmark = [pytest.mark.usefixtures("own_cache"), pytest.mark.trained_before]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_config(tmp_path_factory.mktemp("cli"))


#: Of the finished run, how many candidates its page had been told of whenever one was measured in a later generation.
PAGES: list[int] = []


@pytest.fixture(scope="module")
def finished(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "finished"

    def look(notice: Notice) -> None:
        if isinstance(notice, Measured) and notice.candidate.generation and notice.position > 1:
            page = (folder / "report.html").read_text()
            assert 'id="follow"' in page
            PAGES.append(page.count('"status":"trained"'))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("morphogen.pages.SECONDS", 0.0)
        patch.setattr("morphogen.pages.SHARE", 1e9)
        evolve(load(config), folder, observer=look)
    return folder


def test_the_page_is_written_again_while_a_generation_is_open(finished: Path) -> None:
    assert sorted(set(PAGES)) == PAGES
    assert len(PAGES) >= 2


def test_python_runs_the_package_as_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["morphogen", "--version"])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_module("morphogen", run_name="__main__")
    assert capsys.readouterr().out == f"morphogen {__version__}\n"


def test_alone_it_prints_help_and_with_version_its_version(cli: Cli) -> None:
    assert cli() == cli("--help")
    assert cli("--version") == (0, f"morphogen {__version__}\n", "")
    code, out, _ = cli("--show-completion", "bash")
    assert code == 0
    assert "_MORPHOGEN_COMPLETE" in out


def test_help_names_every_command(cli: Cli) -> None:
    code, out, _ = cli("--help")
    assert code == 0
    registered = [name_of(command) for command in app_with().registered_commands]
    assert registered[:5] == ["run", "train", "generate", "validate", "explain"]
    files = {module.name for module in pkgutil.iter_modules(commands.__path__)}
    assert set(FAMILIES) == files, "a new file of commands is entered in FAMILIES of cli/commands/__init__.py"
    assert [line.split()[0] for line in out.partition("Commands:\n")[2].splitlines()] == registered
    for name in registered:
        assert re.search(rf"^  {name} +\w", out, re.M)
        told = f"morphogen {name}" in (ROOT / "docs" / "commands.md").read_text()
        assert told, f"add a line for `morphogen {name}` to docs/commands.md"


def test_a_command_is_known_by_being_written(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "registered_commands", list(app_with().registered_commands))

    def another() -> None:
        """Says hello."""
        print("hello")

    another.__module__ = f"{commands.__name__}.runs"
    app.command()(another)
    assert cli("another") == (0, "hello\n", "")
    names = [name_of(command) for command in app_with().registered_commands]
    assert names[names.index("another") + 1] == "ask"  # behind those of its file


def test_validate_tells_of_good_files_and_fails_on_any_bad_one(cli: Cli, config: Path, tmp_path: Path) -> None:
    assert cli("validate", config)[:2] == (0, f"{config}  ok, 6,720 parameters\n")
    bad = tmp_path / "bad.yaml"
    bad.write_text(config.read_text().replace("heads: 2", "heads: two").replace("lr:", "lrr:"))
    code, out, err = cli("validate", config, bad)
    assert code == 2
    assert f"{config}  ok" in out
    assert err.count(f"{bad}:") == 2
    assert f"{bad}:7:9 train.lrr: unknown field, did you mean 'lr'?" in err


def test_a_run_tells_once_of_what_has_no_effect(cli: Cli, config: Path, tmp_path: Path) -> None:
    odd = config.with_name("odd.yaml")
    odd.write_text(config.read_text().replace("topk_keep: 2", "topk_keep: 2, eta: 4"))
    code, out, err = cli("run", odd, "--out", tmp_path / "run", "--dry-run", "--json")
    assert code == 0
    assert json.loads(out)["candidates"] == 7
    assert err.count("note: ") == 1
    assert f"note: {odd}:15:" in err
    assert "evolution.eta: is 4, but has no effect with rungs 'fixed'" in err


def test_a_mistake_of_the_data_has_its_place(cli: Cli, config: Path) -> None:
    bad = config.with_name("bad.yaml")
    bad.write_text(config.read_text().replace("tokenizer: bytes", "tokenizer: nobody/nothing-at-all"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        code, _, err = cli("explain", bad)
    assert code == 2
    assert f"{bad}:9:3 data.tokenizer" in err


def test_explain_counts_and_estimates(cli: Cli, config: Path, tmp_path: Path) -> None:
    code, out, _ = cli("explain", config, "--json")
    told = json.loads(out)
    assert code == 0
    assert told["params"] == 6720
    assert told["candidates"] == 7
    assert told["tokens_each"] == 384
    speed = told["measured"]["tokens_per_second"]
    assert told["estimated_seconds"] == pytest.approx(7 * (384 + 128 / 3) / speed, rel=0.05, abs=0.06)
    code, out, _ = cli("explain", config)
    assert "estimate" in out
    code, out, _ = cli("explain", config, "--no-measure")
    assert "estimate" not in out
    assert re.search(r"^flops_per_token +[0-9,]+ forward FLOPs/token$", out, re.M)
    much = tmp_path / "much.yaml"
    much.write_text(config.read_text().replace("eval_tokens: 128", "eval_tokens: 1000000"))
    asked = prepare(read(much).parse(Experiment).data).measured_tokens()
    for command in (("explain", much, "--no-measure"), ("run", much, "--dry-run", "--out", tmp_path / "new")):
        told = json.loads(cli(*command, "--json")[1])
        assert 0 < told["eval_tokens_each"] == sum(asked.values()) < 100_000
    code, out, _ = cli("explain", ROOT / "configs" / "live_smoke.yaml", "--no-measure", "--json")
    assert json.loads(out)["graph_entropy"] == 2.2516  # six branches, of which two are alike: log2(6) - 2/6
    assert "may_grow_to" not in json.loads(out)
    grows = ROOT / "configs" / "growth_depth_small.yaml"
    told = json.loads(cli("explain", grows, "--no-measure", "--json")[1])
    assert (told["layers"], told["may_grow_to"]["layers"], told["may_grow_to"]["bounded"]) == (3, 7, True)
    assert told["params"] < told["may_grow_to"]["params"]
    out = cli("explain", grows, "--no-measure")[1]
    assert re.search(r"^may_grow_to +367,552 parameters, .* 7 blocks of 64 channels \(by 2 growths in 468 ", out, re.M)


def test_explain_counts_what_successive_halving_trains(cli: Cli, config: Path, tmp_path: Path) -> None:
    halving = tmp_path / "halving.yaml"
    rungs = "rungs: asha, eta: 2, min_tokens: 128, max_tokens: 512"
    halving.write_text(config.read_text().replace("rung1_tokens: 128, rung2_tokens: 256", rungs))
    code, out, _ = cli("explain", halving, "--no-measure", "--json")
    assert code == 0
    assert json.loads(out)["tokens_each"] == 512
    planned = forecast(read(halving).parse(Experiment))
    # the root alone, then 3, 1 and 1 of each of two generations' three offspring, on 128, 128 and 256 more tokens
    assert planned.tokens == 512 + 2 * (3 * 128 + 1 * 128 + 1 * 256)
    assert planned.measurements == 3 + 2 * 5
    halving.write_text(halving.read_text().replace("survivors: rest", "survivors: train"))
    on = forecast(read(halving).parse(Experiment))  # with the root 4, 2 and 1; with two survivors 5, 2 and 1
    assert on.tokens == 512 + (4 * 128 + 2 * 128 + 256) + (5 * 128 + 2 * 128 + 256)
    assert (on.candidates, on.measurements) == (10, 3 + 7 + 8)


def test_diff_names_what_differs_by_gene(cli: Cli, config: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.yaml"
    other.write_text(config.read_text().replace("hidden: 32", "hidden: 48").replace("lr: 0.01", "lr: 0.02"))
    code, out, _ = cli("diff", config, other)
    assert code == 0
    assert out.splitlines()[:2] == ["blocks.b0.ffn.hidden: 32 -> 48", "train.lr: 0.01 -> 0.02"]
    assert "different architectures" in out
    told = json.loads(cli("diff", config, config, "--json")[1])
    assert told == {"changes": [], "others": [], "distance": 0.0, "same": True}


@pytest.mark.parametrize("which", SCHEMAS)
def test_schemas_are_json(cli: Cli, which: str) -> None:
    code, out, _ = cli("schema", which)
    assert code == 0
    assert json.loads(out)["type"] == "object"


def test_operators_with_and_without_an_experiment(cli: Cli, config: Path) -> None:
    rows: list[dict[str, Any]] = json.loads(cli("operators", config, "--json")[1])
    assert {row["name"]: row["applies"] for row in rows}["widen_ffn"] is True
    plain = json.loads(cli("operators", "--json")[1])
    assert [row["name"] for row in plain] == [row["name"] for row in rows]
    assert "exact" in cli("operators")[1]
    assert next(row for row in plain if row["name"] == "toggle_precision")["weight"] == 0.0
    assert next(row for row in plain if row["name"] == "graph_jitter")["preserves"] is None


def test_status_and_lineage_of_a_finished_run(cli: Cli, config: Path, finished: Path, tmp_path: Path) -> None:
    told = json.loads(cli("status", finished, "--json")[1])
    assert told["state"] == "finished"
    assert told["candidates"] == {"trained": 7, "pending": 0}
    frontier = Run(finished, load(config), 0).frontier
    bpb = min((entry.metrics["bpb"], entry.id) for entry in frontier.candidates)
    assert told["best"]["bpb"] == {"value": bpb[0], "id": bpb[1]}
    assert "seconds_left" not in told
    assert f"best bpb  {bpb[0]:.4g} ({bpb[1]})" in re.sub(" {2,}", "  ", cli("status", finished)[1])
    code, out, _ = cli("lineage", finished)
    assert code == 0
    assert out.startswith("root-0-")
    assert json.loads(cli("lineage", finished, "--json")[1])["run"] == "tiny-0"
    for name, start in (("a.svg", b"<svg"), ("a.dot", b"digraph"), ("a.mmd", b"flowchart"), ("a.png", b"PNG")):
        for _ in range(2):  # what morphogen wrote is written again
            assert cli("lineage", finished, "--out", tmp_path / name)[0] == 0
        assert start in (tmp_path / name).read_bytes()[:200]
        whatever = tmp_path / f"other-{name}"
        whatever.write_bytes(b"mine")
        assert cli("lineage", finished, "--out", whatever)[0] == 2
        assert whatever.read_bytes() == b"mine"


def test_a_lineage_is_drawn_by_a_script_of_its_own_from_its_file(finished: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.json"
    copy.write_bytes((finished / "lineage.json").read_bytes())
    out = tmp_path / "map.svg"
    command = [sys.executable, str(ROOT / "scripts" / "render_lineage_subway.py"), str(copy), "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"wrote {out}\n"), done.stderr
    assert 'class="subway"' in out.read_text()


def test_a_report_of_a_finished_run_is_the_one_that_the_run_wrote(cli: Cli, finished: Path, tmp_path: Path) -> None:
    before = (finished / "report.html").read_bytes()
    assert cli("report", finished) == (0, f"wrote {finished / 'report.html'}\n", "")
    assert (finished / "report.html").read_bytes() == before
    assert b'id="follow"' not in before
    ablated = {"id": "x", "ablation": "ssm_off", "start": "scratch", "applied": True, "values": [2.1], "usual": [2.0]}
    told = {"schema_version": 1, "metric": "bpb", "direction": "min", "split": "eval", "tokens": 9, "seeds": [0]}
    told |= {"run": "tiny-0", "level": 0.95, "ablations": [ablated]}
    (finished.parent / "ablation_report.json").write_text(json.dumps(told))
    place = finished / "ablation.json"
    for found, shown in ((told, True), (told | {"ablations": []}, False)):
        place.write_text(json.dumps(found))
        assert cli("report", finished, "--out", tmp_path / "page.html")[0] == 0
        assert ("ssm_off" in (tmp_path / "page.html").read_text()) is shown
    place.write_text("{}")
    assert "ablation.json: not a ablation report" in cli("report", finished)[2]
    place.unlink()


def test_runs_are_reported_side_by_side_where_it_is_asked_for(
    cli: Cli, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda address: opened.append(address) or True)
    monkeypatch.chdir(tmp_path)
    assert cli("report", finished, finished, "--open") == (0, "wrote report.html\n", "")
    assert opened == [(tmp_path / "report.html").as_uri()]
    told = (tmp_path / "report.html").read_text()
    assert all(told.count(f"{finished} ({k})") > 3 for k in (1, 2))
    assert told_apart([finished, tmp_path / "b" / "control"]) == ["finished", "control"]
    assert told_apart([tmp_path / "a" / "x", tmp_path / "b" / "x"]) == [f"{tmp_path}/a/x", f"{tmp_path}/b/x"]
    monkeypatch.setattr("webbrowser.open", lambda address: False)
    assert "no browser" in cli("report", finished, "--open", "--out", "a.html")[2]
    (tmp_path / "notes.html").write_text("<p>mine</p>")
    code, _, told = cli("report", finished, "--out", "notes.html")
    assert (code, "no report.html of morphogen's" in told) == (2, True)
    assert cli("report", finished, "--out", finished / "run.log")[0] == 2
    assert cli("report", finished, "--out", finished / "checkpoints" / "x.html")[0] == 2


def test_status_of_a_run_that_was_cut_off(cli: Cli, config: Path, tmp_path: Path) -> None:
    meanwhile = []

    def stop(notice: object) -> None:
        if type(notice).__name__ == "Measured":
            meanwhile.append(json.loads(cli("status", tmp_path / "run", "--json")[1]))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evolve(load(config), tmp_path / "run", observer=stop)
    told = json.loads(cli("status", tmp_path / "run", "--json")[1])
    assert told["state"] == "interrupted; --resume goes on"
    assert told["generation"] == 0
    assert meanwhile[0]["state"].startswith(f"running (process {os.getpid()} on ")
    assert meanwhile[0]["seconds_left"] > 0
    assert (meanwhile[0]["pid"], meanwhile[0]["host"]) == (os.getpid(), socket.gethostname())
    assert meanwhile[0]["candidates"] == {"trained": 1, "pending": 0}


def test_status_of_a_run_that_an_error_ended_says_which(cli: Cli, config: Path, tmp_path: Path) -> None:
    experiment = load(config).with_train({"ppl_stop_threshold": 1.0})
    with pytest.raises(RunError, match="was not trained"):
        evolve(experiment, tmp_path / "run")
    state = json.loads(cli("status", tmp_path / "run", "--json")[1])["state"]
    assert state.startswith("stopped: the root root-0-")
    assert state.endswith("after rung 1, allowed 1; --resume tries again")


def test_status_help_and_reports_load_nothing_heavy(finished: Path) -> None:
    heavy = {"torch", "numpy", "scipy", "pymoo", "transformers", "datasets", "pandas"}
    unneeded = heavy | {"rich", "morphogen.notices", "morphogen.experiment", "morphogen.cli.commands.run"}
    commands = ((["status", str(finished)], unneeded), (["--help"], heavy), (["report", str(finished)], {"torch"}))
    look = (
        f"import sys; from morphogen.cli import main\nfor command, wrong in {commands}:\n"
        "    try: main(command)\n"
        "    except SystemExit as end: assert not end.code, command\n"
        "    assert not wrong & set(sys.modules), (command, wrong & set(sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "text",
    [
        "data: {}\nevolution:\n  generations: 9\n\n# a note\n  population: 3\ntrain: {}\n",
        "evolution: {generations: 9, population: 3}\n",
        "train: &a {generations: 9, population: 3}\nevolution: *a\n",
        "evolution:\n  generations: 9\n  population: 3",
    ],
)
def test_settings_that_were_changed_are_read_in_any_style(text: str, tmp_path: Path) -> None:
    begun = Start(run="a", seed=0, experiment={"evolution": {"generations": 1, "population": 2, "objectives": {}}})
    assert evolution_of(tmp_path, begun).generations == 1
    (tmp_path / "experiment.yaml").write_text(text)
    assert evolution_of(tmp_path, begun) == Settings(generations=9, population=3, objectives={})


def test_a_winner_is_built_with_its_weights(finished: Path, config: Path) -> None:
    frontier = Run(finished, load(config), 0).frontier
    winner = frontier[frontier.candidates[0].id]
    assert isinstance(winner.blueprint, Blueprint)
    model = build(winner.blueprint)
    model.load_state_dict(winner.weights())
    assert sum(tensor.numel() for tensor in model.parameters()) == winner.costs["params"]
    with pytest.raises(InputError, match="did you mean"):
        frontier[winner.id[:-1]]
    assert Frontier.read(finished / "frontier.json").model_dump(mode="json")["candidates"][0]["id"]
    assert frontier.to_json() == (finished / "frontier.json").read_text()


def test_a_dry_run_says_what_it_would_do_and_writes_nothing(cli: Cli, config: Path, tmp_path: Path) -> None:
    code, out, _ = cli("run", config, "--out", tmp_path / "run", "--dry-run", "--json", "--steps", 7)
    assert code == 0
    told = json.loads(out)
    assert told["steps_each"] == 7
    assert told["vocab"] == 257
    assert list(tmp_path.iterdir()) == []


def test_json_lines_and_plain_lines(cli: Cli, config: Path, tmp_path: Path) -> None:
    args = ("run", config, "--generations", 1, "--steps", 2, "--out")
    code, out, _ = cli(*args, tmp_path / "a", "--json")
    assert code == 0
    told = [json.loads(line) for line in out.splitlines()]
    kinds = [line["event"] for line in told]
    assert kinds[0] == "began"
    assert kinds[-1] == "ended"
    assert kinds.count("measured") == 4
    assert kinds.count("step") == 8
    code, out, _ = cli(*args, tmp_path / "b")
    assert code == 0
    assert "generation 1 [3/3]" in out
    assert "bpb" in out
    assert str(tmp_path / "b" / "lineage.svg") in out
    assert "\x1b" not in out
    assert untimed(tmp_path / "a" / "lineage.json") == untimed(tmp_path / "b" / "lineage.json")


def test_a_terminal_shows_bars_and_the_frontier(config: Path, tmp_path: Path) -> None:
    with (tmp_path / "screen").open("w+") as screen:
        console = Console(file=screen, force_terminal=True, width=160)
        observer = observer_for(console, as_json=False)
        assert isinstance(observer, Live)
        evolve(load(config), tmp_path / "run", generations=0, observer=observer)
        screen.seek(0)
        text = screen.read()
    assert "candidates" in text
    assert "flops_per_token" in text
    assert "lineage.svg" in text


def test_the_time_left_is_that_of_the_candidates_left(config: Path, tmp_path: Path) -> None:
    now = iter(float(second) for second in range(10_000))
    said: list[str] = []
    evolve(load(config), tmp_path / "run", generations=1, observer=Lines(said.append, lambda: next(now)))
    measured = [line for line in said if "trained" in line]
    assert "left" in measured[0]
    assert "left" not in measured[-1]
    assert [duration(s) for s in (5, 600, 9000, 400_000)] == ["5 s", "10 min", "2.5 h", "4.6 days"]


def test_a_candidate_counts_once_however_many_rungs_it_trains(config: Path, tmp_path: Path) -> None:
    experiment = load(config)
    rungs = {"rungs": "asha", "eta": 2, "min_tokens": 128, "max_tokens": 512, "generations": 1, "population": 4}
    evolution = type(experiment.evolution).model_validate({**dict(experiment.evolution), **rungs})
    halving = experiment.model_copy(update={"evolution": evolution})
    run, measured = tmp_path / "run", list[Measured]()

    def watched(cut_off: bool) -> None:
        bars, lines = Live(Console(file=io.StringIO(), force_terminal=True)), Lines(lambda line: None)

        def observer(notice: Notice) -> None:
            bars(notice)
            lines(notice)
            if isinstance(notice, Began | Measured):
                measured.extend([notice] if isinstance(notice, Measured) else [])
                counted = len({one.candidate.id for one in measured})
                assert bars.bars.tasks[0].completed == lines.done == counted
                assert bars.bars.tasks[0].total == 5
                if cut_off and isinstance(notice, Measured) and notice.again and notice.candidate.generation == 1:
                    bars.stop()
                    raise KeyboardInterrupt

        evolve(halving, run, observer=observer, resume=True)

    with pytest.raises(KeyboardInterrupt):
        watched(cut_off=True)
    watched(cut_off=False)
    assert sorted(one.again for one in measured) == 5 * [False] + 5 * [True]


def test_the_script_runs_as_its_help_says(config: Path, tmp_path: Path) -> None:
    """--out ending in .json: the frontier there, the run in the folder of that name beside it."""
    out = tmp_path / "frontier_tiny.json"
    args = [str(config), "--generations", "1", "--steps", "3", "--device", "cpu", "--out", str(out)]
    args += ["--checkpoint-dir", str(tmp_path / "weights"), "--eval-batches", "1", "--seed", "5"]
    args += [
        "--lineage-out",
        str(tmp_path / "lineage.json"),
        "--mutation-weight",
        "widen_ffn=3",
        "--mutation-steps",
        "1",
    ]
    args += ["--score-weight-ppl", "1.0", "--score-weight-novelty", "0.5", "--cleanup-old-checkpoints"]
    with pytest.raises(SystemExit) as end:
        execute(run_live().app, "run_live.py", args)
    assert end.value.code == 0
    run = tmp_path / "frontier_tiny"
    assert out.read_bytes() == (run / "frontier.json").read_bytes()
    assert (tmp_path / "lineage.json").read_bytes() == (run / "lineage.json").read_bytes()
    assert (tmp_path / "frontier_tiny.log").read_bytes() == (run / "run.log").read_bytes()
    assert list((tmp_path / "weights").glob("*.safetensors"))
    resolved = load(run / "experiment.yaml")
    assert resolved.evolution.parent_selection == "weighted"
    assert resolved.evolution.weights == {"ppl": 1.0, "novelty": 0.5}
    assert resolved.evolution.mutation_weights == {"widen_ffn": 3.0}
    assert resolved.data.eval_tokens == 128
    assert {node["steps"] for node in json.loads((run / "lineage.json").read_bytes())["nodes"]} == {3}


@pytest.mark.parametrize(
    ("written", "flag", "chosen"),
    [
        ("", None, "weighted"),
        ("lexicase", None, "lexicase"),
        ("", "lexicase", "lexicase"),
        ("lexicase", "weighted", "weighted"),
    ],
)
def test_score_weights_stand_beside_any_parent_selection(written: str, flag: str | None, chosen: str) -> None:
    plain = {"model": {"emb": {"dim": 8}, "blocks": [{"ffn": {"kind": "dense", "hidden": 8}}]}}
    plain |= {"evolution": {"parent_selection": written}} if written else {}
    experiment = Experiment.model_validate(plain)
    made = with_options(experiment, parent_selection=flag, score_weights={"ppl": 2.0})
    assert made.evolution.parent_selection == chosen
    assert made.evolution.weights == {"ppl": 2.0}
    assert not [remark for remark in knobs(made) if "weights" in remark.loc]


def test_the_script_is_a_program_of_its_own() -> None:
    command = [sys.executable, str(ROOT / "scripts" / "run_live.py"), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for flag in ("--steps", "--lineage-out", "--parent-selection", "--score-weight-long-recall", "--mutation-weight"):
        assert flag in done.stdout


@pytest.mark.parametrize(("steps", "rungs"), [(1, (0, 1)), (2, (1, 1)), (40, (13, 27)), (5000, (1667, 3333))])
def test_steps_are_shared_out_over_both_rungs(config: Path, steps: int, rungs: tuple[int, int]) -> None:
    experiment = with_options(read(config).parse(Experiment), steps=steps)
    assert (experiment.evolution.rung1_tokens, experiment.evolution.rung2_tokens) == (rungs[0] * 128, rungs[1] * 128)
    assert experiment.train.max_tokens >= steps * 128


def test_configs_are_valid_and_of_the_size_they_say() -> None:
    smoke = read(ROOT / "configs" / "live_smoke.yaml").parse(Experiment)
    evolution = smoke.evolution
    assert evolution.generations >= 3
    assert sum(evolution.sizes) >= 18
    phi, gpu = (read(ROOT / "configs" / f"live_phi_{name}.yaml").parse(Experiment) for name in ("tiny", "gpu"))
    blueprint = phi.model.with_vocab(32768)
    assert 95e6 < costs(blueprint, phi.data.seq_len)["params"] < 110e6
    assert phi.train.bf16 == gpu.train.bf16 == "auto"
    assert phi.model == gpu.model
    assert phi.data.seq_len * phi.data.batch_size == 512  # seconds on a CPU, not minutes


def test_the_gpu_experiment_builds_on_the_meta_device() -> None:
    phi = read(ROOT / "configs" / "live_phi_gpu.yaml").parse(Experiment)
    blueprint: Blueprint = phi.model.with_vocab(32768)
    with torch.device("meta"):
        model = LanguageModel(blueprint)
        logits_BTV = model(torch.zeros(2, 1024, dtype=torch.int64))
    assert logits_BTV.shape == (2, 1024, 32768)
    assert sum(parameter.numel() for parameter in model.parameters()) == costs(blueprint, 1024)["params"]


def test_status_of_a_run_whose_experiment_was_changed_by_hand(cli: Cli, finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "run")
    path = tmp_path / "run" / "experiment.yaml"
    path.write_text(path.read_text().replace("    bpb: min\n", "    long_recall: max\n"))
    code, out, _ = cli("status", tmp_path / "run")
    assert code == 0
    assert "best flops_per_token" in out
    assert "long_recall" not in out


@pytest.mark.parametrize("flag", ["--out", "--checkpoint-dir", "--lineage-out"])
def test_a_path_of_nothing_is_no_path_left_out(flag: str, cli: Cli, tmp_path: Path) -> None:
    code, _, err = cli("run", write_config(tmp_path), "--dry-run", flag, "")
    assert (code, f"{flag}: got '', expected a path" in err) == (2, True)
