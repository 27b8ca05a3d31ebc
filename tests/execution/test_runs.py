"""Whole runs: the same lineage however they are carried out, and mishaps that are survived, recorded and reported."""

import os
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
import runners
import torch

from morphogen.candidate import Status, StopReason
from morphogen.cli.doctor import examine
from morphogen.errors import InputError, RunError
from morphogen.execution import Execution, InProcess, Limits
from morphogen.execution.base import Checkpointing
from morphogen.execution.pool import Pool
from morphogen.keeping import Keep
from morphogen.notices import Measured, Training
from morphogen.run import evolve, settle
from morphogen.store import ledger
from tiny import untimed

pytestmark = pytest.mark.trained_before

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def same_run(a, b):
    for name in ("lineage.json", "frontier.json"):
        assert untimed(a / name) == untimed(b / name)
    assert examine(a) == examine(b) == []


@pytest.fixture
def pool(experiment):
    made = []

    def make(runner, **limits):
        made.append(Pool(settle(experiment)[1], 2, Limits(**limits), runner))
        return made[-1]

    yield make
    for pool in made:
        pool.close()


@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_pool_gives_the_same_lineage_as_one_process(workers, experiment, whole, tmp_path):
    heard = []
    evolve(experiment, tmp_path / "run", execution=Execution(workers=workers), observer=heard.append)
    same_run(tmp_path / "run", whole)
    measured = [notice for notice in heard if isinstance(notice, Measured)]
    assert [(notice.position, notice.total) for notice in measured[1:5]] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert sum(isinstance(notice, Training) for notice in heard) == 9 * 3


@pytest.mark.parametrize(("tokens", "steps"), [(0, "12123"), (128, "1223")])
def test_a_worker_killed_in_the_middle_of_a_candidate_changes_nothing(tokens, steps, experiment, whole, pool, tmp_path):
    workers, devices = pool(runners.lose_a_worker), runners.gpus(tmp_path, "cpu", "cpu", "cpu")
    if not tokens:  # on pretended devices, which makes no difference either
        workers._devices = lambda name: devices
    run = evolve(experiment, tmp_path / "run", executor=Checkpointing(workers, tokens) if tokens else workers)
    told = [node.timed for node in run.lineage.nodes if node.timed]
    assert {timed.get("gpu") for timed in told} <= ({None} if tokens else {0.0, 1.0, 2.0})
    assert tokens or all(timed["placed_memory_bytes"] > timed["peak_memory_bytes"] for timed in told)
    assert (tmp_path / "run" / "steps").read_text().split() == [*steps]
    for name in ("killed", "steps"):
        (tmp_path / "run" / name).unlink()
    same_run(tmp_path / "run", whole)


def test_an_interrupted_pool_leaves_a_run_that_goes_on(experiment, whole, tmp_path):
    def stop(notice):
        if isinstance(notice, Measured) and notice.candidate.generation == 1:
            raise KeyboardInterrupt

    how = Execution(workers=2, checkpoint_tokens=1)
    with pytest.raises(KeyboardInterrupt):
        evolve(experiment, tmp_path / "run", execution=how, observer=stop)
    (tmp_path / "run" / "partial").mkdir(exist_ok=True)
    (tmp_path / "run" / "partial" / "left.00000003.safetensors").touch()
    evolve(experiment, tmp_path / "run", resume=True)
    assert not (tmp_path / "run" / "partial").exists()
    same_run(tmp_path / "run", whole)


def test_nan_hanging_greedy_and_deadly_candidates_are_survived_recorded_and_reported(experiment, pool, tmp_path):
    limits = {"seconds": 10.0, "memory_bytes": 900 * 2**20}
    run = evolve(experiment, tmp_path / "run", executor=pool(runners.mishap, **limits))
    reasons = {node.index: node.reason for node in run.lineage.nodes if node.status is Status.FAILED}
    assert reasons.keys() == runners.MISHAPS.keys()
    for index, said in {
        1: "training diverged at step",
        2: "not done after 10 seconds, the time limit",
        3: "out of memory: its worker held",
        4: "its worker died 2 times (killed by SIGKILL)",
    }.items():
        assert said in reasons[index]
    assert run.lineage.nodes[1].stop_reason == StopReason.NOT_FINITE
    assert len(run.lineage.nodes) == 9
    assert {node.status for node in run.lineage.nodes if node.generation == 2} == {Status.TRAINED}
    table, log = (tmp_path / "run" / "events.csv").read_text(), (tmp_path / "run" / "run.log").read_text()
    assert all(said in table and said in log for said in ("the time limit", "out of memory", "killed by SIGKILL"))
    for path in (tmp_path / "run").glob("*.begun"):
        path.unlink()
    assert examine(tmp_path / "run") == []


def test_a_disk_that_is_full_for_a_worker_ends_the_run_and_leaves_it_resumable(experiment, whole, pool, tmp_path):
    with pytest.raises(RunError, match=r"safetensors: the checkpoint cannot be written: File too large"):
        evolve(experiment, tmp_path / "run", executor=pool(runners.small_files))
    evolve(experiment, tmp_path / "run", resume=True, execution=Execution(workers=2))
    same_run(tmp_path / "run", whole)


def test_a_ledger_that_another_program_locks_ends_the_run_and_leaves_it_resumable(
    experiment, whole, tmp_path, monkeypatch
):
    monkeypatch.setattr(ledger, "BUSY_SECONDS", 0.2)
    other = []

    def lock(notice):
        if isinstance(notice, Training) and notice.candidate.index == 2 and not other:
            other.append(sqlite3.connect(tmp_path / "run" / "ledger.sqlite", isolation_level=None))
            other[0].execute("BEGIN IMMEDIATE")

    with pytest.raises(RunError, match=r"event \d+ \(report\) could not be written: database is locked"):
        evolve(experiment, tmp_path / "run", observer=lock)
    other[0].close()
    evolve(experiment, tmp_path / "run", resume=True)
    same_run(tmp_path / "run", whole)


def test_a_second_writer_is_told_who_the_first_is(experiment, tmp_path):
    def second(notice):
        if isinstance(notice, Training) and notice.candidate.index == 0 and notice.step.step == 1:
            with pytest.raises(RunError, match=f"another writer has this run open .process {os.getpid()} on "):
                evolve(experiment, tmp_path / "run", resume=True)

    evolve(experiment, tmp_path / "run", generations=0, observer=second)


def sizes(folder):
    return [path.stat().st_size for path in (folder / "checkpoints").glob("*.safetensors")]


def test_checkpoints_keep_to_the_disk_budget(experiment, whole, tmp_path):
    budget = sum(sizes(whole)) * 3 // 4
    seen = []

    def look(notice):
        if isinstance(notice, Measured):
            seen.append(sum(sizes(tmp_path / "run")))

    evolve(experiment, tmp_path / "run", keep=Keep(disk_budget=budget), observer=look)
    assert max(seen) > budget >= sum(sizes(tmp_path / "run"))
    evolve(experiment, tmp_path / "run", resume=True)
    same_run(tmp_path / "run", whole)
    assert "to keep to the disk budget" in (tmp_path / "run" / "run.log").read_text()


def test_a_disk_budget_too_small_for_what_is_needed_is_told_and_can_be_raised(experiment, whole, tmp_path):
    with pytest.raises(RunError, match=r"survivors and frontier take .* --resume goes on with a larger"):
        evolve(experiment, tmp_path / "run", keep=Keep(disk_budget=1000))
    evolve(experiment, tmp_path / "run", resume=True)
    same_run(tmp_path / "run", whole)


def test_a_run_on_a_cluster_of_gpus_needs_none_where_it_is_driven(experiment, whole, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    how = {"device": "cuda", "execution": Execution("ray", address="auto")}
    executor = InProcess(settle(experiment)[1], runners.on_a_processor)
    unsettled = experiment.model_copy(update={"train": experiment.train.model_copy(update={"bf16": "auto"})})
    with pytest.raises(InputError, match=r"train\.bf16: auto depends on the device, and there is no cuda here"):
        evolve(unsettled, tmp_path / "auto", executor=executor, **how)
    evolve(experiment, tmp_path / "run", executor=executor, **how)
    for name in ("lineage.json", "frontier.json"):
        assert untimed(tmp_path / "run" / name) == untimed(whole / name)
    with pytest.raises(InputError, match="device: got 'cuda', but this machine has 0 CUDA devices"):
        evolve(experiment, tmp_path / "here", device="cuda")


@pytest.mark.slow
def test_ten_kills_at_random_moments_leave_identical_lineages():
    """Of processes and of pools, over five hash seeds: benchmarks/kills.py does a hundred."""
    began = time.monotonic()
    command = [sys.executable, str(BENCHMARKS / "kills.py"), "--quick"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    assert "10 of 10 identical" in done.stdout
    assert time.monotonic() - began > 1.0
