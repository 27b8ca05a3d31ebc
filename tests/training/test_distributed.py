"""Several processes train one model as one would. All on a CPU, over Gloo."""

import importlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from morphogen import load
from morphogen.errors import InputError
from morphogen.experiment import Experiment
from morphogen.inherit.checkpoint import load_checkpoint
from morphogen.network import LanguageModel
from morphogen.training import launching, snapshots
from morphogen.training.distributed import ALONE, check_shared
from morphogen.trainings import train
from processes import Command
from tiny import write_corpus

ROOT = Path(__file__).parent.parent.parent
#: Attention, a state space, a mixture whose biases count what all processes route, a memory, and a scalar parameter.
HYBRID = """
model:
  name: hybrid
  emb: {dim: 32}
  norm: rmsnorm
  blocks:
    - attn: {kind: GQA, heads: 4, head_dim: 8, kv_groups: 2}
      ffn: {kind: dense, hidden: 50, activation: swiglu}
    - ssm: {kind: mamba2, d_state: 8, d_conv: 4, expand: 2, head_dim: 16}
      ffn: {kind: moe, hidden: 30, n_experts: 4, k: 2, shared: 1, balance: 0.01, router_bias: aux_free}
    - attn: {kind: MHA, heads: 2, head_dim: 16, dropout: 0.1}
      extras: [{kind: retro, memory_tokens: 8, stride: 8, heads: 2, head_dim: 16, aggregator: gate}]
  recurrences: [{start: 2, end: 3, adapter: gated, train_recurrence: 2, max_train_recurrence: 2, start_state: noise}]
  head: {tie_embeddings: true}
train: {lr: 3.0e-3, warmup: 3, accumulate: 4, bf16: false}
data: {tokenizer: bytes, seq_len: 32, batch_size: 2, eval_tokens: 128, split: {train: 0.6}, shards: [{source: TEXT}]}
"""

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def hybrid(tmp_path: Path) -> Path:
    path = tmp_path / "hybrid.yaml"
    path.write_text(HYBRID.replace("TEXT", str(write_corpus(tmp_path / "text"))))
    return path


def losses(folder: Path) -> list[float]:
    """Of every step."""
    rows = [line.split(",") for line in (folder / "steps.csv").read_text().splitlines()]
    return [float(row[rows[0].index("loss")]) for row in rows[1:]]


def trained(
    hybrid: Path, folder: Path, steps: int, nproc: int, every: int = 100, *, resume: bool = False
) -> list[float]:
    """The losses of a training, as a command of its own where several processes share it: their server is."""
    if nproc == 1:
        train(hybrid, folder, steps=steps, checkpoint_every=every, eval_every=0, resume=resume)
        return losses(folder)
    done = subprocess.run(command(hybrid, folder, steps, nproc, every, resume=resume), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return losses(folder)


def command(hybrid: Path, folder: Path, steps: int, nproc: int, every: int, *, resume: bool = False) -> list[str]:
    program = str(Path(sys.executable).parent / "morphogen")
    return [program, *arguments(hybrid, folder, steps, nproc, every), *(["--resume"] if resume else [])]


def arguments(hybrid: Path, folder: Path, steps: int, nproc: int, every: int) -> list[str]:
    asked = ("--steps", steps, "--output-dir", folder, "--nproc", nproc, "--checkpoint-every", every, "--eval-every", 0)
    return ["train", str(hybrid), *map(str, asked)]


def test_two_processes_do_what_one_does_and_either_goes_on_from_the_other(
    hybrid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The processes are forked from this one, which has loaded what they need: a server's beginning the slow tests
    have, each several times."""
    importlib.import_module("torch.distributed.fsdp")  # once, not in each of them
    monkeypatch.setattr(launching, "forking", lambda preloaded: multiprocessing.get_context("fork"))
    alone = trained(hybrid, tmp_path / "alone", 3, 1)
    with Command(*arguments(hybrid, tmp_path / "two", 3, 2, 100)) as running:
        said = [running.stdout.read(), running.stderr.read()]
    assert running.returncode == 0, said
    assert "Traceback" not in said[1]
    assert losses(tmp_path / "two") == pytest.approx(alone, abs=1e-5)
    # a checkpoint says nothing of how many wrote it
    longer = [trained(hybrid, tmp_path / name, 4, 1, resume=True) for name in ("alone", "two")]
    assert longer[0] == pytest.approx(longer[1], abs=1e-5)
    ours, theirs = (load_checkpoint(tmp_path / name / "model.safetensors")[0] for name in ("two", "alone"))
    assert ours.keys() == theirs.keys()
    assert max(float((ours[name] - theirs[name]).abs().max()) for name in ours) < 2e-4


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"train": {"accumulate": 3}}, "a step has 3 batches (train.accumulate), expected a multiple of 2"),
        ({"train": {"optimizer": {"name": "muon"}}}, "train.optimizer.name is muon"),
        ({"train": {"anchoring": {"rehearsal": {"share": 0.1}}}}, "train.anchoring keeps a model"),
        (
            {"model": {"growth": [{"when": {"trigger": "step", "at": 5}, "do": {"action": "widen"}}]}},
            "model.growth has rules",
        ),
    ],
)
def test_what_several_processes_cannot_do_is_refused(change: dict[str, dict[str, object]], said: str) -> None:
    base = {
        "model": {"emb": {"dim": 32, "vocab": 256}, "blocks": [{"id": "b0", "ffn": {"kind": "dense", "hidden": 64}}]},
        "train": {"accumulate": 2},
        "data": {"tokenizer": "bytes", "seq_len": 32, "batch_size": 2, "shards": [{"source": "stdlib-code"}]},
    }
    whole = {name: {**section, **change.get(name, {})} for name, section in base.items()}
    with pytest.raises(InputError) as raised:
        check_shared(Experiment.model_validate(whole), "cpu", 2)
    assert said in str(raised.value)
    check_shared(Experiment.model_validate(base), "cpu", 2)


def test_a_process_alone_has_all_of_a_steps_batches() -> None:
    assert list(ALONE.own(3)) == [0, 1, 2]


@pytest.mark.slow
def test_losses_agree_over_twenty_steps_and_checkpoints_load_at_any_number(hybrid: Path, tmp_path: Path) -> None:
    found = {nproc: trained(hybrid, tmp_path / str(nproc), 20, nproc, 10) for nproc in (1, 2, 4)}
    worst = max(abs(a - b) for nproc in (2, 4) for a, b in zip(found[1], found[nproc], strict=True))
    print(f"1, 2 and 4 processes, 20 steps: losses within {worst:.1e}")
    assert worst <= 1e-5
    for nproc in (1, 4):
        assert trained(hybrid, tmp_path / "2", 20 + nproc, nproc, resume=True)[:20] == found[2]
    longer = trained(hybrid, tmp_path / "1", 24, 1, resume=True)
    assert losses(tmp_path / "2") == pytest.approx(longer, abs=1e-4)


@pytest.mark.slow
def test_a_process_that_is_killed_is_begun_anew_from_the_last_checkpoint(hybrid: Path, tmp_path: Path) -> None:
    expected = trained(hybrid, tmp_path / "whole", 60, 2, 10)
    folder = tmp_path / "killed"
    running = subprocess.Popen(command(hybrid, folder, 60, 2, 10), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        while not snapshots.found(folder) or not _ranks(running.pid):
            assert running.poll() is None
            time.sleep(0.02)
        victim = _ranks(running.pid)[-1]
        os.kill(victim, signal.SIGKILL)
        out, _ = running.communicate(timeout=300)
    finally:
        running.kill()
    assert running.returncode == 0, out.decode()
    assert losses(folder) == expected


def _ranks(parent: int) -> list[int]:
    """The processes that train, of all that descend from one."""
    listed = subprocess.run(["ps", "-ewwo", "pid,ppid,args"], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 2) for line in listed.splitlines()[1:]]
    children = {int(pid) for pid, above, _ in rows if int(above) == parent}  # one of them is the server they are from
    return [int(pid) for pid, above, args in rows if int(above) in children and "forkserver" in args]


@pytest.mark.parametrize(
    ("name", "millions"), [("100m_llama", (95, 115)), ("350m_hybrid", (315, 385)), ("1b_moe", (900, 1100))]
)
def test_configs_for_several_gpus_are_as_large_as_they_say(name: str, millions: tuple[int, int]) -> None:
    experiment = load(ROOT / "configs" / f"scale_{name}.yaml")
    check_shared(experiment, "cpu", 8)
    with torch.device("meta"):
        model = LanguageModel(experiment.model)
    least, most = millions
    assert least * 10**6 <= sum(parameter.numel() for parameter in model.parameters()) <= most * 10**6


@pytest.mark.slow
@pytest.mark.parametrize("how", ["interrupt", "nobody reads"])
def test_processes_that_are_to_end_leave_a_checkpoint(hybrid: Path, tmp_path: Path, how: str) -> None:
    folder = tmp_path / "ended"
    with subprocess.Popen(
        command(hybrid, folder, 3000, 2, 3000), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        while not (folder / "steps.csv").exists() or len(losses(folder)) < 3:
            assert running.poll() is None
            time.sleep(0.1)
        if how == "interrupt":
            running.send_signal(signal.SIGINT)
        else:
            running.stdout.close()
        said = running.stderr.read()
        assert running.wait(timeout=120) == {"interrupt": 130, "nobody reads": 2}[how]
    assert "Traceback" not in said
    assert "with --resume goes on" in said
    assert len(snapshots.found(folder)) == 1
