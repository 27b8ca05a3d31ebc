"""A training that grows: when, into what, what is on record, and the same however it is cut up."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from morphogen.blueprint.schema import Blueprint
from morphogen.candidate import GrowthEvent
from morphogen.cost import train_flops
from morphogen.errors import InputError
from morphogen.experiment import Train
from morphogen.network import assemble, build
from morphogen.training.growing import Behind, Growing
from morphogen.training.saved import Saved
from morphogen.training.trainer import Trainer

SEQ, BATCH, VOCAB = 16, 4, 32
PER_STEP = SEQ * BATCH


def batch(step: int) -> NDArray[np.int64]:
    """Sequences that count upwards by ones or twos."""
    rng = np.random.default_rng(step)
    start, by = rng.integers(VOCAB, size=(BATCH, 1)), rng.integers(1, 3, size=(BATCH, 1))
    ids_BT1: NDArray[np.int64] = (start + by * np.arange(SEQ + 1)) % VOCAB
    return ids_BT1


def blueprint(*rules: Mapping[str, Any], ffn: Mapping[str, Any] | None = None, blocks: int = 2) -> Blueprint:
    block = {"attn": {"kind": "MHA", "heads": 2, "head_dim": 8}, "ffn": ffn or {"kind": "dense", "hidden": 16}}
    return Blueprint.model_validate(
        {"emb": {"dim": 16, "vocab": VOCAB}, "blocks": [block] * blocks, "growth": list(rules)}
    )


def growing(model: Blueprint, steps: int = 24, train: Mapping[str, Any] | None = None, **other: Any) -> Growing:
    trainer = Trainer(
        build(model, seed=0),
        Train.model_validate({"lr": 1e-2, "warmup": 2, **(train or {})}),
        total_steps=steps,
        tokens_per_step=PER_STEP,
        seed=0,
    )
    return Growing(trainer, held_BT1=batch(10**6), seed=1, **other)


AT = {"when": {"trigger": "step", "at": 5}}
ACTIONS: dict[str, Mapping[str, Any]] = {
    "ffn": {"action": "widen", "target": "ffn", "factor": 2.0},
    "dim": {"action": "widen", "target": "dim", "factor": 1.5},
    "heads": {"action": "widen", "target": "heads", "factor": 2.0},
    "deepen": {"action": "deepen", "layers": 2},
    "stack": {"action": "deepen", "layers": 1, "how": "stack"},
    "to_moe": {"action": "to_moe", "n_experts": 4, "k": 2},
    "vocabulary": {"action": "grow_vocabulary", "tokens": 40},
    "drop": {"action": "drop_layer"},
    "narrow": {"action": "narrow", "target": "ffn"},
}
MOE = {"kind": "moe", "hidden": 8, "n_experts": 4, "k": 2, "balance": 0.01}
ON_EXPERTS: dict[str, Mapping[str, Any]] = {
    "split": {"action": "split_experts"},
    "prune": {"action": "prune_experts"},
    "prune by norm": {"action": "prune_experts", "chooser": "gate_norm"},
    "prune by merging": {"action": "prune_experts", "chooser": "merge"},
    "merge": {"action": "merge_experts"},
    "cross": {"action": "cross_experts", "loss_budget": 10.0},
    "cross back": {"action": "cross_experts", "loss_budget": 0.0, "blend": 0.9},
    "add": {"action": "add_experts"},
}
EXACT = {"ffn", "dim", "heads", "deepen", "to_moe", "split"}


@pytest.mark.parametrize("name", [*ACTIONS, *ON_EXPERTS])
def test_every_action_is_taken_at_its_step_and_is_on_record(name: str) -> None:
    action = {**ACTIONS, **ON_EXPERTS}[name]
    told: list[GrowthEvent] = []
    begun = blueprint({**AT, "do": action}, ffn=MOE if name in ON_EXPERTS else None)
    run = growing(begun, steps=8, on_event=told.append)
    assert run.run(batch, 8) is None
    (event,) = run.events
    assert told == run.events
    assert (event.steps, event.own_steps, event.tokens) == (5, 5, 5 * PER_STEP)
    assert (event.rule, event.trigger, event.action) == ("rule0", "step", action["action"])
    assert event.exact == (name in EXACT)
    if event.exact or name == "vocabulary":  # old tokens' logits stay
        assert event.max_delta <= 2e-6 * event.max_logit
    if event.taken_back:
        assert name == "cross back"
        assert event.before == event.after
        assert event.loss_after > event.loss
    assert event.blocks or name in ("vocabulary", "dim")
    assert run.segments[0] == (begun, 0)
    assert (len(run.segments) == 2) == (not event.taken_back)
    assert run.blueprint == run.trainer.model.blueprint
    assert event.after.params == sum(p.numel() for p in run.trainer.model.parameters() if p.requires_grad)
    assert run.trainer.step == 8


def test_without_rules_a_training_is_the_trainers_own() -> None:
    alone = growing(blueprint()).trainer
    alone.run(batch, 24)
    run = growing(blueprint())
    run.run(batch, 24)
    assert run.trainer.trace.losses == alone.trace.losses
    assert run.memory() == ""


MANY = (
    {"when": {"trigger": "step", "at": 4}, "do": ACTIONS["ffn"]},
    {"when": {"trigger": "tokens", "every": 9 * PER_STEP}, "do": ACTIONS["deepen"], "limits": {"max_layers": 6}},
    {
        "when": {"trigger": "plateau", "window": 5, "tolerance": 10.0},
        "do": ACTIONS["heads"],
        "limits": {"max_times": 2},
    },
    {
        "when": {"trigger": "utilization", "window": 4, "threshold": 0.0, "share": 0.1},
        "do": ACTIONS["to_moe"],
        "limits": {"cooldown_steps": 3},
    },
    {
        "when": {"trigger": "expert_usage", "interval": 5, "min_age": 0, "window": 4, "split_above": 1.01},
        "do": ON_EXPERTS["split"],
        "limits": {"max_times": 1},
    },
)


def _resumed(model: Blueprint, state: Mapping[str, Any], saved: Saved, trainer: Saved, averages: Any) -> Growing:
    """As a checkpoint that was read again would have it."""
    run = growing(blueprint(*MANY))
    fresh = Trainer(assemble(model, state), run.trainer.train, total_steps=24, tokens_per_step=PER_STEP, seed=0)
    fresh.restore(trainer, averages)
    again = Growing(fresh, held_BT1=batch(10**6), seed=1)
    again.restore(Saved(saved.tensors, json.loads(json.dumps(saved.plain, allow_nan=False))))
    return again


def test_an_interruption_between_any_two_steps_changes_nothing() -> None:
    """Neither calls of any length nor a restart from what was saved."""
    whole = growing(blueprint(*MANY))
    whole.run(batch, 24)
    assert len({event.rule for event in whole.events}) == len(MANY)
    run = growing(blueprint(*MANY))
    for step in range(1, 25):
        run.run(batch, step)
        state = {name: x.clone() for name, x in run.trainer.model.state_dict().items()}
        trainer = run.trainer.state()
        copied = Saved({name: x.clone() for name, x in trainer.tensors.items()}, trainer.plain)
        run = _resumed(run.blueprint, state, run.state(), copied, run.trainer.averages)
    assert run.events == whole.events
    assert run.segments == whole.segments
    assert run.trainer.trace.losses == whole.trainer.trace.losses
    assert all(
        torch.equal(one, other)
        for one, other in zip(run.trainer.model.parameters(), whole.trainer.model.parameters(), strict=True)
    )


def test_steps_and_tokens_count_what_lies_behind_the_weights_and_no_rule_acts_twice_for_one_count() -> None:
    rules = (
        {"when": {"trigger": "step", "at": 5}, "do": ACTIONS["ffn"]},
        {"when": {"trigger": "tokens", "every": 10 * PER_STEP}, "do": ACTIONS["deepen"], "limits": {"max_times": 2}},
    )
    parent = growing(blueprint(*rules), steps=8)
    parent.run(batch, 8)
    assert [(e.rule, e.steps) for e in parent.events] == [("rule0", 5)]
    behind = Behind(8, 8 * PER_STEP, parent.memory())
    child = growing(parent.blueprint, steps=30, behind=behind, own_steps=0)
    child.run(batch, 30)
    assert [(e.rule, e.steps, e.own_steps) for e in child.events] == [("rule1", 10, 2), ("rule1", 20, 12)]
    late = growing(blueprint(*rules), steps=8, behind=Behind(8, 8 * PER_STEP))
    late.run(batch, 8)
    assert [(e.rule, e.steps) for e in late.events] == [("rule1", 10)]  # what was passed before it was there is past


def test_a_count_that_a_cooldown_covers_is_made_good_after_it() -> None:
    rules = (
        {"when": {"trigger": "step", "at": 4}, "do": ACTIONS["ffn"]},
        {"when": {"trigger": "step", "at": 6}, "do": ACTIONS["heads"], "limits": {"cooldown_steps": 5}},
        {"when": {"trigger": "step", "at": 6}, "do": ACTIONS["ffn"], "limits": {"max_params": 1}},
    )
    run = growing(blueprint(*rules), steps=20)
    run.run(batch, 20)
    assert [(e.rule, e.steps) for e in run.events] == [("rule0", 4), ("rule1", 9)]


def test_a_rule_by_hand_acts_when_it_is_asked_for_and_never_else() -> None:
    run = growing(blueprint({"when": {"trigger": "manual"}, "do": ACTIONS["deepen"]}), steps=12)
    run.run(batch, 5)
    run.ask("rule0")
    run.run(batch, 12)
    assert [(e.rule, e.steps, e.reason) for e in run.events] == [("rule0", 5, "asked for by hand")]


def test_a_budget_of_flops_is_spent_whatever_the_model_grows_into() -> None:
    model = blueprint({**AT, "do": {"action": "widen", "target": "ffn", "factor": 8.0}})
    run = growing(model, steps=40, budget="flops", train={"schedule": "wsd"})
    run.run(batch, 40)
    first, grown = (train_flops(one.blueprint, SEQ, PER_STEP) for one in run.segments)
    assert 5 < run.trainer.step < 40
    spent = 5 * first + (run.trainer.step - 5) * grown
    assert 40 * first - grown < spent <= 40 * first * (1 + 1e-9)
    assert run.trainer.total_steps == run.trainer.schedule.steps == run.trainer.step
    shrunk = growing(blueprint({**AT, "do": ACTIONS["narrow"]}), steps=20, budget="flops", most_steps=21)
    shrunk.run(batch, 20)
    assert shrunk.trainer.step == 21


def test_split_and_prune_never_meet_in_one_layer_at_one_tick() -> None:
    rules = [{**AT, "do": ON_EXPERTS[name]} for name in ("split", "prune", "merge", "cross")]
    run = growing(blueprint(*rules, ffn=MOE), steps=8)
    run.run(batch, 8)
    assert [event.action for event in run.events] == ["split_experts"]


def test_every_expert_that_goes_is_used_less_than_the_threshold_on_record_and_one_that_splits_more() -> None:
    when = {"trigger": "expert_usage", "window": 2, "interval": 1, "min_age": 0}
    prune, split = ({"when": when, "do": {"action": f"{name}_experts"}} for name in ("prune", "split"))
    wide, narrow = ({"ffn": {**MOE, "n_experts": experts, "k": 1}} for experts in (8, 3))
    for rule, loads in (
        (prune, {"b0": [12.0] * 7 + [0.1], "b1": [10.0, 10.0, 1.2]}),  # below 1/32 and 1/12
        (split, {"b0": [1.0] * 7 + [2.0], "b1": [1.0, 1.0, 3.0]}),  # above 3/16 and 1/2
    ):
        model = Blueprint.model_validate(
            {"emb": {"dim": 16, "vocab": VOCAB}, "blocks": [wide, narrow], "growth": [rule]}
        )
        run = growing(model, steps=4)
        run.trainer.on_record = lambda record, loads=loads, run=run: run.controller.experts.observe(
            {block: np.asarray(counts) for block, counts in loads.items()}, run.trainer.step + 1
        )
        run.run(batch, 2)
        event = run.events[0]
        assert set(event.experts) == {"b0", "b1"}
        assert event.threshold is not None
        used = [share for usage in event.usage.values() for share in usage]
        assert max(used) < event.threshold if rule is prune else min(used) > event.threshold


@pytest.mark.parametrize("action", ["dim", "deepen", "to_moe"])
def test_bytes_are_predicted_as_the_grown_model_takes_them(action: str) -> None:
    for optimizer in ("adamw", "lion", "muon"):
        run = growing(
            blueprint({**AT, "do": ACTIONS[action]}), steps=8, train={"optimizer": {"name": optimizer}, "lr": 1e-3}
        )
        run.run(batch, 5)
        held = _held(run.trainer)
        run.run(batch, 8)
        (event,) = run.events
        assert event.bytes == pytest.approx(_held(run.trainer) - held, rel=0.1)


def _held(trainer: Trainer) -> int:
    """Bytes of parameters, gradients, buffers, moments and averages; marks of what is young go when it is warm."""
    parameters = [p for p in trainer.model.parameters() if p.requires_grad]
    moments = [moment for of in trainer.updater.moments().values() for moment in of.values()]
    tensors = [*parameters, *parameters, *trainer.model.buffers(), *moments, *trainer.averages.values()]
    return sum(x.numel() * x.element_size() for x in tensors if x.dim())


def test_what_is_remembered_of_other_mixtures_than_it_says_is_refused() -> None:
    parent = growing(blueprint({"when": {"trigger": "manual"}, "do": ACTIONS["deepen"]}), steps=4)
    told = json.loads(parent.memory())
    book = {"usage": {}, "observed": [], "born": [], "below": {}, "changed": None}
    for changed in ({"experts": {"step": 0, "books": {"b7": book}}}, {"uses": [[]]}):
        with pytest.raises(InputError, match="the weights that it begins with: what is remembered of growth: it is of"):
            growing(parent.blueprint, steps=4, behind=Behind(0, 0, json.dumps(told | changed)))
