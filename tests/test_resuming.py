"""A run goes on from any folder, when moved, and with a newer version; what differs is said in words."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from morphogen import resuming
from morphogen.analysis.recorded import Recorded
from morphogen.blueprint.record import understood
from morphogen.cli.console import Lines
from morphogen.cli.doctor import examine
from morphogen.differences import differences, words
from morphogen.errors import RunError
from morphogen.experiment import Experiment
from morphogen.reading import located
from morphogen.run import evolve, load
from morphogen.store.ledger import Ledger, Start
from tiny import Cli, write_config

pytestmark = pytest.mark.trained_before


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A finished run of `tiny.yaml`, which names its text by a relative path; objectives not in order of names."""
    folder = tmp_path_factory.mktemp("resuming")
    relative = {
        f"source: {folder / 'corpus'}": "source: corpus",
        "generations: 2, population: 3": "generations: 0, population: 1, objectives: {params: min, bpb: min}",
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MORPHOGEN_CACHE", str(folder / "cache"))
        evolve(load(write_config(folder, **relative)), folder / "run", seed=5)
        yield folder


@pytest.fixture
def copy(place: Path, tmp_path: Path) -> Path:
    """The run with its experiment and its text, in another place."""
    shutil.copytree(place, tmp_path / "copy", ignore=shutil.ignore_patterns("cache"))
    return tmp_path / "copy"


def plain(run: Path) -> dict[str, Any]:
    """The experiment in a run's ledger."""
    with Ledger.open(run, readonly=True) as ledger:
        first = next(ledger.events())
    assert isinstance(first, Start)
    return first.experiment


def gone(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The place cannot be found any more."""
    exists = os.path.exists
    monkeypatch.setattr(os.path, "exists", lambda path: not str(path).startswith(str(place)) and exists(path))


def test_a_run_goes_on_from_any_folder_by_its_file_or_by_its_own(
    place: Path, copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for file in (copy / "tiny.yaml", copy / "run" / "experiment.yaml"):
        evolve(load(os.path.relpath(file)), os.path.relpath(copy / "run"), resume=True)
    assert examine(copy / "run") == []
    assert plain(copy / "run")["data"]["shards"][0]["source"] == str((place / "corpus").resolve())


def test_a_run_that_was_moved_finds_its_text_where_it_was_or_beside_it(
    place: Path, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = Recorded.read(copy / "run").experiment.data.shards[0]
    assert alone.source == str((place / "corpus").resolve())
    gone(place.resolve(), monkeypatch)
    shard = Recorded.read(copy / "run").experiment.data.shards[0]
    assert (shard.source, shard.name) == (str((copy / "corpus").resolve()), "corpus")
    assert load(copy / "run" / "experiment.yaml").data.shards[0].source == shard.source
    evolve(load(copy / "run" / "experiment.yaml"), copy / "run", resume=True)
    assert examine(copy / "run") == []
    assert str((copy / "corpus").resolve()) in json.loads((copy / "run" / "environment.json").read_bytes())["paths"]


def test_settings_that_came_and_went_since_do_not_matter(copy: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli) -> None:
    recorded = plain(copy / "run")
    del recorded["evolution"]["tournament_size"], recorded["train"]["optimizer"]
    recorded["evolution"]["gone"] = 3
    recorded["data"]["shards"][0]["gone_too"] = {"a": 1}
    experiment, removed = understood(Experiment, recorded, "x")
    assert removed == [("data.shards[0].gone_too", {"a": 1}), ("evolution.gone", 3)]
    assert recorded["evolution"]["gone"] == 3
    assert resuming.settings(experiment, load(copy / "tiny.yaml")) == []

    original = Ledger.events

    def older(ledger: Ledger) -> Any:
        for event in original(ledger):
            yield event.replace(experiment=recorded) if isinstance(event, Start) else event

    monkeypatch.setattr(Ledger, "events", older)
    said: list[str] = []
    evolve(load(copy / "tiny.yaml"), copy / "run", resume=True, observer=Lines(said.append))
    assert "warning: evolution.gone was 3; this version has no such setting" in said
    assert "evolution.gone was 3" in (copy / "run" / "run.log").read_text()
    for command in ("doctor", "status"):
        assert cli(command, copy / "run")[0] == 0


def test_other_versions_are_told_and_no_hindrance(copy: Path) -> None:
    path = copy / "run" / "environment.json"
    told = json.loads(path.read_bytes())
    told["versions"] |= {"torch": "1.0", "forgotten": "2.0"}
    told["python"] = "3.0.0"
    path.write_text(json.dumps(told))
    said: list[str] = []
    evolve(load(copy / "tiny.yaml"), copy / "run", resume=True, observer=Lines(said.append))
    (line,) = [line for line in said if "begun with" in line]
    assert "begun with torch 1.0, python 3.0.0, forgotten 2.0, now torch" in line
    assert line.endswith("forgotten missing: the same numbers are not promised any more")
    assert line in (copy / "run" / "run.log").read_text()
    experiment = load(copy / "tiny.yaml")
    train = experiment.train.model_copy(update={"lr": 0.5})
    with pytest.raises(RunError, match=r"lr is 0\.01 there and 0\.5 here\. It was begun with torch 1\.0"):
        evolve(experiment.model_copy(update={"train": train}), copy / "run", resume=True)


def test_what_may_change_is_told_apart_and_what_is_recommended_works(copy: Path, cli: Cli) -> None:
    file = copy / "tiny.yaml"
    kept = file.read_text()
    file.write_text(kept.replace("lr: 0.01", "lr: 0.02").replace("generations: 0", "generations: 1"))
    code, _, said = cli("run", file, "--out", copy / "run", "--resume", "--seed", "1")
    assert code == 2
    assert "train.lr is 0.01 there and 0.02 here; the seed is 5 there and 1 here." in said
    assert "generations is" not in said
    assert "With --resume may change: --generations, --device" in said
    command = said.partition("goes on with: morphogen ")[2].partition("; or choose")[0]
    assert cli(*command.split())[0] == 0
    for args in (("--seed", "5"), ("--generations", "0"), ("--workers", "1")):
        file.write_text(kept)
        assert cli("run", file, "--out", copy / "run", "--resume", *args)[0] == 0, args


@pytest.mark.parametrize("name", ["experiment.yaml", "lineage.json", "lineage.svg", "events.csv"])
def test_what_the_doctor_recommends_works(name: str, copy: Path, cli: Cli) -> None:
    path = copy / "run" / name
    path.unlink()
    (finding,) = examine(copy / "run")
    assert "--resume" in finding.remedy
    assert cli("run", copy / "tiny.yaml", "--out", copy / "run", "--resume")[0] == 0
    assert examine(copy / "run") == []


def test_a_checkpoint_to_start_from_may_lie_elsewhere_but_not_hold_something_else(copy: Path) -> None:
    experiment = load(copy / "tiny.yaml")
    (weights,) = [path for path in (copy / "run" / "checkpoints").iterdir() if path.match("*-????.safetensors")]

    def starting(path: Path) -> Experiment:
        return experiment.model_copy(
            update={"train": experiment.train.model_copy(update={"init_checkpoint": str(path)})}
        )

    one, other = copy / "one.safetensors", copy / "other.safetensors"
    shutil.copyfile(weights, one)
    evolve(starting(one), copy / "warm")
    one.rename(other)
    evolve(starting(other), copy / "warm", resume=True)
    (later,) = [path for path in (copy / "warm" / "checkpoints").iterdir() if path.match("*-????.safetensors")]
    shutil.copyfile(later, other)
    with pytest.raises(RunError, match=r"other\.safetensors does not hold what it held then"):
        evolve(starting(other), copy / "warm", resume=True)


def test_differences_go_to_the_leaves_and_read_as_one_says_them() -> None:
    one = {"a": [{"x": 1}, {"x": 2}], "b": {"c": None}, "d": 1, "e": [1, 2]}
    other = {"a": [{"x": 1}, {"x": 3}, {"x": 4}], "b": {"c": {"k": "v"}}, "d": 1, "e": [1]}
    found = differences(one, other)
    assert found == [("a[1].x", 2, 3), ("a[2].x", None, 4), ("b.c.k", None, "v"), ("e", [1, 2], [1])]
    assert differences(one, other, {"a[1].x", "a[2].x", "b.c.k", "e"}) == []
    said = [words(value) for value in (None, [], "a b", "", " a", True, 1e-3, [1, {"k": "v"}], {"k": [1], "n": None})]
    assert said == ["nothing", "nothing", "a b", "''", "' a'", "true", "0.001", "1, (k v)", "k (1)"]


def test_blocks_are_told_apart_by_their_ids(copy: Path) -> None:
    experiment = load(copy / "tiny.yaml")
    (block,) = experiment.model.blocks
    first = block.model_copy(update={"id": "new"})
    model = experiment.model.model_copy(update={"blocks": (first, block)})
    found = resuming.settings(experiment, experiment.model_copy(update={"model": model}))
    assert all(path.startswith(("model.blocks.new", "model.blocks")) for path, _, _ in found)
    assert len(found) <= 2
    assert located(experiment) == experiment
