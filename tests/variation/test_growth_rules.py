"""Operators on growth rules: sensible, bounded, exact, and drawn only where rules are wanted; crossover of rules."""

from collections import Counter
from typing import Any

import numpy as np
import pytest

from morphogen.blueprint.diff import apply, digest
from morphogen.blueprint.schema import Blueprint
from morphogen.blueprint.tensors import parameter_count
from morphogen.blueprint.triggers import singles
from morphogen.experiment import Evolution, Train
from morphogen.growth.rules import growth_remarks
from morphogen.inherit.plan import plan
from morphogen.parts.contract.operator import OPERATORS
from morphogen.variation import making
from morphogen.variation.crossover import aligned_span, one_point, uniform
from morphogen.variation.growth import MOST_GROWTH, MOST_RULES, MOST_TIMES, NAMES, add_growth_rule, rule_weights
from morphogen.variation.operator import apply_operator, describe_operators, mutate, operator_weights
from morphogen.variation.policy import Policy

DENSE = {"ffn": {"kind": "dense", "hidden": 32}}
MIXED = {"ffn": {"kind": "moe", "hidden": 16, "n_experts": 4, "k": 2}}
ATTN = {"attn": {"kind": "MHA", "heads": 2, "head_dim": 8}}
WIDEN: dict[str, Any] = {"when": {"trigger": "step", "at": 8}, "do": {"action": "widen"}, "limits": {"max_dim": 64}}
SPLIT: dict[str, Any] = {"when": {"trigger": "expert_usage"}, "do": {"action": "split_experts", "max_experts": 8}}


def blueprint(*growth: dict[str, Any], blocks: Any = ((ATTN | DENSE), MIXED, DENSE), **more: Any) -> Blueprint:
    """A small blueprint, with rules or without."""
    named = [{"id": f"b{i}", **block} for i, block in enumerate(blocks)]
    return Blueprint.model_validate({"emb": {"dim": 16, "vocab": 37}, "blocks": named, "growth": growth, **more})


def walk(start: Blueprint, steps: int, seed: int) -> list[Blueprint]:
    """A walk by operators on rules, each step checked."""
    rng, here, found = np.random.default_rng(seed), start, [start]
    for _ in range(steps):
        made = apply_operator(here, NAMES[int(rng.integers(len(NAMES)))], rng)
        if made is None:
            continue
        child, edit = made
        assert edit.preserves
        assert plan(child, [here]).exact
        assert child.blocks == here.blocks
        assert apply(here, edit.changes) == child
        assert digest(child) != digest(here)
        assert all(change.path.startswith("growth") for change in edit.changes)
        here = child
        found.append(child)
    return found


def test_rules_that_operators_draw_can_act_and_have_an_end() -> None:
    start = blueprint()
    added = [add_growth_rule(start, np.random.default_rng(seed)) for seed in range(120)]
    walked = [model for seed in range(6) for model in walk(start, 20, seed)]
    made = [model for model in (*added, *walked) if model is not None]
    assert not [remark for model in made for remark in growth_remarks(model, 64) if remark.refused]
    drawn = [rule for model in made for rule in model.growth]
    for rule in drawn:
        assert 1 <= (rule.limits.max_times or 0) <= MOST_TIMES
        assert rule.limits.cooldown_steps > 0
        if rule.do.adds:
            assert (rule.limits.max_params or 0) <= MOST_GROWTH * parameter_count(start)
        if rule.do.action == "deepen":
            assert (rule.limits.max_layers or 99) <= MOST_GROWTH * 3
    assert {rule.limits.max_times for rule in drawn} == set(range(1, MOST_TIMES + 1))
    actions = Counter(rule.do.action for rule in drawn)
    triggers = Counter(rule.when.trigger for rule in drawn)
    wanted = {"widen", "deepen", "to_moe", "add_experts", "split_experts", "prune_experts", "merge_experts"}
    assert wanted | {"cross_experts", "narrow", "drop_layer"} == actions.keys()
    assert {"step", "plateau", "utilization", "expert_usage"} == triggers.keys()
    assert '"how":"stack"' not in "".join(rule.model_dump_json() for rule in drawn)


ALL_RUN = {"ffn": {"kind": "moe", "hidden": 16, "n_experts": 2, "k": 2}}
#: Rules that are near to what they cannot do.
EDGES: dict[str, tuple[list[dict[str, Any]], Any]] = {
    "room for few blocks": ([{**WIDEN, "do": {"action": "deepen"}, "limits": {"max_layers": 4}}], (DENSE,)),
    "room for few channels": (
        [{**WIDEN, "do": {"action": "widen", "target": "dim", "factor": 1.5}, "limits": {"max_dim": 24}}],
        (DENSE, ATTN),
    ),
    "few experts": ([{**SPLIT, "do": {"action": "prune_experts", "min_experts": 3}}], (MIXED,)),
    "many experts": ([SPLIT | {"do": {"action": "split_experts", "max_experts": 5}}], (MIXED,)),
    "all experts run": ([], (ALL_RUN, DENSE)),
    "narrow": ([{**WIDEN, "do": {"action": "narrow"}, "limits": {}}], ({"ffn": {"kind": "dense", "hidden": 2}}, ATTN)),
    "used by nearly all": (
        [{**WIDEN, "when": {"trigger": "utilization", "threshold": 0.6}}],
        (DENSE, DENSE),
    ),
    "perplexity near to none": ([{**WIDEN, "when": {"trigger": "perplexity", "below": 1.5}}], (DENSE,)),
    "deeper and less deep": (
        [{**WIDEN, "do": {"action": "deepen"}, "limits": {}}, {**SPLIT, "when": {"trigger": "manual"}}],
        (MIXED, DENSE, DENSE),
    ),
    "a rule that others need": (
        [{**WIDEN, "do": {"action": "to_moe", "k": 1}}, {**SPLIT, "do": {"action": "prune_experts", "min_experts": 3}}],
        (DENSE, ATTN),
    ),
    "one block of two": ([{**WIDEN, "do": {"action": "widen", "blocks": ["b1"]}}], (ATTN, ATTN | DENSE)),
}


@pytest.mark.parametrize("name", EDGES)
def test_no_operator_makes_a_rule_that_validate_would_refuse_or_call_idle(name: str) -> None:
    growth, blocks = EDGES[name]
    start = blueprint(*growth, blocks=blocks)
    before = {remark.said for remark in growth_remarks(start, 64)}
    for seed in range(3):
        for model in walk(start, 8, seed):
            here = {f"{remark.loc[3:]} {remark.said}" for remark in growth_remarks(model, 64) if remark.refused}
            assert not here
            told = [it for it in growth_remarks(model, 64) if "undoes" in it.said or "blocks" in it.loc]
            assert not [it for it in told if it.said not in before]


def test_what_a_rule_does_not_read_is_not_tuned() -> None:
    limits = {"max_layers": 50, "max_dim": 50, "max_times": 3, "max_flops_per_token": 1e9}
    prune = {"trigger": "expert_usage", "split_above": 2.0, "probation": 8}
    for rule, kept in (
        ({**WIDEN, "limits": limits}, {"max_layers": 50, "max_dim": 50, "max_flops_per_token": 1e9}),
        ({"when": prune, "do": {"action": "prune_experts"}}, {"split_above": 2.0}),
        (
            {
                "when": {"trigger": "any", "of": [{**prune, "split_above": 1.7}, prune]},
                "do": {"action": "split_experts"},
            },
            {"probation": 8},
        ),
    ):
        start, seen = blueprint(rule), set[str]()
        for seed in range(40):
            made = apply_operator(start, "tune_growth_rule", np.random.default_rng(seed))
            if made is not None and made[0].growth[0].do.model_dump().get("target") != "dim":
                (now,) = made[0].growth
                seen.add(now.model_dump_json())
                held = [dict(now.limits), *(dict(trigger) for _, trigger in singles(now.when))]
                assert all(part[name] == value for name, value in kept.items() for part in held if name in part)
        assert len(seen) > 3


def test_one_act_that_is_tuned_makes_a_model_at_most_so_many_times_as_large() -> None:
    for do in ({"action": "deepen", "layers": 3}, {"action": "widen", "target": "dim", "factor": 3.0}):
        for seed in range(8):
            start = blueprint({**WIDEN, "do": do, "limits": {}}, blocks=[DENSE])
            for model in walk(start, 5, seed):
                for rule in model.growth:
                    made = making.make(start, rule.do, np.random.default_rng(0))
                    if made is not None and made.blueprint is not None and rule.do.action == do["action"]:
                        assert len(made.blueprint.blocks) <= MOST_GROWTH * len(start.blocks)
                        assert made.blueprint.emb.dim <= MOST_GROWTH * start.emb.dim


def test_operators_stop_at_a_few_rules_and_no_two_say_the_same() -> None:
    for model in walk(blueprint(), 60, seed=3):
        assert len(model.growth) <= MOST_RULES
        said = [rule.model_dump_json(exclude={"id"}) for rule in model.growth]
        assert len(set(said)) == len(said)


def test_expert_rules_are_not_drawn_without_experts() -> None:
    actions = {
        rule.do.action for seed in range(8) for m in walk(blueprint(blocks=[DENSE]), 10, seed) for rule in m.growth
    }
    assert not [action for action in actions if action.endswith("_experts")]
    assert "drop_layer" not in actions


def test_counts_are_drawn_of_the_order_that_the_rules_at_hand_have() -> None:
    start = blueprint({**WIDEN, "when": {"trigger": "step", "every": 4000}})
    added = [apply_operator(start, "add_growth_rule", np.random.default_rng(seed)) for seed in range(20)]
    steps = [
        value for made in added if made for value in dict(made[0].growth[1].when).values() if isinstance(value, int)
    ]
    assert steps
    assert all(2000 <= value <= 8000 for value in steps)


def test_each_operator_applies_only_where_it_can() -> None:
    def applies(model: Blueprint) -> set[str]:
        return {info["name"] for info in describe_operators(model) if info["name"] in NAMES and info["applies"]}

    assert applies(blueprint()) == {"add_growth_rule"}
    assert applies(blueprint(WIDEN)) == set(NAMES)
    full = blueprint(*({**WIDEN, "when": {"trigger": "step", "at": at}} for at in range(1, MOST_RULES + 1)))
    assert applies(full) == {"remove_growth_rule", "tune_growth_rule"}


def test_a_users_own_large_limits_may_stay_and_do_not_rise() -> None:
    far = blueprint({**WIDEN, "limits": {"max_dim": 4096, "max_params": 10**9, "max_times": 50}})
    for seed in range(12):
        for model in walk(far, 6, seed):
            for rule in model.growth:
                limits = rule.limits
                assert (limits.max_dim or 0) <= 4096
                assert (limits.max_params or 0) <= 10**9
                assert (limits.max_times or 0) <= 50


def test_without_rules_at_the_root_no_operator_of_theirs_is_drawn() -> None:
    evolution = Evolution()
    assert not set(NAMES) & operator_weights({}).keys()
    assert Policy.of(evolution, root=blueprint()) == Policy.of(evolution)
    with_rules = Policy.of(evolution, root=blueprint(WIDEN)).weights
    assert {name: with_rules[name] for name in NAMES} == dict.fromkeys(NAMES, 1.0)
    assert {name for name in with_rules if name not in NAMES} == set(Policy.of(evolution).weights)


def test_weights_that_are_given_count_and_asking_for_more_rules_asks_for_all_four() -> None:
    assert rule_weights(blueprint(WIDEN), {"tune_growth_rule": 0.0}).keys() == set(NAMES) - {"tune_growth_rule"}
    assert rule_weights(blueprint(), {"add_growth_rule": 0.5}).keys() == set(NAMES) - {"add_growth_rule"}
    assert rule_weights(blueprint(), {"add_growth_rule": 0.0}) == {}
    evolution = Evolution.model_validate({"mutation_weights": {"add_growth_rule": 0.5}})
    weights = Policy.of(evolution, root=blueprint()).weights
    assert [weights[name] for name in NAMES] == [0.5, 1.0, 1.0, 1.0]


def test_a_weight_of_zero_changes_no_draw() -> None:
    known = {name: op.weight for name, op in OPERATORS.items() if name not in NAMES}
    for seed in range(5):
        made = [
            mutate(blueprint(), np.random.default_rng(seed), 3, weights)
            for weights in ({}, known, known | dict.fromkeys(NAMES, 0.0))
        ]
        assert made[0] == made[1] == made[2]


def test_a_search_from_a_root_with_rules_edits_them() -> None:
    policy = Policy.of(Evolution.model_validate({"mutation_weights": {"widen_ffn": 0.0}}), 32, blueprint(WIDEN))
    used = Counter[str]()
    for seed in range(40):
        used.update(
            edit.operator
            for edit in policy.mutated(Evolution(), blueprint(WIDEN), Train(), np.random.default_rng(seed)).edits
        )
    assert used.keys() & set(NAMES)
    assert sum(used[name] for name in NAMES) < 0.3 * used.total()


def crossed(make: Any, first: Blueprint, second: Blueprint) -> list[Blueprint]:
    """The children of many draws."""
    made = [make(first, second, np.random.default_rng(seed)) for seed in range(12)]
    children = [proposal for proposal in made if proposal is not None]
    assert children
    for proposal in children:
        assert apply(first, proposal.edits[0].changes).growth == proposal.child.growth
    return [proposal.child for proposal in children]


def test_a_child_has_the_rules_of_its_first_parent_and_those_of_the_second_that_fit() -> None:
    first = blueprint({"id": "a", **WIDEN})
    small = {"id": "c", **WIDEN, "limits": {"max_layers": 1}}
    second = blueprint({"id": "a", **SPLIT}, {"id": "b", **SPLIT}, small, blocks=(MIXED, MIXED, ATTN))
    for child in crossed(one_point, first, second):
        assert child.growth == first.growth
    for make in (aligned_span, uniform):
        for child in crossed(make, first, second):
            mixed = any(block.ffn is not None and block.ffn.label == "moe" for block in child.blocks)
            assert [rule.id for rule in child.growth] == (["a", "b"] if mixed else ["a"])
            assert child.growth[0] == first.growth[0]


def test_of_the_second_parents_rules_none_says_or_undoes_what_the_first_ones_do() -> None:
    drop = {"id": "c", **WIDEN, "do": {"action": "drop_layer"}}
    first = blueprint({"id": "a", **WIDEN, "do": {"action": "deepen"}, "limits": {}})
    prune = {"id": "d", "when": {"trigger": "manual"}, "do": {"action": "narrow"}}
    same = {"id": "b", **WIDEN, "do": {"action": "deepen"}, "limits": {}}
    second = blueprint(same, drop, prune, blocks=(MIXED, DENSE, ATTN))
    for child in crossed(uniform, first, second):
        assert [rule.id for rule in child.growth] == ["a", "d"]


def test_rules_that_name_blocks_which_the_child_lacks_name_them_no_more() -> None:
    first = blueprint({"id": "a", **WIDEN, "do": {"action": "widen", "blocks": ["b0", "b2"]}})
    second = blueprint({"id": "b", **WIDEN, "do": {"action": "widen", "blocks": ["b9"]}}, blocks=(MIXED, DENSE))
    for make in (aligned_span, uniform):
        for child in crossed(make, first, second):
            present = {block.id for block in child.blocks}
            assert all(set(rule.blocks()) <= present for rule in child.growth)
            assert "b" not in [rule.id for rule in child.growth]


def test_an_expert_rule_comes_along_with_the_rule_that_makes_mixtures() -> None:
    to_moe = {"id": "m", **WIDEN, "do": {"action": "to_moe"}}
    first, second = blueprint(blocks=(DENSE, ATTN)), blueprint(to_moe, {"id": "s", **SPLIT}, blocks=(ATTN, DENSE))
    for child in crossed(aligned_span, first, second):
        dense = any(block.ffn is not None for block in child.blocks)
        assert [rule.id for rule in child.growth] == (["m", "s"] if dense else [])


@pytest.mark.parametrize("name", NAMES)
def test_operators_are_listed_with_what_they_do(name: str) -> None:
    model = blueprint(blocks=[DENSE])
    info = next(info for info in describe_operators(model) if info["name"] == name)
    assert info["level"] == "model"
    assert info["preserves"] is True
    assert info["weight"] == 0.0
    ruled = next(info for info in describe_operators(model.evolve(growth=(WIDEN,)) or model) if info["name"] == name)
    assert ruled["weight"] == 1.0
    assert "rule" in info["summary"]
