"""Host and device side by side: steps ask nothing of the device, and batches are fetched ahead; a CPU stands for it."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.utils._python_dispatch import TorchDispatchMode

from morphogen.blueprint.schema import Blueprint
from morphogen.candidate import StopReason
from morphogen.experiment import Train
from morphogen.network import build
from morphogen.training.trainer import Trainer

LENGTH, VOCAB = 16, 32
ATTN = {"heads": 2, "head_dim": 8}
MOE = {"kind": "moe", "hidden": 16, "n_experts": 4, "k": 2}
MIXED = [{"kind": "mamba2", "d_state": 4, "head_dim": 8}]
#: Blocks, and values that a step of theirs waits for.
KINDS: dict[str, tuple[dict[str, Any], int]] = {
    "attention": ({"attn": {"kind": "GQA", "kv_groups": 2, **ATTN}, "ffn": {"kind": "dense", "hidden": 16}}, 0),
    "pattern, ALiBi": ({"attn": {"kind": "MHA", **ATTN, "rope": "none", "alibi": True, "sparsity": "sliding",
                                 "sliding_window": 4}}, 0),
    "LINEAR": ({"attn": {"kind": "LINEAR", **ATTN, "decay": "delta"}}, 0),
    "mamba2": ({"ssm": {"kind": "mamba2", "d_state": 4, "head_dim": 8}}, 0),
    "mamba": ({"ssm": {"kind": "mamba", "d_state": 4}}, 0),
    "retro": ({"extras": [{"kind": "retro", "heads": 2, "head_dim": 8, "stride": 4}]}, 0),
    "moe": ({"ffn": {**MOE, "router_type": "sigmoid", "router_bias": "aux_free", "z_loss": 1e-3, "shared": 1}}, 0),
    "moe that refuses": ({"ffn": {**MOE, "drop_policy": "greedy", "capacity_factor": 1.0}}, 1),  # how many it took
    "moe of several kinds": ({"ffn": {**MOE, "experts": MIXED}}, 2),  # how many tokens each kind has
}  # fmt: skip


class Reads(TorchDispatchMode):
    """Counts what makes a host wait for a device: values and sizes that it has to know."""

    SIGNS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal.default")

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(sign in str(func) for sign in self.SIGNS):
            self.seen[str(func)] += 1
        return func(*args, **(kwargs or {}))


def trainer(block: dict[str, Any], steps: int = 40, **train: Any) -> Trainer:
    blueprint = Blueprint.model_validate({"emb": {"dim": 16, "vocab": VOCAB}, "blocks": [block]})
    settings = Train.model_validate({"lr": 1e-2, "warmup": 0, "bf16": False, **train})
    return Trainer(build(blueprint, seed=0), settings, total_steps=steps, tokens_per_step=2 * LENGTH, seed=0)


def batch(step: int) -> NDArray[np.int64]:
    return np.random.default_rng(step).integers(VOCAB, size=(2, LENGTH + 1))


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_waits_for_no_value(kind: str) -> None:
    block, waits = KINDS[kind]
    one = trainer(block)
    one.run(batch, 2)  # of the second the memory is measured
    with Reads() as reads:
        told = one._update(torch.from_numpy(batch(2)))
    assert reads.seen.total() == waits, reads.seen
    assert torch.isfinite(told[0])


def fetching(block: dict[str, Any], **train: Any) -> Trainer:
    """One that is driven as on an accelerator."""
    made = trainer(block, **train)
    made._fetches, made._read_every = True, 10
    return made


def test_fetching_ahead_and_reading_late_change_no_number() -> None:
    block, asked = KINDS["attention"][0], list[int]()

    def watched(step: int) -> NDArray[np.int64]:
        asked.append(step)
        return batch(step)

    plain, ahead = trainer(block), fetching(block)
    plain.run(batch, 34)
    for until in (3, 17, 34):
        ahead.run(watched, until)
    assert asked == list(range(34))
    assert ahead.trace.losses == plain.trace.losses
    assert ahead.trace.grad_norms == plain.trace.grad_norms
    assert all(torch.equal(a, b) for a, b in zip(ahead.model.parameters(), plain.model.parameters(), strict=True))


def test_a_guard_is_heard_when_losses_are_read_and_not_before_what_is_fetched() -> None:
    block, limit = KINDS["attention"][0], {"instability_threshold": 1e-6}
    plain, ahead = trainer(block, **limit), fetching(block, **limit)
    assert plain.run(batch, 34) is ahead.run(batch, 34) is StopReason.HIGH_GRAD
    assert (plain.step, ahead.step) == (16, 20)
    assert ahead.trace.losses[:16] == plain.trace.losses
