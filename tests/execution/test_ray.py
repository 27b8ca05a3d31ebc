"""Ray: refusals that cost no cluster, checkpoints through a shared place; slow: the lineage, also when a node dies."""

import os
import subprocess
import sys
import threading
import time

import pytest
import runners

from morphogen.candidate import moments_path
from morphogen.cli.doctor import examine
from morphogen.errors import InputError, RunError
from morphogen.execution import Execution, Limits, open_executor
from morphogen.run import evolve, settle
from tiny import untimed


def same_run(a, b):
    for name in ("lineage.json", "frontier.json"):
        assert untimed(a / name) == untimed(b / name)
    assert examine(a) == []


def test_without_ray_the_executor_is_refused(monkeypatch, experiment, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "morphogen.execution.ray", raising=False)
    with pytest.raises(InputError, match=r"ray is not installed; install it with pip install 'morphogen\[cluster\]'"):
        evolve(experiment, tmp_path / "run", execution=Execution("ray"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "nonsense"])
def test_a_cluster_that_cannot_be_reached_is_named(address):
    pytest.importorskip("ray")
    with pytest.raises(InputError, match=f"--address: no Ray cluster can be reached at '{address}': "):
        open_executor(Execution("ray", address=address), None)


def test_checkpoints_travel_whole(tmp_path):
    pytest.importorskip("ray")
    from morphogen.execution.ray import Exchange

    here, there = tmp_path / "here", tmp_path / "there"
    (here / "checkpoints").mkdir(parents=True)
    names = [f"checkpoints/{letter}.safetensors" for letter in "ab"]
    for name in (*names, "checkpoints/a.optimizer.safetensors"):
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
            shared.fetch(name, there)
        assert (there / names[0]).read_text() == f"weights of {names[0]}"
        assert sorted(path.name for path in (there / "checkpoints").iterdir()) == [
            "a.optimizer.safetensors",
            "a.safetensors",
        ]


def test_a_shared_place_that_does_not_work_is_told(tmp_path):
    pytest.importorskip("ray")
    from morphogen.execution.ray import Exchange

    with pytest.raises(InputError, match="--shared: got 'nowhere://x'"):
        Exchange("nowhere://x")
    (tmp_path / "file").touch()
    (tmp_path / "a").touch()
    with pytest.raises(RunError, match="a cannot be exchanged"):
        Exchange(str(tmp_path / "file")).leave("a", tmp_path)


@pytest.fixture
def cluster(monkeypatch):
    """A head that runs nothing and two nodes of one CPU and one (nominal) GPU."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("PYTHONPATH", ":".join(path for path in sys.path if path))
    store = 80 * 2**20
    made = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "include_dashboard": False, "object_store_memory": store},
    )
    made.add_node(num_cpus=1, num_gpus=1, object_store_memory=store)
    made.add_node(num_cpus=1, num_gpus=1, object_store_memory=store)
    yield made
    made.shutdown()


def nodes(folder):
    return {path.name.removeprefix("node-") for path in folder.glob("node-*")}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_node_that_is_killed_in_a_generation_costs_nothing(cluster, experiment, whole, tmp_path):
    from morphogen.execution.ray import OnRay

    with pytest.raises(InputError, match="--gpus-per-candidate: got 9, but the cluster has 2 GPUs"):
        OnRay(settle(experiment)[1], Execution("ray", address=cluster.address, gpus_per_candidate=9.0))
    how = Execution("ray", address=cluster.address, gpus_per_candidate=0.25)
    executor = OnRay(settle(experiment)[1], how, runners.unhurried)
    folder, killed = tmp_path / "run", []

    def kill():
        """One of the two nodes, once both have begun with something."""
        until = time.monotonic() + 300
        while len(nodes(folder)) < 2 and time.monotonic() < until:
            time.sleep(0.05)
        time.sleep(0.3)
        killed.extend(nodes(folder))
        cluster.remove_node(cluster.list_all_nodes()[-1], allow_graceful=False)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        evolve(experiment, folder, executor=executor)
    finally:
        killer.join()
        executor.close()
    assert len(killed) == 2
    begun = [line for path in folder.glob("node-*") for line in path.read_text().splitlines()]
    assert len(begun) > 9  # something was begun twice
    for path in folder.glob("node-*"):
        path.unlink()
    same_run(folder, whole)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_two_ray_workers_give_the_same_lineage_also_through_a_shared_place_and_under_limits(
    experiment, whole, tmp_path, monkeypatch
):
    pytest.importorskip("ray")
    monkeypatch.setenv("PYTHONPATH", ":".join(path for path in sys.path if path))
    how = Execution("ray", workers=2, limits=Limits(seconds=120.0), shared=str(tmp_path / "shared"))
    evolve(experiment, tmp_path / "run", execution=how)
    same_run(tmp_path / "run", whole)


LISTENING = """
import os, signal, sys, psutil
from morphogen.execution import Execution, open_executor
def heard(number, frame): raise KeyboardInterrupt
signal.signal(signal.SIGTERM, heard)
executor = open_executor(Execution("ray", workers=1), None)
for process in psutil.Process().children(recursive=True):
    for connection in process.net_connections("tcp"):
        if connection.status == psutil.CONN_LISTEN:
            print(connection.laddr.ip.removeprefix("::ffff:"))
print(os.environ["RAY_AUTH_MODE"])
try:
    os.kill(os.getpid(), signal.SIGTERM)
except KeyboardInterrupt:
    print("interrupted")
executor.close()
"""


@pytest.mark.slow
def test_a_cluster_that_is_started_here_is_heard_here_alone_wants_a_token_and_leaves_sigterm_to_the_run(tmp_path):
    pytest.importorskip("ray")
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    env |= {"PYTHONPATH": ":".join(path for path in sys.path if path), "HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", LISTENING], capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr
    *places, mode, end = done.stdout.split()
    assert (set(places), mode, end) == ({"127.0.0.1"}, "token", "interrupted")
