"""What users name for output goes over nothing else, and a copied run keeps its hands off the original's files."""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from morphogen.cli import main
from morphogen.errors import InputError, MorphogenError, RunError
from morphogen.keeping import Keep
from morphogen.run import evolve, load
from morphogen.runfolder import check_files
from morphogen.store.ledger import Ledger
from morphogen.store.outputs import check_output
from processes import forked
from tiny import Cli, run_live, write_config

pytestmark = pytest.mark.trained_before


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run `run` of `tiny.yaml` whose checkpoints lie in `weights`."""
    folder = tmp_path_factory.mktemp("outputs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MORPHOGEN_CACHE", str(folder / "cache"))
        before = os.umask(0o027)
        evolve(
            load(write_config(folder, **{"generations: 2, population: 3": "generations: 0, population: 1"})),
            folder / "run",
            keep=Keep(checkpoint_dir=folder / "weights", lineage_out=folder / "lineage copy.json"),
        )
        os.umask(before)
        yield folder


def snapshot(folder: Path) -> dict[str, bytes]:
    kept = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("ledger."))
    return {str(path.relative_to(folder)): path.read_bytes() for path in kept}


def test_files_have_the_mode_that_the_umask_asks_for(place: Path) -> None:
    wrong = {
        str(path.relative_to(place)): oct(path.stat().st_mode & 0o777)
        for folder in (place / "run", place / "weights", place / "cache")
        for path in folder.rglob("*")
        if path.is_file() and path.stat().st_mode & 0o777 != 0o640
    }
    assert wrong == {}


@pytest.mark.parametrize(
    "name",
    [
        "tiny.yaml",
        "corpus/000.txt",
        "corpus/lineage.json",
        "run/ledger.sqlite",
        "run/environment.json",
        "run/frontier.json",
        "run/lineage.svg",
        "run/verify.json",
        "run/checkpoints/new.json",
        "weights/.run",
        "a.json",
        "pipe",
        "missing/lineage.json",
        "corpus",
    ],
)
@pytest.mark.parametrize("resume", [True, False])
def test_a_copy_goes_over_nothing_else(name: str, resume: bool, place: Path, cli: Cli) -> None:
    (place / "a.json").write_text('{"schema_version": 1, "name": "mine"}')
    if not (place / "pipe").exists():
        os.mkfifo(place / "pipe")
    before = snapshot(place)
    keep = Keep(checkpoint_dir=place / "weights", lineage_out=place / name)
    with pytest.raises((InputError, RunError), match=r"lineage_out: .*/"):
        evolve(load(place / "tiny.yaml"), place / ("run" if resume else "new"), resume=resume, keep=keep)
    assert snapshot(place) == before
    assert not (place / "new").exists()


def test_a_copy_may_be_written_again_and_stand_beside_its_own(place: Path) -> None:
    for name in ("lineage copy.json", "run/lineage.json", "run/another.json", "new.json"):
        check_output(place / name, "lineage.json", place / "run", "x")
    with pytest.raises(InputError, match=r"no frontier.json of morphogen's"):
        check_output(place / "lineage copy.json", "frontier.json", place / "run", "x")


def test_the_script_takes_no_foreign_json_for_the_frontier(place: Path) -> None:
    (place / "package.json").write_text("{}")
    with pytest.raises(MorphogenError, match=r"package\.json"):
        run_live().run(config=str(place / "tiny.yaml"), out=str(place / "package.json"))
    assert (place / "package.json").read_text() == "{}"


@pytest.mark.parametrize("name", ["corpus/000.txt.svg", "run/report.svg", "a.svg", "a.dot"])
def test_a_picture_goes_over_nothing_else(name: str, place: Path, cli: Cli) -> None:
    path = place / name
    for _ in range(2):
        assert cli("lineage", place / "run", "--out", path)[0] == 0
    path.write_text("<svg>mine</svg>")
    code, _, said = cli("lineage", place / "run", "--out", path)
    assert code == 2
    assert "of morphogen's; choose another name" in said
    assert path.read_text() == "<svg>mine</svg>"
    path.unlink()
    assert cli("lineage", place / "run", "--out", place / "run" / "lineage.svg")[0] == 0
    assert cli("lineage", place / "run", "--out", "/dev/null.svg/x.svg")[0] == 2


def test_nothing_is_written_into_the_text_that_is_read(place: Path) -> None:
    experiment = load(place / "tiny.yaml")
    for out, keep in (
        (place / "corpus" / "run", Keep()),
        (place / "new", Keep(checkpoint_dir=place / "corpus" / "weights")),
    ):
        with pytest.raises(InputError, match=r"lies in the text .*corpus, which it would change"):
            evolve(experiment, out, keep=keep)
        assert not out.exists()


def test_a_copied_run_leaves_the_checkpoints_of_the_original_alone(place: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(place / "run", copy, symlinks=True)
    before = snapshot(place / "weights")
    experiment = load(place / "tiny.yaml")
    for keep in (Keep(cleanup=True), Keep(prune=True), Keep(disk_budget=1), Keep(checkpoint_dir=place / "weights")):
        with pytest.raises(RunError, match=r"is a link to .*weights, where .run says that it is for .*run"):
            evolve(experiment, copy, resume=True, generations=1, keep=keep)
    assert snapshot(place / "weights") == before
    (copy / "checkpoints").unlink()
    shutil.copytree(place / "weights", copy / "checkpoints")
    evolve(experiment, copy, resume=True, keep=Keep(prune=True))
    assert snapshot(place / "weights") == before
    for other in (place / "run", place / "run" / "checkpoints", copy / "checkpoints"):
        with pytest.raises(RunError, match="choose another --checkpoint-dir"):
            evolve(experiment, tmp_path / "third", keep=Keep(checkpoint_dir=other))
        shutil.rmtree(tmp_path / "third", ignore_errors=True)


def test_a_run_that_was_moved_has_its_checkpoints_when_they_are_named(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / ".run").write_text(str(tmp_path / "before"))
    (tmp_path / "run" / "checkpoints").symlink_to(tmp_path / "weights")
    with pytest.raises(RunError, match="name the folder with --checkpoint-dir"):
        check_files(tmp_path / "run")
    with pytest.raises(RunError, match="is a link to"):
        check_files(tmp_path / "run", tmp_path / "others")
    check_files(tmp_path / "run", tmp_path / "weights")
    (tmp_path / "before").mkdir()
    with pytest.raises(RunError, match=r"is for .*before"):
        check_files(tmp_path / "run", tmp_path / "weights")


def looked_at(told: Path, *folders: Path) -> int:
    """Commands that look at each folder, the later ones by somebody else; what they print in a file."""
    with told.open("w") as file, contextlib.redirect_stdout(file):
        for folder in folders:
            for name, *options in (["status"], ["doctor"], ["lineage"], ["lineage", "--json"]):
                with pytest.raises(SystemExit) as end:
                    main([name, str(folder), *options])
                assert end.value.code == 0, name
            os.setuid(65534)  # after all is imported, which somebody else may not be able to
    return 0


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
def test_a_run_that_cannot_be_written_can_be_looked_at(place: Path) -> None:
    """Also one whose last events are in SQLite's log still, because it was killed."""
    with tempfile.TemporaryDirectory() as name:
        run = Path(name) / "run"
        shutil.copytree(place / "run", run)
        killed = "import os, sqlite3, sys; c = sqlite3.connect(sys.argv[1], isolation_level=None); "
        killed += "c.execute('PRAGMA wal_autocheckpoint = 0'); c.execute('UPDATE events SET kind = kind'); os._exit(9)"
        subprocess.run([sys.executable, "-c", killed, str(run / "ledger.sqlite")], check=False)
        assert (run / "ledger.sqlite-wal").exists()
        (run / "ledger.sqlite-shm").unlink()
        for path in (run.parent, run, *run.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
        process = forked(lambda: looked_at(place / "told", place / "run", run))
        assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0
    assert (place / "told").read_text().count("healthy") == 2


def test_what_is_read_from_a_copy_of_the_ledger_is_whole(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Ledger.open(place / "run", readonly=True) as ledger:
        wanted = list(ledger.events())
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with Ledger.open(place / "run", readonly=True) as ledger:
        assert list(ledger.events()) == wanted
