"""The example of a plug-in, installed and used as its readers would."""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from processes import forked

ROOT = Path(__file__).parent.parent
PLUGIN = ROOT / "examples" / "plugin"


@pytest.fixture
def installed(tmp_path: Path) -> dict[str, str]:
    """An environment in which the package is installed: its metadata on the path, as an editable install puts it."""
    project = tomllib.loads((PLUGIN / "pyproject.toml").read_text())["project"]
    info = tmp_path / "site" / f"gated_ema-{project['version']}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    groups = [
        f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in points.items())
        for group, points in project["entry-points"].items()
    ]
    (info / "entry_points.txt").write_text("\n".join(groups))
    path = os.pathsep.join(map(str, (info.parent, PLUGIN / "src", ROOT / "src")))
    cache = {"MORPHOGEN_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    return {**os.environ, **cache, "PYTHONPATH": path, "MORPHOGEN_ALLOW_CODE": "0"}


def carried_out(commands: list[str], environment: dict[str, str], told: Path) -> str:
    """What several commands, and a mutation, said in one process with that environment: a fork of this one that
    imports all of morphogen anew, as torch takes long to import."""

    def act() -> int:
        for name in [name for name in sys.modules if name.split(".")[0] == "morphogen"]:
            del sys.modules[name]
        os.environ.update(environment)
        sys.path[:0] = environment["PYTHONPATH"].split(os.pathsep)
        with told.open("w", buffering=1) as sys.stdout:
            sys.stderr = sys.stdout
            from morphogen.cli import main

            for line in commands:
                try:
                    main(line.split())
                except SystemExit as end:
                    print(f"exit code {end.code}")
            from morphogen.blueprint.schema import Blueprint
            from morphogen.variation.operator import edit

            block = {"ffn": {"kind": "dense", "hidden": 8}}
            plain = Blueprint.model_validate({"emb": {"dim": 32, "vocab": 11}, "blocks": [block]})
            print("put in:", edit(plain, "insert_custom_module", 0)[0].blocks[0].extras)
        return 0

    code = os.waitstatus_to_exitcode(os.waitpid(forked(act), 0)[1])
    assert code == 0, told.read_text()
    return told.read_text()


def test_what_the_package_adds_is_validated_listed_and_evolved(installed: dict[str, str], tmp_path: Path) -> None:
    good, bad = PLUGIN / "experiment.yaml", tmp_path / "bad.yaml"
    text = good.read_text()
    bad.write_text(text.replace("width: 8", "widht: 8").replace("least_crowded", "least_crowdd"))
    run = tmp_path / "run"
    commands = [f"validate {bad}", f"validate {good}", "operators", "figures --json", f"run {good} --out {run}"]
    commands += [f"verify {run} --metric ema_memory --seeds 2 --random 0 --finalists 1 --json"]
    told = carried_out(commands, installed, tmp_path / "told")
    assert [line for line in told.splitlines() if line.startswith("exit code")] == [
        "exit code 2",
        *["exit code 0"] * 5,
    ], told
    lines = text.splitlines()
    kind, rule = (1 + next(i for i, line in enumerate(lines) if what in line) for what in ("width: 8", "least_crowded"))
    assert f"bad.yaml:{kind}:" in told
    assert "unknown field, did you mean 'width'?" in told
    assert f"bad.yaml:{rule}:3 evolution.parent_selection: got 'least_crowdd', expected one of" in told
    assert "did you mean 'least_crowded'?" in told
    assert "insert_gated_ema" in told
    assert "put in: (GatedEMA(kind='gated_ema', width=16),)" in told
    assert "widen_gated_ema" in told
    assert '"name": "ema_memory"' in told
    check_figure_of_the_package(run)


def check_figure_of_the_package(run: Path) -> None:
    """It is an objective of the run, stands in every table and file, and is what finalists are verified by."""
    frontier, lineage, verified = (
        json.loads((run / f"{name}.json").read_text()) for name in ("frontier", "lineage", "verify")
    )
    assert frontier["objectives"] == {"bpb": "min", "ema_memory": "max"}
    assert all(candidate["metrics"]["ema_memory"] > 1.0 for candidate in frontier["candidates"])
    assert all(node["metrics"]["reach"] > 0.0 for node in lineage["nodes"])
    assert "ema_memory" in (run / "events.csv").read_text()
    assert "ema_memory" in (run / "report.html").read_text()
    assert (verified["metric"], verified["direction"]) == ("ema_memory", "max")
    assert all(one["mean"] > 1.0 for one in verified["candidates"])


@pytest.mark.slow
def test_the_package_keeps_the_contract(installed: dict[str, str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-c", os.devnull, "--rootdir", str(tmp_path), "-p"]
    done = subprocess.run(
        [*command, "no:cacheprovider", str(PLUGIN / "tests")],
        env=installed,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
