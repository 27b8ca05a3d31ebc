"""Workers: the same reports whatever carries them out; dying, hanging and greedy candidates cost themselves alone."""

import contextlib
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import runners
import torch

from morphogen.candidate import Status
from morphogen.cli.options import execution_of, size_bytes
from morphogen.errors import InputError, MemoryShortError, RunError
from morphogen.execution import Execution, InProcess, Limits, open_executor
from morphogen.execution.base import MACHINES, NO_LOSSES
from morphogen.execution.placement import boundless
from morphogen.execution.pool import Pool, devices_of
from morphogen.plugins import allow_code


@pytest.fixture
def pool(request):
    made = []

    def make(workers=2, **limits):
        made.append(Pool(None, workers, Limits(**limits), runners.act))
        return made[-1]

    yield make
    for pool in made:
        pool.close()


def carry_out(pool, ids, place, progress=lambda candidate, step: None):
    jobs = [runners.job(id, index, place) for index, id in enumerate(ids)]
    return {report.id: report for report in pool.map(jobs, progress)}


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


def test_every_job_has_its_report_and_workers_stay_for_the_next(pool, tmp_path):
    heard, two = [], pool()
    ids = [f"well-{i}" for i in range(6)]
    found = carry_out(two, ids, tmp_path, lambda candidate, step: heard.append((candidate.id, step.step)))
    assert {id: report.metrics["index"] for id, report in found.items()} == {id: i for i, id in enumerate(ids)}
    assert sorted(heard) == [(id, 1) for id in ids]
    carry_out(two, ["well-7"], tmp_path)
    begun = [start for id in (*ids, "well-7") for start in runners.begun(id, tmp_path)]
    assert len({pid for pid, _ in begun}) <= 2
    assert {threads for _, threads in begun} == {torch.get_num_threads()}
    assert os.getpid() not in {pid for pid, _ in begun}


@pytest.mark.usefixtures("no_code")
def test_workers_have_the_permission_to_run_code_that_whoever_began_them_has(pool, tmp_path):
    for scope, allowed in ((allow_code(), 1.0), (contextlib.nullcontext(), 0.0)):
        with scope:
            one = pool(workers=1)
            one.runner = runners.permitted
            assert carry_out(one, ["well-0"], tmp_path)["well-0"].metrics == {"allowed": allowed}


def test_two_workers_work_at_the_same_time(pool, tmp_path):
    carry_out(two := pool(), ["well-0", "well-1"], tmp_path)
    began = time.monotonic()
    carry_out(two, [f"slow-{i}" for i in range(4)], tmp_path)
    assert time.monotonic() - began < 4 * 0.3


def test_what_a_candidate_raises_is_its_own_failure(pool, tmp_path):
    found = carry_out(pool(), ["raise-0", "well-1"], tmp_path)
    assert found["raise-0"].status is Status.FAILED
    assert found["raise-0"].reason.startswith("ZeroDivisionError: on purpose (act:")
    assert found["raise-0"] == InProcess(runner=runners.act).run(runners.job("raise-0", 0, tmp_path), print)
    assert found["well-1"].status is Status.TRAINED


def test_what_concerns_the_run_is_raised_and_nothing_trains_on(pool, tmp_path):
    two = pool()
    with pytest.raises(RunError, match="disk full"):
        carry_out(two, ["hang-0", "full-1"], tmp_path)
    assert not any(alive(pid) for pid, _ in runners.begun("hang-0", tmp_path))
    assert carry_out(two, ["well-2"], tmp_path)["well-2"].status is Status.TRAINED


OUTSIDE = {
    "handles-0": r"tokens.bin: Too many open files \(while candidate handles-0 was trained\)",
    "threads-0": "can't start new thread",
    "library-0": "No module named 'gone'",
    "wrapped-0": "kernel.so: Permission denied",
}


@pytest.mark.parametrize("id", OUTSIDE)
def test_a_fault_from_outside_is_raised_and_no_failure_of_the_candidate(id, tmp_path):
    with pytest.raises(RunError, match=OUTSIDE[id]):
        InProcess(runner=runners.act).run(runners.job(id, 0, tmp_path), lambda candidate, step: None)


def test_faults_from_outside_in_a_worker_are_raised_too(pool, tmp_path):
    one = pool(1)
    for id in OUTSIDE:
        with pytest.raises(RunError, match=OUTSIDE[id]):
            carry_out(one, [id], tmp_path)


def test_a_candidate_that_exits_is_its_own_failure(tmp_path):
    report = InProcess(runner=runners.act).run(runners.job("exits-0", 0, tmp_path), lambda candidate, step: None)
    assert (report.status, report.reason[:13]) == (Status.FAILED, "SystemExit: 0")


@pytest.mark.parametrize(
    "error", [BrokenPipeError(32, "Broken pipe"), ValueError("mine"), MemoryError(), InputError("x"), SystemExit(3)]
)
@pytest.mark.parametrize("id", ["well-0", "spoils-0"])
def test_what_a_watcher_raises_is_raised_as_it_is(id, error, tmp_path):
    def watch(candidate, step):
        raise error

    with pytest.raises(type(error)) as found:
        InProcess(runner=runners.act).run(runners.job(id, 0, tmp_path), watch)
    assert found.value is error


def test_what_a_watcher_raises_ends_a_pool_too(pool, tmp_path):
    error, two = BrokenPipeError(32, "Broken pipe"), pool()

    def watch(candidate, step):
        raise error

    with pytest.raises(BrokenPipeError) as found:
        carry_out(two, ["hang-0", "well-1"], tmp_path, watch)
    assert found.value is error
    assert not any(alive(pid) for pid, _ in runners.begun("hang-0", tmp_path))


@pytest.mark.parametrize(("id", "how"), [("terminated-0", "SIGTERM"), ("cut-0", "SIGBUS")])
def test_a_worker_that_is_ended_from_outside_twice_is_no_failure_of_its_candidate(id, how, pool, tmp_path):
    with pytest.raises(RunError, match=rf"{id} was ended 2 times from outside \(killed by {how}\)"):
        carry_out(pool(1), [id], tmp_path)
    assert len(runners.begun(id, tmp_path)) == 2


def test_a_device_is_tried_again_by_a_fresh_worker_then_laid_to_the_candidate(pool, tmp_path):
    found = carry_out(pool(1), ["breaks-0", "device-1", "well-2"], tmp_path)
    assert [found[id].status for id in ("breaks-0", "device-1", "well-2")] == ["trained", "failed", "trained"]
    assert found["device-1"].reason == "its worker died 2 times (device cuda:0 no longer answers)"
    (first, _), (second, _) = runners.begun("breaks-0", tmp_path)
    assert first != second


def unborn():
    """Stands for what a worker cannot read when it starts, such as a plug-in that is gone."""
    os._exit(7)


class Unreadable:
    def __reduce__(self):
        return unborn, ()


def test_workers_that_do_not_even_start_are_no_failure_of_a_candidate(tmp_path):
    pool = Pool(Unreadable(), 1, Limits(), runners.act)
    with pytest.raises(RunError, match=r"a worker died 2 times before it began with candidate well-0 \(exit code 7\)"):
        carry_out(pool, ["well-0"], tmp_path)
    pool.close()


def test_a_worker_for_which_there_are_no_handles_left_is_told(pool, tmp_path, monkeypatch):
    def none_left(duplex=True):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(multiprocessing.get_context("forkserver"), "Pipe", none_left)
    with pytest.raises(RunError, match=r"a worker cannot be started: .*Too many open files"):
        carry_out(pool(), ["well-0"], tmp_path)


def test_what_a_candidate_prints_in_a_worker_is_not_output(pool, tmp_path, capfd):
    carry_out(pool(1), ["prints-0"], tmp_path)
    assert "said by a candidate" not in capfd.readouterr().out


@pytest.mark.parametrize(("id", "how"), [("die-0", "killed by SIGKILL"), ("exit-0", "exit code 3")])
def test_a_dead_worker_is_replaced_its_candidate_begun_once_more_then_given_up(id, how, pool, tmp_path):
    ids = ["well-1", id, *(f"well-{i}" for i in range(2, 6))]
    found = carry_out(pool(), ids, tmp_path)
    assert found[id].reason == f"its worker died 2 times ({how})"
    assert len(runners.begun(id, tmp_path)) == 2
    assert [report.status for name, report in found.items() if name != id] == [Status.TRAINED] * 5


def test_a_candidate_whose_worker_died_by_accident_is_measured_after_all(pool, tmp_path):
    found = carry_out(pool(), ["once-0", "well-1"], tmp_path)
    assert {report.status for report in found.values()} == {Status.TRAINED}
    assert len(runners.begun("once-0", tmp_path)) == 2


def test_a_worker_that_died_while_it_had_nothing_to_do_costs_no_attempt(pool, tmp_path):
    one = pool(1)
    carry_out(one, ["well-0"], tmp_path)
    os.kill(runners.begun("well-0", tmp_path)[0][0], 9)
    time.sleep(0.2)
    assert carry_out(one, ["once-1"], tmp_path)["once-1"].status is Status.TRAINED


def test_a_hanging_candidate_is_ended_at_its_time_limit(pool, tmp_path):
    two = pool(seconds=0.5)
    began = time.monotonic()
    found = carry_out(two, ["hang-0", *(f"slow-{i}" for i in range(1, 5))], tmp_path)
    assert found["hang-0"].status is Status.FAILED
    assert found["hang-0"].reason == "not done after 0.5 seconds, the time limit"
    assert [report.status for id, report in found.items() if id != "hang-0"] == [Status.TRAINED] * 4
    assert len(runners.begun("hang-0", tmp_path)) == 1
    assert not alive(runners.begun("hang-0", tmp_path)[0][0])
    assert time.monotonic() - began < 60


def test_a_greedy_candidate_is_ended_at_its_memory_limit(pool, tmp_path):
    found = carry_out(pool(memory_bytes=900 * 2**20), ["greedy-0", "slow-1", "slow-2"], tmp_path)
    assert found["greedy-0"].status is Status.FAILED
    assert found["greedy-0"].reason.startswith("out of memory: its worker held")
    assert found["slow-1"].status is found["slow-2"].status is Status.TRAINED


def test_pages_of_mapped_files_are_not_a_candidates_memory(pool, tmp_path):
    with (tmp_path / "tokens.bin").open("wb") as file:
        file.truncate(runners.GIB)  # no block of it is on disk
    found = carry_out(pool(1, memory_bytes=900 * 2**20), ["mapped-0"], tmp_path)
    assert found["mapped-0"].status is Status.TRAINED, found["mapped-0"].reason


@pytest.fixture
def on_gpus(tmp_path):
    made = []

    def make(*kinds, workers=2):
        devices = runners.gpus(tmp_path, *kinds)
        made.append(Pool(None, workers, Limits(), runners.placed, lambda name: devices, runners.hears))
        return made[-1]

    yield make
    for pool in made:
        pool.close()


def places(id, place):
    return (place / f"{id}.placed").read_text().splitlines()


def test_every_worker_sees_one_device_alone_and_candidates_are_spread(on_gpus, tmp_path):
    ids = [f"slow-{i}" for i in range(6)]
    found = carry_out(on_gpus("cpu", "cpu"), ids, tmp_path)
    assert {report.timed["gpu"] for report in found.values()} == {0.0, 1.0}
    assert {report.timed["placed_memory_bytes"] for report in found.values()} == {0.0}  # of which nothing can be told
    for id, report in found.items():
        assert places(id, tmp_path) == [f"gpu{report.timed['gpu']:.0f} cpu shares"]
    seen = {pid: {found[id].timed["gpu"] for id in ids if runners.begun(id, tmp_path)[0][0] == pid}
            for id in ids for pid, _ in runners.begun(id, tmp_path)}  # fmt: skip
    assert len(seen) == 2
    assert all(len(devices) == 1 for devices in seen.values())


def test_a_candidate_for_which_memory_is_short_is_begun_again_alone(on_gpus, tmp_path):
    found = carry_out(on_gpus("cpu"), ["slow-0", "large-1", "well-2"], tmp_path)
    assert {report.status for report in found.values()} == {Status.TRAINED}
    assert places("large-1", tmp_path) == ["gpu0 cpu shares", "gpu0 cpu alone"]
    assert [len(runners.begun(id, tmp_path)) for id in found] == [1, 1, 1]
    carry_out(on_gpus("cpu", workers=1), ["large-3"], tmp_path)  # alone from the first
    assert places("large-3", tmp_path) == ["gpu0 cpu alone"]
    outer = runners.job("large-4", 4, tmp_path).replace(shares=True)  # with others that this pool knows nothing of
    with pytest.raises(MemoryShortError):
        list(on_gpus("cpu", workers=1).map([outer], print))


def test_a_device_that_is_gone_at_first_is_taken_out(on_gpus, tmp_path):
    with pytest.warns(RuntimeWarning, match="device cuda:0 does not answer; the run goes on on cuda:1"):
        found = carry_out(on_gpus("cuda", "cpu"), [f"well-{i}" for i in range(4)], tmp_path)
    assert {(report.status, report.timed["gpu"]) for report in found.values()} == {(Status.TRAINED, 1.0)}


def test_what_computes_on_a_device_that_is_lost_goes_elsewhere_and_is_not_blamed(on_gpus, tmp_path):
    ids = [f"loses-{i}" for i in range(6)]
    with pytest.warns(RuntimeWarning, match="device cuda:1 does not answer; the run goes on on cuda:0, cuda:2"):
        found = carry_out(on_gpus("cpu", "cpu", "cpu", workers=3), ids, tmp_path)
    assert {report.status for report in found.values()} == {Status.TRAINED}
    assert {report.timed["gpu"] for report in found.values()} <= {0.0, 2.0}
    lost = [id for id in ids if any(place.startswith("gpu1") for place in places(id, tmp_path))]
    assert lost
    assert all(len(places(id, tmp_path)) == 2 for id in lost)


def test_without_a_device_left_the_run_stops_and_candidates_can_be_trained_later(on_gpus, tmp_path):
    with pytest.raises(RunError, match="device cuda:0 does not answer"):
        carry_out(on_gpus("cuda"), ["well-0"], tmp_path)
    with pytest.raises(RunError, match="device cpu does not answer"):
        carry_out(on_gpus(), ["well-0"], tmp_path)


def test_a_candidate_that_breaks_devices_which_answer_again_has_failed(on_gpus, tmp_path):
    found = carry_out(on_gpus("cpu", "cpu"), ["device-0", "well-1"], tmp_path)
    assert found["device-0"].reason == "its worker died 2 times (device cuda:0 no longer answers)"
    assert found["well-1"].status is Status.TRAINED


def test_devices_are_those_of_this_machine():
    assert devices_of("cpu") == (boundless("cpu"),)
    assert len(devices_of("cuda")) == torch.cuda.device_count()


ORPHANS = """
import sys, runners
from morphogen.execution import pool, worker
worker.PRELOADED = worker.PRELOADED[:1]  # without what only training needs
two = pool.Pool(None, 2, runner=runners.act)
list(two.map([runners.job(id, 0, sys.argv[1]) for id in ("hang-0", "hang-1")], print))
"""


def test_workers_start_where_the_temporary_folder_has_a_long_name_and_end_with_a_parent_that_is_killed(tmp_path):
    temporary = tmp_path / ("x" * 120)
    temporary.mkdir()
    env = os.environ | {"TMPDIR": str(temporary), "PYTHONPATH": os.pathsep.join(sys.path)}
    ids = ("hang-0", "hang-1")
    with subprocess.Popen([sys.executable, "-c", ORPHANS, str(tmp_path)], env=env, stderr=subprocess.PIPE) as parent:
        until = time.monotonic() + 300
        while not all(runners.begun(id, tmp_path) for id in ids) and time.monotonic() < until:
            time.sleep(0.05)
        workers = [pid for id in ids for pid, _ in runners.begun(id, tmp_path)]
        parent.kill()
        _, said = parent.communicate()
    assert len(workers) == 2
    until = time.monotonic() + 60
    while any(map(alive, workers)) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(map(alive, workers))
    assert said == b""


def test_limits_need_a_process_of_their_own():
    assert isinstance(open_executor(Execution(), None), InProcess)
    assert isinstance(open_executor(Execution(limits=Limits(seconds=1.0)), None), Pool)
    assert isinstance(open_executor(Execution(workers=1), None), Pool)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"executor": "rey"}, "--executor: got 'rey', expected one of local, ray; did you mean 'ray'?"),
        ({"workers": 0}, "--workers: got 0, expected more than 0"),
        ({"timeout": -1.0}, "--timeout: got -1, expected more than 0"),
        ({"address": "auto"}, "--address: only --executor ray has a use for it, got --executor local"),
        ({"gpus_per_candidate": -0.5, "executor": "ray"}, "--gpus-per-candidate: got -0.5, expected from 0 to 1"),
        ({"checkpoint_tokens": 0}, "--checkpoint-tokens: got 0, expected more than 0"),
        ({"checkpoint_tokens": -1}, "--checkpoint-tokens: got -1, expected more than 0"),
        ({"checkpoint_tokens": 2**63}, "--checkpoint-tokens: got 9223372036854775808, expected less than"),
        ({"gpus_per_candidate": None}, "--gpus-per-candidate: only --executor ray has a use for it"),
        ({"gpus_per_candidate": 2.0, "executor": "ray"}, "--gpus-per-candidate: got 2, expected from 0 to 1"),
        ({"memory_limit": "much"}, "--memory-limit: got 'much', expected a size such as 512MiB, 2GB, or"),
        ({"memory_limit": "1.2.3GB"}, "--memory-limit: got '1.2.3GB', expected"),
    ],
)
def test_options_without_meaning_are_refused(options, said):
    with pytest.raises(InputError) as error:
        execution_of(**options)
    assert str(error.value).startswith(said)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("123", 123),
        ("2GB", 2 * 10**9),
        ("512MiB", 512 * 2**20),
        ("1.5 g", 1_500_000_000),
        ("3k", 3000),
        ("1Ki", 1024),
        (" 2 gib ", 2**31),
        (".5k", 500),
        ("7b", 7),
    ],
)
def test_sizes_are_read(text, size):
    assert size_bytes("--disk-budget", text) == size


@pytest.mark.parametrize(
    "text",
    ["", " ", "GB", "0", "0.4", "-1", "1.2.3GB", "2GB or so", "2 G B", "1e9", "2GB;3", "nan", "inf", "9" * 30,
     "9" * 5000, "1_000", "2XB", "1..5k", "٣GB"],
)  # fmt: skip
def test_what_is_no_size_is_refused_with_what_one_looks_like(text):
    with pytest.raises(InputError) as error:
        size_bytes("--disk-budget", text)
    assert str(error.value).startswith(f"--disk-budget: got {text!r}, expected a size such as 512MiB, 2GB")


def test_a_candidate_that_gets_on_between_losses_is_begun_again_as_often_as_it_takes():
    losses = NO_LOSSES
    for reached in (-1, 3, 6, 9):
        losses = losses.another(reached)
        assert not losses.why_no_more
    assert losses.another(9).why_no_more == "its worker died 2 times"
    assert NO_LOSSES.another(-1).another(-1).why_no_more
    for _ in range(MACHINES - 1):
        losses = losses.another(9, machine=True)
        assert not losses.why_no_more
    assert losses.another(9, machine=True).why_no_more == "the machines that it was on were lost 8 times"
    assert not losses.another(12, machine=True).why_no_more
