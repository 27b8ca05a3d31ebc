"""Ray: refusals that cost no cluster; slow: the lineage, also through a shared place, and when a node dies."""

import json
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
import runners
import yaml

from morphogen.cli.doctor import examine
from morphogen.errors import InputError
from morphogen.execution import Execution, Limits, open_executor
from morphogen.execution.base import Checkpointing
from morphogen.run import evolve, load, settle
from tiny import untimed, write_config

#: Of Ray, as small as it allows.
STORE = 80 * 2**20
#: A node of one processor and one GPU in name.
NODE = {"num_cpus": 1, "num_gpus": 1, "object_store_memory": STORE}


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


def test_the_cluster_to_copy_is_one_by_rays_own_schema():
    ray, jsonschema = pytest.importorskip("ray"), pytest.importorskip("jsonschema")
    text = (Path(__file__).parents[2] / "docs" / "execution.md").read_text()
    (block,) = re.findall(r"```yaml\n# cluster.yaml\n(.*?)```", text, re.DOTALL)
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    config = yaml.safe_load(block)
    jsonschema.validate(config, schema)
    assert config["head_node_type"] in config["available_node_types"]


@pytest.fixture
def cluster(monkeypatch):
    """A head that runs nothing."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("PYTHONPATH", ":".join(path for path in sys.path if path))
    made = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "include_dashboard": False, "object_store_memory": STORE},
    )
    yield made
    made.shutdown()


def comes_true(condition, what):
    """Waits for it."""
    until = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < until, what
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_nodes_may_join_late_and_be_lost_in_the_middle_of_a_candidate(cluster, tmp_path, monkeypatch, capsys):
    from morphogen.execution.ray import OnRay

    monkeypatch.setenv("MORPHOGEN_CACHE", str(tmp_path / "cache"))
    longer = {"generations: 2": "generations: 1", "population: 3": "population: 4"}
    longer |= {"rung1_tokens: 128": "rung1_tokens: 512", "rung2_tokens: 256": "rung2_tokens: 1024"}
    experiment, marks, interval = load(write_config(tmp_path, **longer)), tmp_path / "marks", 4
    evolve(experiment, tmp_path / "whole")
    marks.mkdir()
    how = Execution("ray", address=cluster.address, gpus_per_candidate=None, shared=str(tmp_path / "shared"))
    executor = OnRay(settle(experiment)[1], how, partial(runners.lose_a_node, marks), memory=lambda: 2 * 2**30)
    checkpointing = Checkpointing(executor, interval * 128, str(tmp_path / "shared"))
    with ThreadPoolExecutor(1) as beside:
        run = beside.submit(evolve, experiment, tmp_path / "run", executor=checkpointing)
        comes_true(lambda: executor._told or run.done(), "there is nobody to train")
        assert list(marks.iterdir()) == []
        for _ in range(2):
            cluster.add_node(**NODE)
        comes_true(lambda: (marks / "stands").exists() or run.done(), "candidate 2 is trained")
        late = cluster.add_node(**NODE)
        gone = (marks / "stands").read_text()
        (node,) = (node for node in cluster.list_all_nodes() if node.node_id == gone)
        cluster.remove_node(node, allow_graceful=False)
        run.result(120)
    executor.close()
    same_run(tmp_path / "run", tmp_path / "whole")
    trained = [step for index in range(5) for step in runners.steps_of(marks, index)]
    once = {(index, step) for index in range(5) for _, step in runners.steps_of(marks, index)}
    assert [step for _, step in runners.steps_of(marks, 2)] == [1, 2, 3, 4, 5, 6, 5, 6, 7, 8, 9, 10, 11, 12]
    assert {(marks / "stands").read_text(), late.node_id} < {node for node, _ in trained}
    shares = [[float(line) for line in (marks / f"{k}.gpus").read_text().split()] for k in range(5)]
    assert shares == [[0.32], [0.32], [0.32, 0.32], [0.32], [0.32, 1.0]]
    with capsys.disabled():
        print(f"\ntokens trained twice: {(len(trained) - len(once)) * 128}, between checkpoints: {interval * 128}")
    assert 0 < len(trained) - len(once) < interval
    assert not (tmp_path / "run" / "partial").exists()
    assert not (tmp_path / "shared" / "partial").exists()


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
