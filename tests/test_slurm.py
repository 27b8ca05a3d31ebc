"""The scripts for SLURM, under a pretended one: what they start where, and what becomes of interrupted searches."""

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tiny import Cli

SCRIPTS = Path(__file__).parents[1] / "scripts" / "slurm"
NOTE = 'note() { echo "${NODE:-}${0##*/} $*" >>"$PLACE/said"; }'
#: What stands for each program; what they are called with is noted.
STANDINS = {
    "srun": """
        while [[ $1 == -* ]]; do [[ $1 != --nodelist=* ]] || export NODE=${1#*=}:; shift; done
        exec "$@" """,
    "scontrol": """
        if [[ $1 == show ]]; then printf 'a1\\na2\\na3\\n'; else note "$@"; fi""",
    "getent": """
        echo '127.0.1.1 STREAM a1'; echo '10.0.0.7 STREAM a1'""",
    "hostname": """
        echo '192.168.0.1 fe80::1 '""",
    "ray": """
        if [[ $1 == status ]]; then exec test -e "$PLACE/up"; fi
        note "$@" "$RAY_AUTH_MODE ${#RAY_AUTH_TOKEN}"
        trap 'note ended; exit 0' TERM
        if [[ $* == *--head* && -z ${BROKEN:-} ]]; then touch "$PLACE/up"; fi
        while :; do sleep 0.02; done""",
    "morphogen": """
        note "$@"
        trap 'exit 130' TERM
        while [[ -n ${LONG:-} || $(grep -c 'ray start' "$PLACE/said") != "${NODES:-0}" ]]; do sleep 0.02; done
        exit "${CODE:-0}" """,
}


class Slurm:
    """A place where the stand-ins are found first, and what they have noted."""

    def __init__(self, place: Path) -> None:
        self.place = place
        for name, does in STANDINS.items():
            (place / name).write_text(f"#!/usr/bin/env bash\n{NOTE}\n{does}\n")
            (place / name).chmod(0o755)
        (place / "said").touch()

    def begin(self, script: str, *args: str, **env: object) -> "subprocess.Popen[str]":
        shown = {
            "PATH": f"{self.place}:{os.environ['PATH']}",
            "PLACE": str(self.place),
            "SLURM_JOB_ID": "70123",
            "SLURM_JOB_NODELIST": "a[1-3]",
            **{name: str(value) for name, value in env.items()},
        }
        command = ["bash", str(SCRIPTS / script), *args]
        return subprocess.Popen(command, env=shown, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    def run(self, script: str, *args: str, **env: object) -> tuple[int, str]:
        process = self.begin(script, *args, **env)
        said, _ = process.communicate(timeout=60)
        return process.returncode, said

    @property
    def said(self) -> list[str]:
        return (self.place / "said").read_text().splitlines()

    def until(self, sign: str) -> None:
        end = time.monotonic() + 60
        while not any(sign in line for line in self.said):
            assert time.monotonic() < end, self.said
            time.sleep(0.02)


@pytest.fixture
def slurm(tmp_path: Path) -> Slurm:
    return Slurm(tmp_path)


@pytest.mark.parametrize("script", sorted(path.name for path in SCRIPTS.iterdir()))
def test_scripts_are_bash_that_tells_how_it_is_called(script: str, slurm: Slurm) -> None:
    assert subprocess.run(["bash", "-n", str(SCRIPTS / script)], check=False).returncode == 0
    code, said = slurm.run(script, "experiment.yaml")
    assert code == 2
    assert said.startswith("usage: sbatch --")
    assert f"scripts/slurm/{script} EXPERIMENT FOLDER" in said
    text = (SCRIPTS / script).read_text()
    options = [line for line in text.splitlines() if line.startswith("#SBATCH")]
    assert text.index("#SBATCH") < text.index("set -e")  # after the first command SLURM reads no more of them
    assert {"#SBATCH --requeue", "#SBATCH --open-mode=append"} < set(options)


def test_each_task_of_an_array_searches_with_its_seed(slurm: Slurm) -> None:
    code, _ = slurm.run(
        "array.sbatch", "a b.yaml", "runs/x", "--generations", "9", SLURM_ARRAY_TASK_ID=3, SLURM_CPUS_PER_TASK=8
    )
    assert code == 0
    assert slurm.said == [
        "morphogen run a b.yaml --out runs/x/3 --seed 3 --device cuda --workers 8 --resume --generations 9"
    ]


@pytest.mark.parametrize(
    ("code", "left", "again"), [(0, 60, False), (2, 60, False), (130, 60, True), (130, 5000, False), (130, None, False)]
)
def test_a_search_that_its_time_ended_is_queued_again_one_that_was_cancelled_is_not(
    code: int, left: int | None, again: bool, slurm: Slurm
) -> None:
    end = {} if left is None else {"SLURM_JOB_END_TIME": int(time.time()) + left}
    assert slurm.run("array.sbatch", "a.yaml", "runs/x", CODE=code, **end)[0] == code
    assert slurm.said[1:] == ["scontrol requeue 70123"] * again


def test_a_ray_cluster_of_all_nodes_carries_a_search_and_ends_with_it(slurm: Slurm) -> None:
    code, said = slurm.run(
        "ray.sbatch", "a.yaml", "runs/x", "--gpus-per-candidate", "0.25",
        SLURM_CPUS_PER_TASK=8, SLURM_GPUS_ON_NODE=4, NODES=3, CODE=5, RAY_PATIENCE=0.05,
    )  # fmt: skip
    assert (code, said) == (5, "")
    slurm.until("a3:ray ended")
    size, address = "--block --num-cpus=8 --num-gpus=4 token 64", "10.0.0.7:30123"
    assert sorted(slurm.said[:4]) == [
        f"a1:ray start --head --node-ip-address=10.0.0.7 --port=30123 --include-dashboard=false {size}",
        f"a2:ray start --address={address} {size}",
        f"a3:ray start --address={address} {size}",
        f"morphogen run a.yaml --out runs/x --device cuda --executor ray --address {address} --gpus-per-candidate auto "
        "--resume --gpus-per-candidate 0.25",
    ]
    assert slurm.said[0].startswith("a1:ray start --head")
    for node in ("a1", "a2", "a3"):
        slurm.until(f"{node}:ray ended")


def test_sigterm_reaches_a_search_on_ray_which_is_then_queued_again(slurm: Slurm) -> None:
    end = int(time.time()) + 60
    with slurm.begin("ray.sbatch", "a.yaml", "runs/x", LONG=1, SLURM_JOB_END_TIME=end, RAY_PATIENCE=0.05) as process:
        slurm.until("morphogen run")
        time.sleep(0.2)  # its trap is set
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 130
    assert "scontrol requeue 70123" in slurm.said


def test_a_ray_cluster_that_does_not_come_up_is_told(slurm: Slurm) -> None:
    code, said = slurm.run("ray.sbatch", "a.yaml", "runs/x", BROKEN=1, RAY_PATIENCE=0.001)
    assert (code, said) == (1, "no Ray cluster came up at 10.0.0.7:30123\n")


def test_the_options_that_scripts_give_are_those_of_morphogen(cli: Cli) -> None:
    known = set(re.findall(r"--[a-z-]+", cli("run", "--help")[1]))
    for path in SCRIPTS.iterdir():
        call = re.search(r"morphogen run .*?\"\$@\"", path.read_text(), re.DOTALL)
        assert call is not None
        given = set(re.findall(r" (--[a-z-]+)", call[0]))
        assert given <= known, given - known
