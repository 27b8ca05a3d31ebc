"""Operators lifted to blueprints: valid, different, recorded, exact exactly when they say so."""

import contextlib
import itertools
import pkgutil
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from examples import up_to
from grounds import drawn, grounds
from morphogen import variation
from morphogen.blueprint.diff import apply, digest
from morphogen.blueprint.schema import Block, Blueprint
from morphogen.errors import InputError, OperatorError, RunError
from morphogen.inherit.plan import plan
from morphogen.parts.attention.attention import Attention
from morphogen.parts.contract.operator import OPERATORS, Operator, find_operator, model_operator
from morphogen.parts.ffn.mlp import MLP
from morphogen.parts.mixing.layer_scale import LayerScale
from morphogen.variation.foreign import NAMES
from morphogen.variation.operator import (
    apply_operator,
    describe_operators,
    mutate,
    operator_weights,
    targets,
)
from morphogen.variation.operator import (
    edit as named_edit,
)
from plugins import installed
from strategies import blueprints, rngs

many = settings(max_examples=up_to(60), deadline=None, suppress_health_check=[HealthCheck.too_slow])


def small(**changes):
    """Two blocks: attention with layer scale and feed-forward; feed-forward alone."""
    attn = Attention(kind="GQA", heads=4, head_dim=8, kv_groups=2)
    blocks = (
        Block(id="b0", attn=attn, ffn=MLP(hidden=16), extras=(LayerScale(targets=("attn", "ffn")),)),
        Block(id="b1", ffn=MLP(hidden=24)),
    )
    return Blueprint(emb={"dim": 16, "vocab": 37}, blocks=blocks).model_copy(update=changes)


def only(*names):
    """Weights that leave just these operators."""
    return {name: float(name in names) for name in OPERATORS}


@given(st.data())
@settings(max_examples=up_to(20), deadline=None)
def test_drawn_blueprints_survive_json(data):
    blueprint = data.draw(blueprints())
    assert Blueprint.model_validate(blueprint.to_json()) == blueprint


@pytest.mark.parametrize("name", sorted(OPERATORS))
def test_operator_gives_a_valid_changed_child_and_a_replayable_edit(name):
    for blueprint, seed in list(itertools.islice(grounds(name), 2))[-1:]:  # the contract's suite takes the first
        assert_valid_changed_and_replayable(name, blueprint, np.random.default_rng(seed))


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(OPERATORS))
@given(blueprint=blueprints(), rng=rngs())
@settings(max_examples=6, suppress_health_check=[HealthCheck.too_slow])
def test_operator_gives_a_valid_changed_child_of_any_blueprint(name, blueprint, rng):
    assert_valid_changed_and_replayable(name, blueprint, rng)


def assert_valid_changed_and_replayable(name, blueprint, rng):
    before = blueprint.to_json()
    made = apply_operator(blueprint, name, rng)
    assert blueprint.to_json() == before
    if made is None:
        return
    child, edit = made
    assert Blueprint.model_validate(child.to_json()) == child
    assert (digest(child) != digest(blueprint)) == (edit.target != "train")
    assert edit.operator == name
    assert apply(blueprint, edit.changes) == child
    everywhere = ", ".join(sorted(step.target for step in edit.steps))
    assert edit.target in {everywhere, *(target.name for target in targets(blueprint, find_operator(name)))}
    here, exact = blueprint, True
    for step in edit.single():
        following = apply(here, step.changes)
        here, exact = following, exact and plan(following, [here]).exact
    assert here == child
    assert exact == edit.preserves


@given(blueprint=blueprints(), seed=st.integers(0, 2**32 - 1), steps=st.integers(1, 5))
@many
def test_mutate_never_repeats_an_architecture_and_its_edits_lead_to_the_child(blueprint, seed, steps):
    child, edits = mutate(blueprint, np.random.default_rng(seed), steps, {})
    assert 1 <= len(edits) <= steps
    here, seen = blueprint, [digest(blueprint)]
    for edit in edits:
        here = apply(here, edit.changes)
        seen.append(digest(here))
    assert here == child
    assert len(set(seen)) == len(seen)
    assert mutate(blueprint, np.random.default_rng(seed), steps, {}) == (child, edits)


def test_every_operator_applies_to_some_drawn_blueprint(monkeypatch):
    """Of 167 operators 60 blueprints leave about two, so that this mostly ends early: an operator that never applies
    is told by name."""
    monkeypatch.setattr("morphogen.plugins.entry_points", installed)
    left = set(OPERATORS) - set(NAMES)
    for blueprint in drawn():
        left -= {name for name in left if apply_operator(blueprint, name, np.random.default_rng(0))}

    class NothingLeftError(Exception):
        """All have applied somewhere: nothing more needs to be drawn."""

    @given(blueprint=blueprints())
    @settings(max_examples=1000, deadline=None, phases=[Phase.generate])
    def collect(blueprint):
        found = {name for name in left if apply_operator(blueprint, name, np.random.default_rng(0))}
        left.difference_update(found)
        if not left:
            raise NothingLeftError

    with contextlib.suppress(NothingLeftError):
        collect()
    assert not left


def test_targets_name_blocks_by_gene_id():
    names = {name: [target.name for target in targets(small(), find_operator(name))] for name in OPERATORS}
    assert names["widen_ffn"] == ["blocks[b0].ffn", "blocks[b1].ffn"]
    assert names["add_heads"] == ["blocks[b0].attn"]
    assert names["tune_layer_scale"] == ["blocks[b0].extras[0]"]
    assert names["toggle_parallel"] == ["blocks[b0]", "blocks[b1]"]
    assert names["widen_dim"] == names["graph_jitter"] == ["model"]
    assert names["toggle_precision"] == ["train"]


def test_an_operator_that_applies_in_one_place_only_finds_it():
    for seed in range(20):
        child, edit = named_edit(small(), "toggle_parallel", seed)  # b1 has a single branch
        assert edit.target == "blocks[b0]"
        assert child.blocks[0].parallel
        assert child.blocks[1] == small().blocks[1]


def test_edit_in_an_extra_changes_that_extra_alone():
    child, edit = named_edit(small(), "tune_layer_scale", 0)
    assert edit.target == "blocks[b0].extras[0]"
    assert len(child.blocks[0].extras[0].targets) == 1
    assert child.blocks[0].ffn == small().blocks[0].ffn


def test_preserves_is_resolved_for_the_target():
    plain = small()
    gated = named_edit(plain, "tune_attn_gating", 0)
    assert gated[1].preserves
    assert not named_edit(gated[0], "tune_attn_gating", 0)[1].preserves


def test_all_operators_reach_every_place():
    edits = [named_edit(small(), "widen_ffn", seed)[1].target for seed in range(40)]
    assert set(edits) == {"blocks[b0].ffn", "blocks[b1].ffn"}


def test_named_edit_refuses_what_does_not_exist_or_apply():
    with pytest.raises(OperatorError, match="did you mean 'widen_ffn'"):
        named_edit(small(), "widen_fnn", 0)
    with pytest.raises(OperatorError, match="insert_ffn does not apply"):
        named_edit(small(), "insert_ffn", 0)


def test_the_way_back_to_the_parent_is_barred():
    one = small(blocks=(small().blocks[0],))
    for seed in range(20):
        child, edits = mutate(one, np.random.default_rng(seed), 6, only("toggle_parallel"))
        assert len(edits) == 1
        assert child.blocks[0].parallel


def test_weight_zero_disables_and_a_large_weight_prevails():
    rng = np.random.default_rng(0)
    weights = {"widen_ffn": 0.0, "change_norm": 1000.0}
    drawn = [edit.operator for _ in range(60) for edit in mutate(small(), rng, 1, weights).edits]
    assert "widen_ffn" not in drawn
    assert drawn.count("change_norm") > 50


def test_equal_weights_draw_evenly():
    rng = np.random.default_rng(1)
    names = ("change_norm", "untie_head", "delete_block", "insert_block")
    drawn = [mutate(small(), rng, 1, only(*names)).edits[0].operator for _ in range(400)]
    assert all(60 < drawn.count(name) < 140 for name in names)


def test_the_number_of_steps_is_even_up_to_the_limit():
    rng = np.random.default_rng(2)
    counts = [len(mutate(small(), rng, 3, {}).edits) for _ in range(150)]
    assert {1, 2, 3} == set(counts)
    assert min(counts.count(n) for n in (1, 2, 3)) > 25


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"widen_fnn": 1.0}, "did you mean 'widen_ffn'"),
        ({"widen_ffn": -1.0}, "mutation_weights.widen_ffn: got -1.0"),
        ({"widen_ffn": float("nan")}, "got nan"),
        (only(), "mutation_steps to 0"),
    ],
)
def test_bad_weights(weights, message):
    with pytest.raises(InputError, match=message):
        operator_weights(weights)


def test_mutate_says_when_nothing_applies_or_no_step_is_asked_for():
    with pytest.raises(OperatorError, match="no operator of positive weight applies"):
        mutate(small(), np.random.default_rng(0), 2, only("insert_ffn"))
    with pytest.raises(InputError, match="mutation_steps: got 0"):
        mutate(small(), np.random.default_rng(0), 0, {})


@given(blueprint=blueprints(vocab=None))
@example(blueprint=small(emb=small().emb.model_copy(update={"vocab": None})))
@settings(max_examples=5, deadline=None)
def test_operators_are_described_without_a_tokenizer(blueprint):
    table = {info["name"]: info for info in describe_operators(blueprint)}
    assert list(table) == sorted(OPERATORS)
    assert all(info["summary"].endswith(".") or "Ref:" in info["summary"] for info in table.values())
    assert table["widen_dim"]["preserves"] is True
    assert table["change_norm"]["preserves"] is False
    assert table["widen_head_dim"]["preserves"] is None
    assert table["delete_block"]["applies"] == (len(blueprint.blocks) > 1)
    assert table["untie_head"]["applies"] == blueprint.head.tie_embeddings


def test_every_file_of_operators_is_imported():
    """A new one need not be named anywhere."""
    names = {f"{variation.__name__}.{module.name}" for module in pkgutil.iter_modules(variation.__path__)}
    code = "import sys, morphogen.variation.policy; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert names <= set(done.stdout.split())


def test_an_operator_that_fails_ends_the_run_with_its_name(monkeypatch):
    def broken(blueprint, rng):
        return small().evolve(nmae="x")

    act = Operator("broken", "Fails.", "model", broken, preserves=False)
    monkeypatch.setitem(OPERATORS, "broken", act)
    with pytest.raises(RunError, match=r"operator broken: TypeError: .* did you mean 'name'\? \(.*evolve:\d+\)"):
        apply_operator(small(), "broken", np.random.default_rng(0))


def test_two_operators_cannot_share_a_name():
    def widen_ffn(blueprint, rng):
        """Another."""

    with pytest.raises(RuntimeError, match=rf"two operators are called widen_ffn, that of .* and that of {__name__}"):
        model_operator(preserves=False)(widen_ffn)
