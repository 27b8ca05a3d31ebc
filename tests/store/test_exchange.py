"""Checkpoints travel through a folder that others see too: whole, for one run alone, and faults are told."""

from pathlib import Path

import pytest

from morphogen.candidate import moments_path
from morphogen.errors import InputError, RunError
from morphogen.store.exchange import Exchange


def test_checkpoints_travel_whole(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    (here / "checkpoints").mkdir(parents=True)
    names = [f"checkpoints/{letter}.safetensors" for letter in "ab"]
    for name in names:
        (here / name).write_text(f"weights of {name}")
        moments_path(here / name).write_text(f"moments of {name}")
    for url in (str(tmp_path / "shared"), "memory://weights"):
        shared = Exchange(url)
        for name in names:
            shared.leave(name, here)
        if url.startswith("/"):
            (tmp_path / "shared" / names[0]).write_text("cut")  # by a node that died over it
            shared.leave(names[0], here)
        shared.keep_only({names[0]})
        for name in names:
            (there / name).unlink(missing_ok=True)
            moments_path(there / name).unlink(missing_ok=True)
            shared.collect(name, there)
        assert (there / names[0]).read_text() == f"weights of {names[0]}"
        assert sorted(path.name for path in (there / "checkpoints").iterdir()) == [
            "a.optimizer.safetensors",
            "a.safetensors",
        ]


@pytest.mark.parametrize("place", ["file", "file::there", "memory"])
def test_files_lie_there_by_their_names(place: str, tmp_path: Path) -> None:
    shared = Exchange("memory://names" if place == "memory" else str(tmp_path / place))
    assert shared.names() == []
    (tmp_path / "a").write_text("text")
    shared.send(tmp_path / "a", "b")
    assert (shared.names(), shared.read("b")) == (["b"], b"text")
    shared.fetch("b", tmp_path / "below" / "c")
    assert (tmp_path / "below" / "c").read_text() == "text"
    shared.remove("b")
    shared.remove("b")
    for lost in (lambda: shared.read("b"), lambda: shared.fetch("b", tmp_path / "d")):
        with pytest.raises(FileNotFoundError):
            lost()
    shared.send(tmp_path / "a", "b")
    shared.remove_all()
    shared.remove_all()
    assert shared.names() == []


def test_a_path_may_begin_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    shared = Exchange("~/shared")
    (tmp_path / "a").touch()
    shared.send(tmp_path / "a", "a")
    assert shared.folder == tmp_path / "shared"
    assert (shared.folder / "a").exists()


def test_a_place_is_one_runs(tmp_path: Path) -> None:
    shared = Exchange(str(tmp_path / "shared"))
    shared.claim(str(tmp_path / "one"))
    shared.claim(str(tmp_path / "one"))
    with pytest.raises(RunError, match=r"holds the checkpoints of .*one; give each run a --shared of its own"):
        shared.claim(str(tmp_path / "two"))


def test_a_place_that_does_not_work_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--shared: got 'nowhere://x'"):
        Exchange("nowhere://x")
    (tmp_path / "file").touch()
    (tmp_path / "a").touch()
    shared = Exchange(str(tmp_path / "file"))
    for fails in (
        lambda: shared.leave("a", tmp_path),
        lambda: shared.send(tmp_path / "a", "a"),
        lambda: shared.read("a"),
        lambda: shared.claim(str(tmp_path)),
    ):
        with pytest.raises(RunError, match=r"file: .* cannot be exchanged: "):
            fails()
