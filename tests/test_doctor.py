"""The doctor finds what is wrong with a run's folder, says what to do, and leaves it alone."""

import fcntl
import json
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from morphogen.candidate import MOMENTS_SUFFIX
from morphogen.cli import main
from morphogen.cli.doctor import Finding, examine
from morphogen.errors import InputError
from morphogen.inherit.checkpoint import load_checkpoint
from morphogen.keeping import Keep
from morphogen.notices import Notice, Training
from morphogen.run import evolve, load
from morphogen.store.ledger import Generation, Ledger
from tiny import write_config

pytestmark = pytest.mark.trained_before


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A finished run, and its experiment beside it."""
    place = tmp_path_factory.mktemp("doctor")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MORPHOGEN_CACHE", str(place / "cache"))
        evolve(load(write_config(place)), place / "run", generations=1)
        assert examine(place / "run") == []
        yield place


@pytest.fixture
def run(sound: Path, tmp_path: Path) -> Path:
    """A copy to be spoilt."""
    shutil.copytree(sound / "run", tmp_path / "run")
    return tmp_path / "run"


def needed(run: Path) -> Path:
    """A checkpoint on the frontier."""
    entry = json.loads((run / "frontier.json").read_bytes())["candidates"][0]
    return run / str(entry["checkpoint"])


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place % len(data)] ^= 1
    path.write_bytes(data)


def swap(run: Path) -> None:
    first, second, *_ = sorted((run / "checkpoints").glob("*-????.safetensors"))
    shutil.copyfile(first, second)


def forget(run: Path) -> None:
    with sqlite3.connect(run / "ledger.sqlite") as connection:
        connection.execute("DELETE FROM events WHERE seq = 3")


SPOILT: list[tuple[Callable[[Path], object], str]] = [
    (lambda run: flip(needed(run), -5), "do not match their checksum"),
    (lambda run: needed(run).unlink(), "missing; "),
    (lambda run: needed(run).write_bytes(b"short"), "not a readable checkpoint"),
    (swap, "holds "),
    (forget, "damaged at event 3"),
    (lambda run: flip(run / "ledger.sqlite", 9), "cannot be used as a run's ledger"),
    (lambda run: (run / "ledger.sqlite").unlink(), "no run here"),
    (lambda run: (run / "lineage.json").write_text("{}"), "is not what the ledger gives"),
    (lambda run: (run / "events.csv").unlink(), "missing"),
    (lambda run: (run / ".frontier.json.12.tmp").touch(), "a temporary file"),
    (lambda run: (run / "checkpoints" / ".a.safetensors.x1").touch(), "a temporary file"),
    (lambda run: (run / "environment.json").write_text("{"), "cannot be read"),
    (lambda run: (run / "environment.json").write_text("{}"), "data is missing"),
    (lambda run: (run / "environment.json").write_text("[]"), "data is missing"),
    (lambda run: (run / "experiment.yaml").unlink(), "no such file"),
]


@pytest.mark.parametrize(("spoil", "said"), SPOILT, ids=[said for _, said in SPOILT])
def test_what_is_wrong_is_found_and_nothing_is_touched(spoil: Callable[[Path], object], said: str, run: Path) -> None:
    """Of a copy of a run with nothing wrong, as `sound` sees to."""
    spoil(run)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.suffix != ".sqlite-shm"}
    found = examine(run)
    assert any(said in finding.wrong for finding in found), found
    assert all(finding.remedy for finding in found)
    assert all(path.read_bytes() == data for path, data in before.items())


def test_the_folder_of_a_training_is_told_from_a_run_that_was_lost(tmp_path: Path) -> None:
    (tmp_path / "training.json").write_text("{}")
    (finding,) = examine(tmp_path)
    assert "a training (training.json), which `morphogen status` shows" in finding.wrong
    assert finding.remedy == "give a run's folder"


def test_a_changed_experiment_is_named(run: Path) -> None:
    path = run / "experiment.yaml"
    path.write_text(path.read_text().replace("lr: 0.01", "lr: 0.02"))
    (finding,) = examine(run)
    assert finding.wrong == "train.lr is 0.02, and the run was begun with 0.01"


def test_resuming_puts_right_what_follows_from_the_ledger(sound: Path, run: Path) -> None:
    (run / "lineage.json").write_text("{}")
    (run / "lineage.svg").unlink()
    (run / ".frontier.json.12.tmp").touch()
    (run / "experiment.yaml").unlink()
    assert len(examine(run)) == 4
    evolve(load(sound / "tiny.yaml"), run, generations=1, resume=True)
    assert examine(run) == []


def test_survivors_of_a_run_that_was_given_more_generations_are_needed(sound: Path, tmp_path: Path) -> None:
    """The ledger holds the experiment as the run was begun, with one generation."""

    def interrupt(notice: Notice) -> None:
        if isinstance(notice, Training):
            raise KeyboardInterrupt

    path, run = tmp_path / "all.yaml", tmp_path / "run"
    path.write_text(
        (sound / "tiny.yaml").read_text().replace("topk_keep: 2", "topk_keep: 9, objectives: {params: min}")
    )
    evolve(load(path), run, generations=1)
    with pytest.raises(KeyboardInterrupt):
        evolve(load(path), run, generations=2, resume=True, observer=interrupt)
    assert examine(run) == []
    with Ledger.open(run, readonly=True) as ledger:
        closed = [event for event in ledger.events() if isinstance(event, Generation)]
    survivor = next(id for id in closed[-1].survivors if id not in closed[-1].frontier)
    (run / "checkpoints" / f"{survivor}.safetensors").unlink()
    assert [finding.wrong for finding in examine(run)] == [
        f"missing; {survivor} is a survivor, and the run stops where a child inherits from it"
    ]


def test_a_run_is_healthy_while_it_runs(sound: Path, tmp_path: Path) -> None:
    found: list[list[Finding]] = []

    def look(notice: Notice) -> None:
        if isinstance(notice, Training) and notice.step.step == 2:
            (tmp_path / "run" / ".frontier.json.12.tmp").touch()
            found.append(examine(tmp_path / "run"))

    evolve(load(sound / "tiny.yaml"), tmp_path / "run", generations=1, observer=look)
    assert found
    assert not any(found)
    assert examine(tmp_path / "run") == []


def test_the_command_says_healthy_or_what_is_wrong(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for args, code, said in (
        (("doctor", str(run)), 0, "healthy\n"),
        (("doctor", str(run), "--json"), 0, "[]\n"),
    ):
        with pytest.raises(SystemExit) as end:
            main(args)
        assert (end.value.code, capsys.readouterr().out) == (code, said)
    flip(needed(run), -5)
    with pytest.raises(SystemExit) as end:
        main(("doctor", str(run), "--json"))
    assert end.value.code == 2
    (finding,) = json.loads(capsys.readouterr().out)
    assert finding.keys() == {"place", "wrong", "remedy"}
    with pytest.raises(SystemExit) as end:
        main(("doctor", str(run)))
    assert end.value.code == 2
    assert capsys.readouterr().out.endswith("1 problems\n")


def test_looking_takes_no_lock(run: Path) -> None:
    with Ledger.open(run):
        assert examine(run) == []
    with (run / "ledger.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.parametrize("places", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_a_flipped_bit_anywhere_in_a_checkpoint_is_noticed(run: Path, tmp_path: Path, places: int) -> None:
    whole = needed(run).read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    copy = tmp_path / "copy.safetensors"
    for place in [*range(0, header, 28 // places), *range(header, len(whole), 3988 // places)]:
        for bit in (1, 32):
            data = bytearray(whole)
            data[place] ^= bit
            copy.write_bytes(data)
            with pytest.raises(InputError, match=r"copy\.safetensors: "):
                load_checkpoint(copy)


def test_moments_go_with_their_weights_in_the_budget_and_are_looked_at(sound: Path, tmp_path: Path) -> None:
    experiment = load(sound / "tiny.yaml")
    evolve(experiment, tmp_path / "run", generations=1)
    files = sorted((tmp_path / "run" / "checkpoints").iterdir())
    assert sum(path.name.endswith(MOMENTS_SUFFIX) for path in files) == len(files) / 2
    budget = 15 * sum(path.stat().st_size for path in files) // 10  # too little for all seven of the longer run
    evolve(experiment, tmp_path / "less", generations=2, keep=Keep(disk_budget=budget))
    left = sorted((tmp_path / "less" / "checkpoints").iterdir())
    assert sum(path.stat().st_size for path in left) <= budget
    assert sum(path.name.endswith(MOMENTS_SUFFIX) for path in left) == len(left) / 2
    assert examine(tmp_path / "run") == []
    moments = next(path for path in files if path.name.endswith(MOMENTS_SUFFIX))
    flip(moments, -5)
    (finding,) = examine(tmp_path / "run")
    assert "do not match their checksum" in finding.wrong
