"""Faults that are no candidate's: the run stops, nothing is recorded as failed, and it goes on as if undisturbed."""

import contextlib
import errno
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import psutil
import pytest
import runners

from morphogen.candidate import Status
from morphogen.cli.doctor import examine
from morphogen.errors import InputError, RunError
from morphogen.execution import IN_PROCESS, Execution, InProcess
from morphogen.keeping import Mend
from morphogen.notices import Closed, Training
from morphogen.run import evolve, settle
from morphogen.store.ledger import Ledger
from processes import Command, forked
from tiny import events, untimed

pytestmark = pytest.mark.trained_before

#: SIGINT may be ignored where the tests run in the background.
#: A command of its own, whatever signals whoever runs these tests has it ignore (nohup does).
MAIN = (
    "import signal; signal.signal(2, signal.default_int_handler); signal.signal(1, signal.SIG_DFL); "
    "from morphogen.cli import main; main()"
)


def same_run(a, b):
    for name in ("lineage.json", "frontier.json"):
        assert untimed(a / name) == untimed(b / name)
    assert examine(a) == []


def nothing_failed(folder):
    statuses = [event["report"]["status"] for event in events(folder) if event["kind"] == "report"]
    assert set(statuses) <= {Status.TRAINED}
    return statuses


IN_POOL = Execution(workers=2)
BROKEN, MINE = BrokenPipeError(errno.EPIPE, "Broken pipe"), ValueError("mine")


@pytest.mark.parametrize(
    ("error", "execution"),
    [
        pytest.param(BROKEN, IN_PROCESS, id="os in process"),
        pytest.param(MINE, IN_POOL, id="value in a pool"),
        pytest.param(MINE, IN_PROCESS, id="value in process", marks=pytest.mark.slow),
        pytest.param(BROKEN, IN_POOL, id="os in a pool", marks=pytest.mark.slow),
    ],
)
@pytest.mark.anew
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


@pytest.mark.parametrize("execution", [IN_PROCESS, pytest.param(IN_POOL, id="pool", marks=pytest.mark.slow)])
@pytest.mark.anew
def test_a_cache_that_is_deleted_in_mid_run_ends_it_and_is_made_again(
    execution, experiment, whole, tmp_path, monkeypatch
):
    monkeypatch.setenv("MORPHOGEN_CACHE", str(tmp_path / "cache"))
    delete = after_a_generation(1, lambda: shutil.rmtree(tmp_path / "cache"))
    with pytest.raises(RunError, match=r"the cache was changed .* --resume goes on once that is mended"):
        evolve(experiment, tmp_path / "run", execution=execution, observer=delete)
    assert len(nothing_failed(tmp_path / "run")) == 5
    assert "; the cache was changed" in (tmp_path / "run" / "run.log").read_text()
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


def failing(call, n):
    """The same call, but for the n-th: the disk is full."""
    left = [n]

    def wrapped(*args, **kwargs):
        left[0] -= 1
        if left[0] == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "disk")
        return call(*args, **kwargs)

    return wrapped


@pytest.mark.parametrize("call", [pytest.param("replace", marks=pytest.mark.anew), "fsync"])
@pytest.mark.parametrize("apart", [5, pytest.param(3, marks=pytest.mark.slow)])
def test_a_disk_that_is_full_at_any_write_stops_the_run_whole(call, apart, experiment, whole, tmp_path, monkeypatch):
    """Of checkpoints, exports, the experiment, the environment: at the 2nd write, then, resumed, so many later, ..."""
    settle(experiment)  # the cache is there
    said = []
    for n in range(2, 200, apart):
        with monkeypatch.context() as patch:
            patch.setattr(os, call, failing(getattr(os, call), n))
            try:
                evolve(experiment, tmp_path / "run", resume=True)
                break
            except RunError as error:
                said.append(str(error))
    assert len(said) > 2
    assert all("No space left on device" in line for line in said)
    same_run(tmp_path / "run", whole)


class FullLog(io.StringIO):
    def flush(self):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_disk_that_is_full_for_the_log_stops_the_run_and_an_interrupt_stays_one(
    experiment, whole, tmp_path, monkeypatch
):
    folder = tmp_path / "run"

    def interrupt():
        monkeypatch.setattr(Ledger, "open", failing(Ledger.open, 1))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evolve(experiment, folder, observer=after_a_generation(0, interrupt))
    monkeypatch.undo()
    with monkeypatch.context() as patch:
        patch.setattr("morphogen.session._open_log", lambda folder: FullLog())
        with pytest.raises(RunError, match=r"run.log: cannot be written: No space left on device"):
            evolve(experiment, folder, resume=True)
    evolve(experiment, folder, resume=True)
    same_run(folder, whole)


def run_command(config, folder, *more):
    return subprocess.Popen(
        [sys.executable, "-c", MAIN, "run", str(config), "--out", str(folder), "--json", *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def fork_command(config, folder):
    return Command("run", config, "--out", folder, "--json")


@pytest.mark.parametrize("start", [fork_command, pytest.param(run_command, marks=pytest.mark.slow)])
def test_a_reader_that_leaves_stops_the_run_with_one_message(start, config, experiment, whole, tmp_path):
    with start(config, tmp_path / "run") as process:
        for _ in range(3):
            json.loads(process.stdout.readline())
        process.stdout.close()
        said = process.stderr.read()
    assert process.returncode == 2
    assert said.count("\n") == 1
    assert "stdout: cannot be written: Broken pipe; the same command with --resume goes on" in said
    nothing_failed(tmp_path / "run")
    evolve(experiment, tmp_path / "run", resume=True)
    same_run(tmp_path / "run", whole)


def session(leader):
    """Live processes of a session."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
            if os.getsid(process.pid) == leader and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_a_run_with_workers_leaves_no_process_and_one_line(number, config, experiment, whole, tmp_path):
    """To the whole group, as a terminal does; once workers train."""
    with run_command(config, tmp_path / "run", "--workers", "2") as process:
        while json.loads(process.stdout.readline())["event"] != "closed":
            pass
        os.killpg(process.pid, number)
        process.stdout.read()
        said = process.stderr.read()
    assert process.returncode == 130, said
    assert (said.count("\n"), "--resume goes on" in said) == (1, True)
    until = time.monotonic() + 30
    while session(process.pid) and time.monotonic() < until:
        time.sleep(0.1)
    assert session(process.pid) == []
    nothing_failed(tmp_path / "run")
    evolve(experiment, tmp_path / "run", resume=True)
    same_run(tmp_path / "run", whole)


@pytest.mark.slow
@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&- <&-", "> /dev/full", "2> /dev/full"])
def test_standard_files_that_are_closed_or_full_never_fail_a_candidate(closed, config, experiment, whole, tmp_path):
    command = f'exec "$0" -c "{MAIN}" run "$1" --out "$2" --json {closed}'
    done = subprocess.run(
        ["bash", "-c", command, sys.executable, str(config), str(tmp_path / "run")], capture_output=True, check=False
    )
    assert done.returncode == (2 if closed == "> /dev/full" else 0)
    assert b"Traceback" not in done.stderr + done.stdout
    assert all(json.loads(line)["event"] for line in done.stdout.splitlines())
    nothing_failed(tmp_path / "run")
    evolve(experiment, tmp_path / "run", resume=True)
    same_run(tmp_path / "run", whole)


def together(count, act):
    """The exit codes of that many processes that do the same at once: 2 of those that are told to leave it."""

    def told():
        try:
            act()
        except RunError as error:
            return 2 if "another writer has this run open" in str(error) or "holds a run" in str(error) else 1
        return 0

    pids = [forked(told) for _ in range(count)]
    return sorted(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids)


def test_of_processes_that_begin_one_run_at_once_one_does_and_the_others_are_told(experiment, whole, tmp_path):
    assert together(3, lambda: evolve(experiment, tmp_path / "run")) == [0, 2, 2]
    same_run(tmp_path / "run", whole)


def test_runs_that_make_one_cache_at_once_are_the_same(experiment, whole, tmp_path, monkeypatch):
    monkeypatch.setenv("MORPHOGEN_CACHE", str(tmp_path / "cache"))
    assert together(3, lambda: evolve(experiment, tmp_path / str(os.getpid()), generations=0)) == [0, 0, 0]
    roots = [untimed(path / "lineage.json") for path in tmp_path.iterdir() if path.name != "cache"]
    assert roots[0] == roots[1] == roots[2]
    assert [path.name for path in (tmp_path / "cache").iterdir() if path.name.startswith(".")] == []
