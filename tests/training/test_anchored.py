"""Means against forgetting around a trainer: rehearsal, a teacher, and holding what is old.

B sequences, T tokens
"""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from morphogen import cost
from morphogen.blueprint.schema import Blueprint
from morphogen.experiment import Train
from morphogen.inherit.descent import Moments
from morphogen.inherit.plan import plan
from morphogen.inherit.splice import from_parent, splice
from morphogen.network import build
from morphogen.training.anchored import NOTHING_NEW, NOTHING_OLD, Anchoring
from morphogen.training.growing import Growing
from morphogen.training.trainer import Trainer

T, B, VOCAB, STEPS = 16, 4, 32, 12


def blueprint(hidden: int = 16, dim: int = 8) -> Blueprint:
    block = {"attn": {"kind": "MHA", "heads": 2, "head_dim": 4}, "ffn": {"kind": "dense", "hidden": hidden}}
    mixture = {"ffn": {"kind": "moe", "hidden": 8, "n_experts": 3, "router_bias": "aux_free"}}
    return Blueprint.model_validate({"emb": {"dim": dim, "vocab": VOCAB}, "blocks": [block, mixture]})


ALL: dict[str, Any] = {
    "rehearsal": {"share": 0.5, "buffer_tokens": 20 * (T + 1)},
    "self_distillation": {"weight": 1.0, "decay": 0.9, "temperature": 2.0},
    "freeze_expand_tune": {"freeze_steps": 3, "tune_steps": 2},
}
GENERATIONS = {**ALL, "rehearsal": {**ALL["rehearsal"], "source": "generations", "every": 4}}


def batch(step: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.random.default_rng(step).integers(VOCAB, size=(B, T + 1))


def training(anchors: Mapping[str, Any], **train: Any) -> Growing:
    settings = Train.model_validate({"warmup": 2, "instability_threshold": 1e9, "anchoring": anchors, **train})
    trainer = Trainer(build(blueprint(), 0), settings, total_steps=STEPS, tokens_per_step=B * T, seed=0)
    anchoring = Anchoring(settings.anchoring, trainer, seq_len=T, seed=5, end_of_text=0)
    return Growing(trainer, held_BT1=batch(99), seed=0, anchoring=anchoring)


def grow(growing: Growing, after: Blueprint) -> str:
    """As a widening does: moments carried, what is new marked."""
    trainer = growing.trainer
    drawn = plan(after, [growing.blueprint])
    moments = trainer.updater.carried()
    spliced = splice(drawn, [from_parent(dict(trainer.model.state_dict()), 0, moments)], 0)
    return growing.become(after, spliced.state, Moments.carried(spliced))


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(x, other[name]) for name, x in one.items())


def test_nothing_asked_for_is_nothing_done() -> None:
    plain = Trainer(build(blueprint(), 0), Train(warmup=2), total_steps=STEPS, tokens_per_step=B * T, seed=0)
    plain.run(batch, 6)
    growing = training({})
    growing.run(batch, 6)
    assert growing.trainer.trace.losses == plain.trace.losses
    assert growing.anchoring is not None
    assert growing.anchoring.flops == 0.0
    assert not Train().anchoring.asks


def test_the_teacher_adds_its_divergence_and_its_flops_are_counted() -> None:
    near = training({"self_distillation": {"weight": 50.0, "decay": 0.999}})
    free = training({})
    start = {name: x.clone() for name, x in free.trainer.model.state_dict().items()}
    for growing in (near, free):
        growing.run(batch, STEPS)

    def gone(growing: Growing) -> float:
        now = growing.trainer.model.state_dict()
        ids = torch.from_numpy(batch(50)[:, :-1])
        with torch.no_grad():
            here = growing.trainer.model.eval()(ids).log_softmax(-1)
            model = build(blueprint(), 0)
            model.load_state_dict(start)
            there = model.eval()(ids).log_softmax(-1)
        assert now.keys() == start.keys()
        return float((there.exp() * (there - here)).sum(-1).mean())

    assert gone(near) < 0.5 * gone(free)
    assert near.anchoring is not None
    assert near.anchoring.flops == pytest.approx(STEPS * B * T * cost.total(blueprint(), T).flops)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_at_first_the_teacher_is_the_model_and_its_divergence_nothing(accumulate: int) -> None:
    growing, plain = training(
        {"self_distillation": {"weight": 50.0}}, accumulate=accumulate
    ), training({}, accumulate=accumulate)  # fmt: skip
    for each in (growing, plain):
        each.run(batch, 1)
    assert growing.trainer.trace.grad_norms == pytest.approx(plain.trainer.trace.grad_norms, rel=1e-4)


@pytest.mark.parametrize("optimizer", ["adamw", "lion", "muon"])
def test_what_is_old_is_held_bit_for_bit_with_its_moments_and_then_trains(optimizer: str) -> None:
    if optimizer == "muon" and not hasattr(torch.optim, "Muon"):
        pytest.skip("this torch has no Muon")
    growing = training({"freeze_expand_tune": {"freeze_steps": 3}}, weight_decay=0.5, optimizer={"name": optimizer})
    growing.run(batch, 4)
    assert grow(growing, blueprint(hidden=24)) == ""

    def now() -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
        trainer = growing.trainer
        weights = {name: x.clone() for name, x in trainer.model.state_dict().items()}
        return weights, {k: {n: x.clone() for n, x in of.items()} for k, of in trainer.updater.moments().items()}

    wide = {f"blocks.0.ffn.{name}.weight" for name in ("up", "gate", "down")}

    def old(name: str, tensor: Tensor) -> Tensor:
        if name not in wide or tensor.dim() < 2:
            return tensor
        return tensor[:, :16] if "down" in name else tensor[:16]

    before, moments = now()
    for until in (5, 6, 7):
        growing.run(batch, until)
        weights, held = now()
        assert same({n: old(n, x) for n, x in weights.items()}, {n: old(n, x) for n, x in before.items()})
        for kind, of in moments.items():
            for name, tensor in of.items():
                if tensor.dim():  # the step count of a tensor that is partly new goes on
                    assert torch.equal(old(name, held[kind][name]), old(name, tensor)), (kind, name)
        for name in wide:
            changed = weights[name] != before[name]
            assert bool(changed.any())
    growing.run(batch, 8)
    weights, _ = now()
    for name, parameter in growing.trainer.model.named_parameters():
        assert parameter.requires_grad
        assert not torch.equal(old(name, weights[name]), old(name, before[name])), name


def test_after_the_freeze_the_rate_of_what_is_old_rises() -> None:
    growing = training(
        {"freeze_expand_tune": {"freeze_steps": 2, "tune_steps": 3}}, schedule="cosine", weight_decay=0.0
    )
    growing.run(batch, 2)
    grow(growing, blueprint(hidden=24))
    moved = []
    for until in range(3, 9):
        before = growing.trainer.model.emb.weight.detach().clone()
        growing.run(batch, until)
        moved.append(float((growing.trainer.model.emb.weight.detach() - before).norm()))
    assert moved[:2] == [0.0, 0.0]
    assert all(a < b for a, b in pairwise(moved[1:5]))


def test_something_must_train_while_what_is_old_is_held() -> None:
    growing = training({"freeze_expand_tune": {"freeze_steps": 5}})
    growing.run(batch, 2)
    assert grow(growing, blueprint(hidden=8)) == NOTHING_NEW
    assert not growing.trainer.updater.frozen
    growing.run(batch, 4)
    assert growing.anchoring is not None
    whole = {name: torch.ones_like(p, dtype=torch.bool) for name, p in growing.trainer.model.named_parameters()}
    assert growing.anchoring.begin(None, new=whole) == NOTHING_OLD
    assert not growing.trainer.updater.frozen


@pytest.mark.parametrize("after", [{"hidden": 24}, {"dim": 12}])
def test_the_teacher_grows_along_and_teaches_the_same(after: dict[str, int]) -> None:
    growing = training(ALL)
    growing.run(batch, 4)
    anchoring = growing.anchoring
    assert anchoring is not None
    assert anchoring.teacher is not None
    anchoring.settle()
    ids = torch.from_numpy(batch(50)[:, :-1])
    taught = anchoring.teacher.logits(ids)
    grow(growing, blueprint(**after))
    assert anchoring.teacher.model.blueprint == blueprint(**after)
    assert torch.allclose(anchoring.teacher.logits(ids), taught, atol=1e-5)
    growing.run(batch, 8)


@pytest.mark.parametrize("anchors", [ALL, GENERATIONS])
@pytest.mark.parametrize("at", [3, 6])
def test_saved_and_restored_it_goes_on_bit_for_bit(anchors: dict[str, Any], at: int) -> None:
    def to(until: int) -> Growing:
        growing = training(anchors)
        growing.run(batch, min(5, until))
        if until > 5:
            grow(growing, blueprint(hidden=24))
            growing.run(batch, until)
        return growing

    one = to(at)
    assert one.anchoring is not None
    saved, trainers, averages = one.anchoring.state(), one.trainer.state(), one.trainer.averages
    other = training(anchors)
    assert other.anchoring is not None
    if at > 5:
        grow(other, blueprint(hidden=24))
    other.trainer.model.load_state_dict(one.trainer.model.state_dict())
    copied = {name: x.clone() for name, x in trainers.tensors.items()}
    other.trainer.restore(trainers._replace(tensors=copied), averages)
    other.anchoring.restore(saved)
    for growing in (one, other):
        growing.run(batch, STEPS)
    assert one.trainer.trace.losses == other.trainer.trace.losses
    assert same(one.trainer.model.state_dict(), other.trainer.model.state_dict())
    assert same(one.anchoring.state().tensors, other.anchoring.state().tensors)
    assert one.anchoring.state().plain == other.anchoring.state().plain


def test_the_model_rehearses_what_it_sampled_itself() -> None:
    growing = training({"rehearsal": {"share": 0.5, "buffer_tokens": 8 * (T + 1), "source": "generations"}})
    assert growing.anchoring is not None
    assert growing.anchoring.rehearsal is not None
    seen: list[Any] = []
    growing.anchoring.begin(None, new={})
    drawn = {row.tobytes() for row in growing.anchoring.rehearsal.buffer.rows}
    assert len(drawn) == 8
    assert growing.anchoring.flops == pytest.approx(8 * T * cost.total(blueprint(), T).flops)
    batches = growing.anchoring.batches(batch)
    for step in range(4):
        seen += [row.tobytes() for row in batches(step)]
    assert sum(row in drawn for row in seen) == 8
    assert len({row.tobytes() for row in growing.anchoring.rehearsal.buffer.rows}) == 8
