"""Faults that are no candidate's: the run stops, nothing is recorded as failed, and it goes on as if undisturbed."""

import errno
import io
import json
import os
import shutil
import sys

import pytest

from morphogen.candidate import Status
from morphogen.doctor import examine
from morphogen.errors import RunError
from morphogen.evolve import evolve
from morphogen.execution import IN_PROCESS, Execution
from morphogen.notices import Closed, Training
from tiny import events, untimed

MAIN = "from morphogen.cli import main; main()"


def same_run(a, b):
    for name in ("lineage.json", "frontier.json"):
        assert untimed(a / name) == untimed(b / name)
    assert examine(a) == []


def nothing_failed(folder):
    statuses = [event["report"]["status"] for event in events(folder) if event["kind"] == "report"]
    assert set(statuses) <= {Status.TRAINED}
    return statuses


@pytest.mark.parametrize("execution", [IN_PROCESS, Execution(workers=2)], ids=["in process", "pool"])
@pytest.mark.parametrize(
    "error", [BrokenPipeError(errno.EPIPE, "Broken pipe"), ValueError("mine")], ids=["os", "value"]
)
def test_an_observer_s_error_is_raised_as_it_is_and_leaves_a_run_that_goes_on(
    error, execution, experiment, whole, tmp_path
):
    def watch(notice):
        if isinstance(notice, Training) and notice.candidate.index == 2:
            raise error

    with pytest.raises(type(error)) as found:
        evolve(experiment, tmp_path / "run", execution=execution, observer=watch)
    assert found.value is error
    nothing_failed(tmp_path / "run")
    if execution is IN_PROCESS:
        evolve(experiment, tmp_path / "run", resume=True)
        same_run(tmp_path / "run", whole)


def after_a_generation(number, act):
    """An observer that does something once, when a generation is closed."""
    left = [act]

    def watch(notice):
        if isinstance(notice, Closed) and notice.generation.generation == number and left:
            left.pop()()

    return watch


@pytest.mark.parametrize("execution", [IN_PROCESS, Execution(workers=2)], ids=["in process", "pool"])
def test_a_cache_that_is_deleted_in_mid_run_ends_it_and_is_made_again(
    execution, experiment, whole, tmp_path, monkeypatch
):
    monkeypatch.setenv("MORPHOGEN_CACHE", str(tmp_path / "cache"))
    delete = after_a_generation(1, lambda: shutil.rmtree(tmp_path / "cache"))
    with pytest.raises(RunError, match=r"is gone; the cache was changed .* --resume goes on once that is mended"):
        evolve(experiment, tmp_path / "run", execution=execution, observer=delete)
    assert len(nothing_failed(tmp_path / "run")) == 5
    assert "stopped: token file" in (tmp_path / "run" / "run.log").read_text()
    evolve(experiment, tmp_path / "run", resume=True, execution=execution)
    same_run(tmp_path / "run", whole)


@pytest.mark.parametrize("how", ["gone", "cut"])
def test_a_parent_s_checkpoint_that_is_lost_ends_the_run_and_can_be_put_back(how, experiment, whole, tmp_path):
    kept, checkpoints = tmp_path / "kept", tmp_path / "run" / "checkpoints"

    def spoil():
        shutil.copytree(checkpoints, kept)
        for path in checkpoints.iterdir():
            path.unlink() if how == "gone" else os.truncate(path, path.stat().st_size - 100)

    with pytest.raises(RunError, match=r"safetensors: no.*checkpoint.* --resume goes on once that is mended"):
        evolve(experiment, tmp_path / "run", observer=after_a_generation(0, spoil))
    assert len(nothing_failed(tmp_path / "run")) == 1
    assert any("checkpoint" in finding.wrong or "missing" in finding.wrong for finding in examine(tmp_path / "run"))
    shutil.copytree(kept, checkpoints, dirs_exist_ok=True)
    evolve(experiment, tmp_path / "run", resume=True)
    same_run(tmp_path / "run", whole)


class Full(io.StringIO):
    """A redirected stdout whose disk is full after some lines."""

    def write(self, text):
        if self.getvalue().count("\n") == 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(text)


@pytest.fixture
def config(experiment, tmp_path, monkeypatch):
    """The same experiment as a file, its text read anew."""
    monkeypatch.setenv("MORPHOGEN_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "same.yaml"
    path.write_text(json.dumps(experiment.model_dump(mode="json")))
    return path


def test_a_full_disk_behind_stdout_stops_the_run_with_one_message(
    config, experiment, whole, tmp_path, cli, monkeypatch
):
    monkeypatch.setattr(sys, "stdout", Full())
    code, _, said = cli("run", config, "--out", tmp_path / "run", "--json")
    assert (code, said.count("\n")) == (2, 1)
    assert "stdout: cannot be written: No space left on device; the same command with --resume goes on" in said
    nothing_failed(tmp_path / "run")
    evolve(experiment, tmp_path / "run", resume=True)
    same_run(tmp_path / "run", whole)
