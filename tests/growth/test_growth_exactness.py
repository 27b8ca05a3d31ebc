"""What growth promises of the moment it happens and of the steps after it, over architectures and chains of actions."""

import copy
import functools
import importlib.util
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter

from morphogen.blueprint.growth import GrowthAction
from morphogen.blueprint.schema import Blueprint
from morphogen.experiment import Train
from morphogen.growth.actions import Grown, act
from morphogen.growth.surgery import Operated, max_delta, operate
from morphogen.network import LanguageModel, assemble, build
from morphogen.testing.models import ids_of, loss_of
from morphogen.training.trainer import Trainer

ACTION: TypeAdapter[GrowthAction] = TypeAdapter(GrowthAction)
VOCAB = 37


def table() -> Any:
    """`benchmarks/growth_exactness.py` as a module."""
    path = Path(__file__).parent.parent.parent / "benchmarks" / "growth_exactness.py"
    spec = importlib.util.spec_from_file_location("growth_exactness", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TABLE = table()
ARCHITECTURES = dict(TABLE.architectures())
QUICK = ["rmsnorm tied GQA rope", "layernorm untied MHA alibi", "layernorm tied GQA none"]
QUICK_GROWTHS = ["dim 64 -> 100", "ffn +1", "heads x1.5", "to MoE, top 1", "split twice", "depth alternate copy 3"]


@pytest.mark.parametrize("growth", QUICK_GROWTHS)
@pytest.mark.parametrize("name", QUICK)
def test_growth_is_as_exact_as_it_has_to_be(name: str, growth: str) -> None:
    row = TABLE.measure(name, ARCHITECTURES[name], growth)
    assert row is None or row.holds, row


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_growth_is_as_exact_as_it_has_to_be(name: str) -> None:
    for growth in TABLE.GROWTHS:
        row = TABLE.measure(name, ARCHITECTURES[name], growth)
        assert row is None or row.holds, row


# ------------------------------------------------------------------------------------------------ the steps after it

SMALL = Blueprint.model_validate(
    {
        "emb": {"dim": 32, "vocab": VOCAB},
        "blocks": [
            {"attn": {"kind": "MHA", "heads": 2, "head_dim": 16}, "ffn": {"kind": "dense", "hidden": 64}},
            {"attn": {"kind": "MQA", "heads": 2, "head_dim": 16}, "ffn": {"kind": "dense", "hidden": 64}},
        ],
    }
)  # fmt: skip
AFTER: dict[str, dict[str, Any]] = {
    "ffn": {"action": "widen", "factor": 2.0},
    "heads": {"action": "widen", "target": "heads", "factor": 2.0},
    "dim": {"action": "widen", "target": "dim", "factor": 1.5},
    "copies": {"action": "deepen", "layers": 2},
    "fresh": {"action": "deepen", "layers": 2, "how": "fresh"},
    "top 1": {"action": "to_moe", "k": 1},
    "top 2": {"action": "to_moe", "k": 2},
}
LEARNT, STEPS = 60, 20
CHAIN_P = np.random.default_rng(0).dirichlet(np.full(VOCAB, 0.2), size=VOCAB).cumsum(1)


@functools.cache  # trainings of the same steps read it again and again, and change nothing
def text(step: int, batch: int = 16, length: int = 33) -> Any:
    """Sequences of a Markov chain."""
    rng = np.random.default_rng(step)
    x_BT = np.zeros((batch, length), dtype=np.int64)
    x_BT[:, 0] = rng.integers(VOCAB, size=batch)
    for t in range(1, length):
        beyond = rng.random(batch)[:, None] > CHAIN_P[x_BT[:, t - 1]]
        x_BT[:, t] = np.minimum(VOCAB - 1, beyond.sum(1))
    return x_BT


def trainer(model: LanguageModel, lr: float = 1e-3) -> Trainer:
    train = Train(lr=lr, warmup=10, instability_threshold=1e9)
    return Trainer(model, train, total_steps=400, tokens_per_step=512, seed=0)


@pytest.fixture(scope="module")
def learnt() -> Trainer:
    """After some steps."""
    here = trainer(build(SMALL, seed=1))
    here.run(text, LEARNT)
    return here


def twin_of(here: Trainer) -> Trainer:
    """Another that goes on just as `here` would."""
    saved, averages = here.state(), here.averages
    tensors = {name: tensor.clone() for name, tensor in saved.tensors.items()}
    other = trainer(copy.deepcopy(here.model))
    other.restore(saved._replace(tensors=tensors), averages)
    return other


def changed(here: Trainer, action: dict[str, Any]) -> tuple[Grown, Operated]:
    """The trainer goes on grown."""
    blueprint = here.model.blueprint
    grown = act(blueprint, ACTION.validate_python(action), np.random.default_rng(0))
    assert grown is not None
    done = operate(grown, blueprint, here.model.state_dict(), here.updater.carried(), 3)
    here.change(assemble(grown.blueprint, done.state), done.moments)
    return grown, done


@pytest.fixture(scope="module")
def ungrown(learnt: Trainer) -> list[float]:
    """Losses of the steps that follow without growth."""
    twin = twin_of(learnt)
    twin.run(text, LEARNT + STEPS)
    return twin.trace.losses[LEARNT:]


@pytest.mark.parametrize("name", AFTER)
def test_after_an_exact_growth_the_loss_goes_on_as_without_it(name: str, learnt: Trainer, ungrown: list[float]) -> None:
    here = twin_of(learnt)
    grown, _ = changed(here, AFTER[name])
    assert grown.edit.preserves
    here.run(text, LEARNT + STEPS)
    losses = here.trace.losses[LEARNT:]
    assert losses[0] == pytest.approx(ungrown[0], rel=1e-5)
    assert max(a - b for a, b in zip(losses, ungrown, strict=True)) <= 0.01


@pytest.mark.parametrize("name", AFTER)
def test_new_weights_learn_from_the_second_step_on(name: str, learnt: Trainer) -> None:
    here = twin_of(learnt)
    _, done = changed(here, AFTER[name])
    here.run(text, LEARNT + 2)
    torch.autograd.backward(loss_of(here.model, torch.from_numpy(text(99))))
    alive = total = 0
    for key, parameter in here.model.named_parameters():
        young = done.moments.fresh.get(key)
        if young is not None:
            assert parameter.grad is not None, key
            alive, total = alive + int((parameter.grad[young] != 0).sum()), total + int(young.sum())
    assert total > 0
    assert alive >= 0.99 * total


# ------------------------------------------------------------------------------------------------------------ chains

START = Blueprint.model_validate(
    {
        "emb": {"dim": 16, "vocab": VOCAB},
        "blocks": [
            {"attn": {"kind": "GQA", "heads": 4, "head_dim": 4, "kv_groups": 2}, "ffn": {"kind": "dense", "hidden": 9}},
            {"ssm": {"kind": "mamba2", "head_dim": 8}, "ffn": {"kind": "moe", "hidden": 8, "n_experts": 3}},
        ],
        "recurrences": [{"start": 1, "end": 2, "max_train_recurrence": 2}],
    }
)  # fmt: skip
LINKS: list[dict[str, Any]] = [
    *({"action": "widen", "target": target, "factor": 1.3} for target in ("ffn", "heads", "dim", "head_dim")),
    *({"action": "deepen", "where": where, "how": how} for where in ("middle", "end") for how in ("copy", "fresh")),
    {"action": "deepen", "layers": 2, "where": "alternate", "how": "stack"},
    *[{"action": "split_experts", "max_experts": 9}] * 4,
    *({"action": name} for name in ("to_moe", "add_experts", "prune_experts", "drop_layer", "narrow")),
    {"action": "narrow", "target": "heads"},
    {"action": "narrow", "target": "dim", "factor": 0.9},
]


def walk(seed: int, links: int) -> int:
    """A chain of actions with training in between, in fp64; how many of them were exact."""
    rng = np.random.default_rng(seed)
    here = trainer(build(START, seed=seed).double(), lr=3e-3)
    exact, tokens = 0, VOCAB
    for link in range(links):
        here.run(lambda step: text(step, batch=2, length=24), here.step + 1)
        action = LINKS[int(rng.integers(len(LINKS)))]
        if rng.random() < 0.1:
            action, tokens = {"action": "grow_vocabulary", "tokens": tokens + 3}, tokens + 3
        before: LanguageModel = here.model
        grown = act(before.blueprint, ACTION.validate_python(action), rng)
        if grown is None:
            continue
        done = operate(grown, before.blueprint, before.state_dict(), here.updater.carried(), link)
        after = assemble(grown.blueprint, done.state)
        assert done.exact == grown.edit.preserves
        delta, size = max_delta(before, after, ids_of(seed))
        if done.exact or action["action"] == "grow_vocabulary":
            exact += 1
            assert delta <= 1e-12 * size, (seed, link, action, delta / size)
        assert np.isfinite(delta)
        after = copy.deepcopy(after) if rng.random() < 0.5 else pickle.loads(pickle.dumps(after))
        here.change(after, done.moments, multiplier=float(rng.choice([0.5, 1.0, 2.0])))
        names = {parameter: name for name, parameter in after.named_parameters()}
        assert sorted(names[p] for p in here.updater.parameters) == sorted(names.values())
    here.run(lambda step: text(step, batch=2, length=24), here.step + 2)
    assert all(np.isfinite(here.trace.losses))
    return exact


@pytest.mark.parametrize("seed", range(4))
def test_a_chain_of_growths_keeps_its_bounds(seed: int) -> None:
    assert walk(seed, links=6) > 0


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 150))
def test_a_long_chain_of_growths_keeps_its_bounds(seed: int) -> None:
    assert walk(seed, links=12) > 0
