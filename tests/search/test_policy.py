"""Policy: adaptive weights, templates that are learned, gates that are repaired, edits of training, all by replay."""

import numpy as np
import pytest
import simulated
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated import as_text, engine, experiment, run, start

from examples import up_to
from morphogen.blueprint.diff import apply
from morphogen.blueprint.schema import Blueprint
from morphogen.blueprint.templates import Action, Template
from morphogen.candidate import Candidate, Edit
from morphogen.cost import structure
from morphogen.errors import InputError, RunError
from morphogen.experiment import Evolution, Train
from morphogen.parts.contract.operator import OPERATORS
from morphogen.search.engine import Engine
from morphogen.store.ledger import Stop
from morphogen.variation.operator import Proposal, edit, mutate
from morphogen.variation.policy import Policy
from strategies import blueprints


def only(*names, **weights):
    """Weights that leave just these operators."""
    return {**dict.fromkeys(OPERATORS, 0.0), **dict.fromkeys(names, 1.0), **weights}


def child(id, *operators, **more):
    edits = tuple(Edit(operator=name, target="model", preserves=True, **more) for name in operators)
    return Candidate(id=id, index=0, generation=1, blueprint={}, edits=edits)


def resumed(search, events):
    """The engine that a process started anew would have: from events that were written down and read back."""
    again = Engine.replay(
        [start(search), *events, Stop(reason="interrupted")], run_dir=search.run_dir, device=search.device
    )
    assert again.space.policy == search.space.policy
    return again


# ------------------------------------------------------------------------------------------------------ weights


def test_an_operator_whose_children_survive_gains_and_one_whose_do_not_loses():
    evolution = Evolution(adaptive_mutation=True, adaptive_mutation_eta=0.5)
    policy = Policy.of(evolution)
    newborn = [child("a", "widen_ffn"), child("b", "widen_ffn"), child("c", "swap_blocks"), child("d", "swap_blocks")]
    after = policy.after(evolution, newborn, {"a", "b", "c"}).weights
    assert after["widen_ffn"] == pytest.approx(np.exp(0.5 * (1.0 - 0.75)))
    assert after["swap_blocks"] == pytest.approx(np.exp(0.5 * (0.5 - 0.75)))
    assert {name: weight for name, weight in after.items() if name not in ("widen_ffn", "swap_blocks")} == {
        name: weight for name, weight in policy.weights.items() if name not in ("widen_ffn", "swap_blocks")
    }


def test_weights_stay_within_bounds_and_do_not_move_unless_asked_to():
    bounds = {"adaptive_mutation_min_weight": 0.5, "adaptive_mutation_max_weight": 2.0, "adaptive_mutation_eta": 3.0}
    evolution = Evolution(adaptive_mutation=True, mutation_weights={"widen_dim": 9.0}, **bounds)
    policy = Policy.of(evolution)
    assert policy.weights["widen_dim"] == 2.0
    for _ in range(5):
        policy = policy.after(evolution, [child("a", "widen_ffn"), child("b", "swap_blocks")], {"a"})
    assert (policy.weights["widen_ffn"], policy.weights["swap_blocks"]) == (2.0, 0.5)
    still = Evolution()
    assert Policy.of(still).after(still, [child("a", "widen_ffn"), child("b", "swap_blocks")], {"a"}) == Policy.of(
        still
    )


def test_repairs_and_what_is_switched_off_earn_nothing():
    evolution = Evolution(adaptive_mutation=True, mutation_weights={"swap_blocks": 0.0})
    policy = Policy.of(evolution)
    newborn = [child("a", "insert_moe", repair=True), child("b", "swap_blocks")]
    assert policy.after(evolution, newborn, {"a"}) == policy


def test_adaptive_weights_are_drawn_by_and_resume_alike():
    """Only children of one operator survive here, so that the run comes to draw it more."""
    names = ("widen_ffn", "narrow_ffn", "change_activation", "toggle_alibi", "tune_rope")

    def favoured(candidate):
        good = [e.operator for e in candidate.edits].count("widen_ffn")
        return simulated.measure(candidate, bpb=3.0 - good - candidate.generation, flops_per_token=1.0)

    settings = {
        "generations": 8,
        "mutation_steps": 1,
        "crossover_prob": 0.0,
        "objectives": {"bpb": "min"},
        "topk_keep": 3,
        "mutation_weights": only(*names),
        "adaptive_mutation": True,
        "adaptive_mutation_eta": 1.0,
    }
    search = engine(**settings)
    events = run(search, evaluate=favoured)
    weights = search.space.policy.weights
    assert set(weights) == set(names)
    assert max(weights, key=lambda name: weights[name]) == "widen_ffn"
    whole = engine(**settings)
    half = run(whole, generations=4, evaluate=favoured)
    again = resumed(whole, half)
    assert as_text([*half, *run(again, evaluate=favoured)]) == as_text(events)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mutation_steps": [3, 2]}, "mutation_steps: got the range 3 to 2"),
        ({"mutation_steps": [0, 2]}, "greater than or equal to 1"),
        ({"mutation_steps": "two"}, "integer"),
        ({"adaptive_mutation_min_weight": 9.0}, "above adaptive_mutation_max_weight"),
        ({"structural_gates": "mend"}, "'repair' or 'reject'"),
    ],
)
def test_settings_that_cannot_be(fields, message):
    with pytest.raises(ValueError, match=message):
        Evolution(**fields)


def test_a_range_of_steps():
    assert Evolution(mutation_steps=[2, 4]).steps == (2, 4)
    assert Evolution(mutation_steps=3).steps == (1, 3)
    assert Evolution(mutation_steps=0).steps == (0, 0)
    model = simulated.experiment().model
    counts = {len(mutate(model, np.random.default_rng(seed), (2, 4), {}).edits) for seed in range(40)}
    assert counts == {2, 3, 4}
    search = engine(mutation_steps=[2, 3], crossover_prob=0.0)
    run(search, generations=3)
    assert {len(c.edits) for c in list(search.candidates.values())[1:]} <= {2, 3}


def test_an_alias_has_the_weight_of_its_operator_and_not_two():
    model = simulated.experiment().model
    weights = only() | {"insert_retro": 1.0}
    del weights["insert_retro_module"]
    assert {e.operator for e in mutate(model, np.random.default_rng(0), 1, weights).edits} == {"insert_retro_module"}
    with pytest.raises(InputError, match="another name of insert_retro_module"):
        mutate(model, np.random.default_rng(0), 1, {"insert_retro": 1.0, "insert_retro_module": 2.0})


# ---------------------------------------------------------------------------------------------------- templates


TEMPLATES = [{"name": "pair", "actions": [{"operator": "widen_ffn"}, {"operator": "insert_layer_scale"}]}]


def test_new_templates_of_survivors_are_learned_and_resume_alike():
    settings = {
        "generations": 5,
        "templates": TEMPLATES,
        "template_mutation_prob": 0.8,
        "mutation_weights": {"template_mutation": 200.0},
        "crossover_prob": 0.0,
    }
    search = engine(**settings)
    events = run(search)
    learned = search.space.policy.learned
    assert learned
    used = {
        e.template["name"] for c in search.candidates.values() for e in c.edits if e.template and e.template["name"]
    }
    assert {template.name for template in learned} <= used
    whole = engine(**settings)
    half = run(whole, generations=3)
    again = resumed(whole, half)
    assert as_text([*half, *run(again)]) == as_text(events)


def test_the_oldest_learned_templates_go():
    evolution = Evolution()
    policy = Policy.of(evolution)
    for number in range(40):
        made = Template(name=f"n{number}", actions=(Action(operator="widen_ffn"),)).model_dump(mode="json")
        policy = policy.after(evolution, [child("a", "template_mutation", template=made)], {"a"})
    assert [template.name for template in policy.learned] == [f"n{number}" for number in range(8, 40)]


def test_a_file_of_templates_must_be_read_before_an_engine_has_it():
    with pytest.raises(RunError, match=r"templates.yaml has not been read"):
        engine(templates="templates.yaml")


# -------------------------------------------------------------------------------------------------------- gates

GATES = {"min_layers": 3, "min_moe_blocks": 1, "min_selector_blocks": 1, "min_memory_blocks": 2, "min_recurrences": 1}


def test_children_are_repaired_and_the_root_need_not_be():
    search = engine(generations=2, **GATES)
    run(search)
    root, *children = search.candidates.values()
    assert structure(Blueprint.model_validate(root.blueprint))["moe_blocks"] == 0
    evolution = search.experiment.evolution
    # what no operator can mend, as where no attention is left for a selector, is turned away, and another drawn
    children = [child for child in children if search.reports[child.id].status != "rejected"]
    assert len(children) == 12
    for candidate in children:
        found = structure(Blueprint.model_validate(candidate.blueprint))
        assert all(found[gate] >= least for gate, least in evolution.gates.items())
    repairs = [e for c in children for e in c.edits if e.repair]
    assert {"dense_to_moe", "insert_moe", "toggle_selector", "add_recurrence"} & {e.operator for e in repairs}
    assert not children[0].edits[0].repair


@settings(max_examples=up_to(30), deadline=None)
@given(blueprint=blueprints(), seed=st.integers(0, 2**31))
def test_a_repair_adds_what_is_missing_and_replays(blueprint, seed):
    evolution = Evolution(**GATES)
    made = Policy.of(evolution).repaired(evolution, Proposal(blueprint, ()), Train(), np.random.default_rng(seed))
    here = blueprint
    for each in made.edits:
        here = apply(here, each.changes)
        assert each.repair
    assert here == made.child
    before, after = structure(blueprint), structure(made.child)
    assert all(after[gate] >= min(before[gate], least) for gate, least in evolution.gates.items())
    # a selector needs attention that can have one, a loop free blocks; all else can always be added
    for gate in ("layers", "moe_blocks", "memory_blocks"):
        assert after[gate] >= evolution.gates[gate]


def test_what_cannot_be_repaired_is_turned_away_with_the_reason():
    search = engine(min_moe_blocks=1, mutation_weights=only("widen_ffn", "widen_dim"))
    run(search, generations=1)
    search.ask()
    turned = [r.reason for c in search.candidates.values() if c.index and (r := search.reports[c.id])]
    assert turned
    assert set(turned) == {"moe_blocks is 0, below min_moe_blocks 1"}


def test_with_rejection_nothing_is_repaired_and_the_root_must_pass():
    with pytest.raises(RunError, match="rejected by rung 0: moe_blocks is 0, below min_moe_blocks 1"):
        engine(min_moe_blocks=1, structural_gates="reject").ask()
    evolution = Evolution(min_layers=5, structural_gates="reject")
    given = Proposal(simulated.experiment().model, ())
    assert Policy.of(evolution).repaired(evolution, given, Train(), np.random.default_rng(0)) == given


# ----------------------------------------------------------------------------------------------------- training


def test_toggle_precision_changes_how_a_child_is_trained_and_is_no_duplicate():
    settings = {"mutation_steps": 1, "mutation_weights": only("toggle_precision", "untie_head"), "crossover_prob": 0.0}
    search = engine(**settings)
    events = run(search)
    found = {(blueprint_of(c).head.tie_embeddings, c.train.get("bf16", False)) for c in search.candidates.values()}
    assert found == {(True, False), (True, True), (False, False), (False, True)}
    assert len(search.candidates) == 4  # no way of training an architecture comes twice
    for candidate in search.candidates.values():
        assert set(candidate.train) <= {"bf16"}
        for each in candidate.edits:
            if each.operator == "toggle_precision":
                (change,) = each.changes
                assert (change.path, change.after) == ("train.bf16", not change.before)
                assert each.preserves
    job = search.job(next(c for c in search.candidates.values() if c.train))
    assert job.candidate.train == {"bf16": True}
    assert resumed(search, events).candidates == search.candidates


def blueprint_of(candidate):
    return Blueprint.model_validate(candidate.blueprint)


def test_training_is_not_changed_unless_asked_for():
    search = engine(generations=4, mutation_steps=3)
    run(search)
    assert all(candidate.train == {} for candidate in search.candidates.values())


def test_toggle_precision_by_hand():
    model = experiment().model
    same, done = edit(model, "toggle_precision", 0)
    assert same == model
    assert [(c.path, c.before, c.after) for c in done.changes] == [("train.bf16", False, True)]


@pytest.mark.slow
def test_the_edits_of_two_hundred_candidates_replay_with_everything_on():
    weights = {"toggle_precision": 2.0, "template_mutation": 10.0, "graph_jitter": 5.0}
    search = engine(
        generations=20,
        population=10,
        mutation_steps=[1, 3],
        templates=TEMPLATES,
        adaptive_mutation=True,
        mutation_weights=weights,
        min_moe_blocks=1,
        min_memory_blocks=1,
    )
    events = run(search)
    _, *children = search.candidates.values()
    assert len(children) >= 200
    for candidate in children:
        here = blueprint_of(search.candidates[candidate.parents[0]])
        for each in candidate.edits:
            here = apply(here, each.changes)
        assert here == blueprint_of(candidate)
    operators = {e.operator for c in children for e in c.edits}
    assert {"toggle_precision", "template_mutation", "graph_jitter"} <= operators
    again = Engine.replay([start(search), *events], run_dir=search.run_dir, device=search.device)
    assert again.space.policy == search.space.policy
    assert again.candidates == search.candidates
