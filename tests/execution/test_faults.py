"""Faults that are no candidate's: the run stops, nothing is recorded as failed, and it goes on as if undisturbed."""

import errno
import io
import json
import os
import shutil
import sys

import pytest
import runners

from morphogen.candidate import Status
from morphogen.doctor import examine
from morphogen.errors import InputError, RunError
from morphogen.evolve import Mend, evolve, settle
from morphogen.execution import IN_PROCESS, Execution, InProcess
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


def test_checkpoints_that_are_lost_for_good_are_trained_again_as_they_were(experiment, whole, tmp_path):
    checkpoints = tmp_path / "run" / "checkpoints"

    def lose():
        for path in checkpoints.iterdir():
            path.unlink()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evolve(experiment, tmp_path / "run", observer=after_a_generation(1, lose))
    assert all(
        "--retrain-lost" in finding.remedy for finding in examine(tmp_path / "run") if finding.wrong[:7] == "missing"
    )
    evolve(experiment, tmp_path / "run", resume=True, mend=Mend(lost=True))
    same_run(tmp_path / "run", whole)
    assert "again: the same figures" in (tmp_path / "run" / "run.log").read_text()
    for path in checkpoints.iterdir():
        os.truncate(path, 99)
    assert all("--retrain-lost" in finding.remedy for finding in examine(tmp_path / "run"))
    evolve(experiment, tmp_path / "run", resume=True, mend=Mend(lost=True))
    same_run(tmp_path / "run", whole)


def test_a_generation_that_failed_altogether_stops_the_run_and_can_be_tried_again(experiment, whole, tmp_path):
    folder, executor = tmp_path / "run", InProcess(settle(experiment)[1], runners.unlucky)
    with pytest.raises(
        RunError, match=r"generation 2: all of it failed \(4\), most often because of: .*machine is full"
    ):
        evolve(experiment, folder, executor=executor)
    assert [finding.wrong[:32] for finding in examine(folder)] == ["generation 2: all of it failed ("]
    evolve(experiment, folder, resume=True, executor=executor)  # the failures are taken as they are
    assert "generation 2 closed: NONE of its candidates was trained (4 failed)" in (folder / "run.log").read_text()
    (finding,) = examine(folder)
    assert "--retry-failed" in finding.remedy
    (tmp_path / "mended").touch()
    evolve(experiment, folder, resume=True, executor=executor, mend=Mend(failed=True))
    same_run(folder, whole)
    assert events(folder) == events(whole)
    assert "went back to generation 1, to train 2 failed candidates again" in (folder / "run.log").read_text()
    evolve(experiment, folder, resume=True, mend=Mend(failed=True))  # nothing is left to be tried again
    assert events(folder) == events(whole)


def test_what_to_do_again_needs_a_run_that_is_resumed(experiment, tmp_path):
    with pytest.raises(InputError, match="add --resume"):
        evolve(experiment, tmp_path / "run", mend=Mend(failed=True))


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
