"""What people begin with: `init`, and `convert` from the command line."""

import importlib.util
import json
import subprocess
from pathlib import Path

import pytest

from morphogen.checks import validated
from morphogen.reading import read_experiment
from morphogen.starters import STARTERS, starter
from tiny import Cli, write_config

pytestmark = [pytest.mark.usefixtures("own_cache"), pytest.mark.trained_before]

CONFIGS = Path(__file__).parent.parent / "configs"
#: Starter -> the configuration that it is but for the comments at its head.
SAME = {"smoke": "live_smoke", "phi": "live_phi_gpu", "growth": "growth_morph_small"}


@pytest.mark.parametrize("name", STARTERS)
def test_a_first_experiment_is_valid_and_says_what_to_do_next(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = cli("init", "--from", name, "--json")
    assert code == 0, err
    told = json.loads(out)
    assert told["experiment"] == "experiment.yaml"
    assert told["next"].startswith("morphogen ")
    found = validated("experiment.yaml")
    assert found.said.startswith("ok, ")
    assert found.notes == ()
    assert (tmp_path / "experiment.yaml").read_text().startswith("# ")


@pytest.mark.parametrize("name", SAME)
def test_a_first_experiment_is_the_configuration_of_that_name(name: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(starter(name))
    assert read_experiment(tmp_path / "mine.yaml") == read_experiment(CONFIGS / f"{SAME[name]}.yaml")


def test_a_first_experiment_bears_the_name_it_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli("init", "my first\n.yaml")[0] == 0
    assert "morphogen run 'my first\\n.yaml' --out" in (tmp_path / "my first\n.yaml").read_text()
    assert validated("my first\n.yaml").parameters


def test_a_conversion_says_what_became_of_every_field(tmp_path: Path, cli: Cli) -> None:
    (tmp_path / "old.yaml").write_text(
        "model: {emb: {dim: 16}, blocks: [{ffn: {type: dense, hidden: 8, dropout: 0.1}}], head: {vocab: 300}}\n"
        "train: {lr: 1e-3, entropy_threshold: null}\n"
        "data: {tokenizer: gpt2, shards: [{name: ag_news, weight: 1}]}\n"
        "evolution: {topk_keep: 0.5, pareto_objectives: [ppl_code]}\n"
    )
    new = tmp_path / "new.yaml"
    code, out, err = cli("convert", str(tmp_path / "old.yaml"), "--out", str(new), "--json")
    assert code == 0, err
    told = json.loads(out)
    assert told["lossless"] is False
    assert [item["field"] for item in told["dropped"]] == ["model.blocks[0].ffn.dropout"]
    assert [item["field"] for item in told["approximated"]] == ["evolution.topk_keep"]
    assert "train.entropy_threshold" in [item["field"] for item in told["dropped_without_effect"]]
    assert "# Dropped:\n#   model.blocks[0].ffn.dropout: " in new.read_text()
    assert read_experiment(new).model.norm == "layernorm"
    before = new.read_bytes()
    code, out, err = cli("convert", str(tmp_path / "old.yaml"), "--out", str(new))
    assert (code, out) == (2, "")
    assert "is there already; --force overwrites it" in err
    assert new.read_bytes() == before
    code, out, _ = cli("convert", str(tmp_path / "old.yaml"), "--out", str(new), "--force")
    assert code == 0
    assert "approximated (1):" in out
    assert "dropped (1):" in out


def test_a_run_writes_the_events_of_tensorboard_where_it_is_asked_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli
) -> None:
    path = write_config(tmp_path)
    found = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "tensorboard" else found(name))
    command = ("run", str(path), "--out", str(tmp_path / "run"), "--generations", "1", "--tensorboard")
    code, _, err = cli(*command)
    assert code == 2
    assert "install morphogen[tensorboard]" in err
    assert not (tmp_path / "run").exists()
    written: list[tuple[Path, int, dict[str, float]]] = []

    class Fake:
        def __init__(self, folder: Path, step: int) -> None:
            self.folder = folder

        def scalars(self, step: int, **values: float) -> None:
            written.append((self.folder, step, values))

        def close(self) -> None:
            written.append((self.folder, -1, {}))

    monkeypatch.setattr("morphogen.cli.boarded.check_installed", lambda: None)
    monkeypatch.setattr("morphogen.cli.boarded.Board", Fake)
    code, _, err = cli(*command)
    assert code == 0, err
    assert {folder for folder, *_ in written} == {tmp_path / "run" / "tensorboard"}
    assert written[-1][1] == -1
    names = [name for _, _, values in written for name in values]
    assert sum(name.startswith("loss/root-") for name in names) == 3
    assert names.count("bpb") == names.count("params") == 4
    assert names.count("run/hypervolume") == 2


def test_the_example_of_an_environment_can_be_exported_as_it_is(tmp_path: Path) -> None:
    """`export $(cat .env | xargs)`: no comments, no quotes, and not nothing, which would print all there is."""
    script = "set -eu; cp .env.example $1/.env; cd $1; export $(cat .env | xargs); env -0"
    done = subprocess.run(
        ["bash", "-c", script, "bash", str(tmp_path)], cwd=CONFIGS.parent, capture_output=True, check=True
    )
    found = dict(entry.split("=", 1) for entry in done.stdout.decode().split("\0") if entry)
    assert done.stderr == b""
    assert {"HF_TOKEN": "", "MORPHOGEN_CACHE": "", "OMP_NUM_THREADS": "1"}.items() <= found.items()
