"""Templates: read and refused with line and column, applied whole or not at all, made up and varied by seed."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from examples import up_to
from morphogen.blueprint.diff import apply, digest
from morphogen.blueprint.schema import Block, Blueprint
from morphogen.blueprint.templates import Action, Conditions, Template
from morphogen.errors import InputError
from morphogen.inherit.descent import inherit
from morphogen.inherit.plan import plan
from morphogen.network import initial_state
from morphogen.parts.attention.attention import Attention
from morphogen.parts.ffn.mlp import MLP
from morphogen.parts.ffn.moe import MoE
from morphogen.variation.act import Surroundings, apply_operator
from morphogen.variation.compound import simple_operators
from morphogen.variation.template import carry_out, check_templates, fits, made_up, mistakes, read_templates, varied
from strategies import blueprints

SHIPPED = Path(__file__).parents[2] / "configs" / "templates" / "mutations.yaml"


def model(blocks=3):
    """Blocks of attention and a dense layer."""
    made = [
        Block(id=f"b{i}", attn=Attention(kind="MHA", heads=2, head_dim=8), ffn=MLP(hidden=16)) for i in range(blocks)
    ]
    return Blueprint(emb={"dim": 16, "vocab": 37}, blocks=tuple(made))


def template(*actions, **rest):
    return Template(name="t", actions=actions, **rest)


def carried(given, blueprint=None, seed=0, around=None):
    return carry_out(given, blueprint or model(), around or Surroundings(), np.random.default_rng(seed))


def replayed(blueprint, steps):
    for step in steps:
        blueprint = apply(blueprint, step.changes)
    return blueprint


# ---------------------------------------------------------------------------------------------------- the file


def test_the_shipped_templates_apply_and_are_exact_and_replay():
    for each in read_templates(SHIPPED):
        made = carried(each, model(4))
        assert made is not None, each.name
        assert [step.operator for step in made.steps] == [action.operator for action in each.actions]
        assert all(step.preserves for step in made.steps), each.name
        assert replayed(model(4), made.steps) == made.child


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "actions: [{operator: widen_fnn}]",
            r":3:16 templates\[0\].actions\[0\].operator: got 'widen_fnn'.*'widen_ffn'",
        ),
        (
            "actions: [{operator: widen_ffn, target: frist}]",
            r"actions\[0\].target: got 'frist', .*did you mean 'first'",
        ),
        ("actions: [{operator: widen_ffn, target: same}]", "there is no action before it"),
        ("actions: [{operator: widen_dim, target: first}]", r"target: got 'first', expected any: widen_dim"),
        ("actions: [{operator: widen_ffn, set: {hiden: 8}}]", r"set.hiden: got 'hiden'.*did you mean 'hidden'"),
        ("actions: [{operator: widen_ffn, set: {hidden: -8}}]", r":3:43 .*set.hidden: got -8, expected greater than 0"),
        (
            "actions: [{operator: tune_attn_sparsity, set: {sparsity: wavy}}]",
            r"actions\[0\].set.sparsity: got 'wavy', expected one of none, sliding, block",
        ),
        (
            "actions: [{operator: tune_attn_sparsity, set: {sparsity: slidng}}]",
            r"set.sparsity: got 'slidng', .*did you mean 'sliding'",
        ),
        (
            "actions: [{operator: tune_attn_sparsity, set: {sw: none}}]",
            r":3:52 .*set.sw: got 'none', expected a whole number",
        ),
        (
            "actions: [{operator: tune_attn_sparsity, set: {sw: 4, sliding_window: 8}}]",
            "set.sw: another name of sliding_window, which is set too",
        ),
        ("actions: [{operator: insert_retro, set: {kind: rtro}}]", "got 'rtro', .*did you mean 'retro'"),
        (
            "actions: [{operator: tune_kv_policy, set: {kv_policy: {windw: 3}}}]",
            r":3:60 .*set.kv_policy.windw: unknown field, did you mean 'window'",
        ),
        ("actions: [{operator: toggle_precision, set: {hidden: 8}}]", "toggle_precision makes no one part"),
        ("actions: [{operator: template_mutation}]", "got 'template_mutation'"),
        ("actions: []", r"templates\[0\].actions: got \[\]"),
        ("actoins: []", "did you mean 'actions'"),
        ("conditions: {has: [meo]}\n    actions: [{operator: widen_ffn}]", r":3:24 .*has\[0\]: got 'meo'.*mean 'moe'"),
        ("conditions: {min_blocks: 3, max_blocks: 2}\n    actions: [{operator: widen_ffn}]", "no blueprint fits"),
        ("weight: 0\n    actions: [{operator: widen_ffn}]", r"templates\[0\].weight: got 0"),
    ],
)
def test_a_mistake_is_told_with_line_and_column(tmp_path, line, message):
    path = tmp_path / "t.yaml"
    path.write_text(f"templates:\n  - name: t\n    {line}\n")
    with pytest.raises(InputError, match=message) as caught:
        read_templates(path)
    assert str(caught.value).startswith(f"{path}:")


@pytest.mark.parametrize("text", ["", "- a\n", "templates: []\n", "templates: [3]\n"])
def test_what_is_no_file_of_templates_is_refused(tmp_path, text):
    (tmp_path / "t.yaml").write_text(text)
    with pytest.raises(InputError, match="templates"):
        read_templates(tmp_path / "t.yaml")


def test_templates_in_an_experiment_are_checked_too():
    with pytest.raises(InputError, match=r"evolution.templates\[0\].actions\[0\].operator: got 'widen_fnn'"):
        check_templates((template(Action(operator="widen_fnn")),))


def test_a_field_is_set_by_its_alias_too():
    (step,) = carried(template(Action(operator="tune_attn_sparsity", set={"sparsity": "sliding", "sw": 4}))).steps
    made = replayed(model(), (step,))
    assert [block.attn.sliding_window for block in made.blocks if block.attn.sparsity == "sliding"] == [4]


def test_an_alias_names_its_operator():
    made = carried(template(Action(operator="insert_retro")))
    assert made.steps[0].operator == "insert_retro_module"


# ---------------------------------------------------------------------------------------------------- applying


@pytest.mark.parametrize(
    ("conditions", "holds"),
    [
        ({}, True),
        ({"min_blocks": 3, "max_blocks": 3}, True),
        ({"min_blocks": 4}, False),
        ({"max_blocks": 2}, False),
        ({"has": ["attn", "MHA", "dense"]}, True),
        ({"has": ["moe"]}, False),
        ({"lacks": ["moe", "memory", "selector", "recurrence"]}, True),
        ({"lacks": ["ffn"]}, False),
        ({"max_params": 100}, False),
        ({"min_params": 100, "max_params": 10**6}, True),
    ],
)
def test_conditions(conditions, holds):
    assert fits(Conditions(**conditions), model()) is holds
    made = carried(template(Action(operator="widen_dim"), conditions=conditions))
    assert (made is not None) is holds


def test_features_of_what_a_blueprint_has():
    looped = apply_operator(model(), "add_recurrence", np.random.default_rng(0))[0]
    assert fits(Conditions(has=("recurrence",)), looped)
    remembering = apply_operator(model(), "insert_memory_tokens", np.random.default_rng(0))[0]
    assert fits(Conditions(has=("memory", "memory_tokens", "extra")), remembering)
    selecting = apply_operator(model(), "toggle_selector", np.random.default_rng(0))[0]
    assert fits(Conditions(has=("selector",)), selecting)


@pytest.mark.parametrize(("target", "block"), [("first", "b0"), ("last", "b2"), (1, "b1"), (-1, "b2")])
def test_targets(target, block):
    for seed in range(5):
        (step,) = carried(template(Action(operator="widen_ffn", target=target)), seed=seed).steps
        assert step.target == f"blocks[{block}].ffn"


def test_a_position_that_there_is_not_fails_the_template():
    assert carried(template(Action(operator="widen_ffn", target=3))) is None


def test_same_is_the_block_of_the_action_before():
    both = template(Action(operator="toggle_linear_attention"), Action(operator="insert_layer_scale", target="same"))
    places = {tuple(step.target[:10] for step in carried(both, seed=seed).steps) for seed in range(12)}
    assert places == {(f"blocks[b{i}]",) * 2 for i in range(3)}


def test_fields_are_set_in_what_an_operator_makes_and_its_claim_follows():
    made = carried(template(Action(operator="widen_ffn", target=0, set={"hidden": 40})))
    assert made.child.blocks[0].ffn.hidden == 40
    assert made.steps[0].preserves
    narrowed = carried(template(Action(operator="widen_ffn", target=0, set={"hidden": 8})))
    assert narrowed.child.blocks[0].ffn.hidden == 8
    assert not narrowed.steps[0].preserves
    inserted = carried(template(Action(operator="insert_retro_module", set={"stride": 8, "memory_tokens": 3})))
    assert [(e.stride, e.memory_tokens) for b in inserted.child.blocks for e in b.extras] == [(8, 3)]
    assert inserted.steps[0].preserves
    looped = carried(template(Action(operator="add_recurrence", set={"adapter": "gated"})))
    assert looped.child.recurrences[0].adapter == "gated"


@pytest.mark.parametrize("fields", [{"hidden": -1}, {"stride": 3}, {"activation": "no"}])
def test_fields_that_do_not_fit_fail_the_template(fields):
    assert carried(template(Action(operator="widen_ffn", set=fields))) is None


def test_all_actions_or_none():
    assert carried(template(Action(operator="widen_ffn"), Action(operator="remove_recurrence"))) is None


def test_a_change_of_training_is_recorded_beside_those_of_the_blueprint():
    made = carried(template(Action(operator="toggle_precision"), Action(operator="widen_ffn")))
    assert [change.path.split(".")[0] for step in made.steps for change in step.changes] == ["train", "blocks"]


def test_exact_after_exact_is_exact_where_the_plan_from_end_to_end_is_not():
    """Experts out of a dense layer, then more of them as twins: step by step nothing is lost."""
    made = carried(template(Action(operator="dense_to_moe", target=0), Action(operator="segment_experts", target=0)))
    assert all(step.preserves for step in made.steps)
    assert isinstance(made.child.blocks[0].ffn, MoE)
    assert not plan(made.child, [model()]).exact
    parents = [(model(), initial_state(model(), 0))]
    assert inherit(made.child, parents, edits=made.steps)[1].exact
    assert not inherit(made.child, parents)[1].exact
    with pytest.raises(InputError, match="do not lead to the blueprint"):
        inherit(made.child, parents, edits=made.steps[:1])


# ------------------------------------------------------------------------------------------------ the operator


def drawn(templates, seed, novelty=0.0, blueprint=None):
    around = Surroundings(templates=templates, novelty=novelty)
    return apply_operator(blueprint or model(), "template_mutation", np.random.default_rng(seed), around)


def test_the_operator_draws_by_weight_and_records_template_and_steps():
    pool = (
        Template(name="often", weight=9.0, actions=(Action(operator="widen_ffn"), Action(operator="untie_head"))),
        Template(name="seldom", weight=1.0, actions=(Action(operator="widen_dim"),)),
        Template(name="never", conditions={"has": ["moe"]}, actions=(Action(operator="widen_dim"),)),
    )
    names = []
    for seed in range(60):
        child, edit = drawn(pool, seed)
        names.append(edit.template["name"])
        assert Template.model_validate(edit.template) in pool
        assert apply(model(), edit.changes) == replayed(model(), edit.steps) == child
        assert edit.preserves
    assert 45 <= names.count("often") < 60
    assert "never" not in names


def test_without_templates_one_is_made_up_and_novelty_varies_those_there_are():
    assert drawn((), 0)[1].template["name"].startswith("made-")
    pool = (Template(name="base", actions=(Action(operator="widen_ffn"),)),)
    names = [found[1].template["name"] for seed in range(40) if (found := drawn(pool, seed, novelty=1.0))]
    assert any(name.startswith("base~") for name in names)
    assert any(name.startswith("made-") for name in names)
    assert "base" not in names


@settings(max_examples=up_to(40), deadline=None)
@given(blueprint=blueprints(), seed=st.integers(0, 2**31))
def test_made_up_templates_are_valid_and_repeat_by_seed(blueprint, seed):
    usable = simple_operators({})
    one, other = (list(made_up(blueprint, Surroundings(), usable, np.random.default_rng(seed))) for _ in range(2))
    assert one == other
    (chain,) = one
    assert len(chain.actions) in (2, 3)
    rng = np.random.default_rng(seed)
    for _ in range(4):
        before, chain = chain, varied(chain, usable, rng)
        assert chain.name != before.name
        assert (chain.actions, chain.weight) != (before.actions, before.weight) or before.weight in (0.1, 10.0)
        assert Template.model_validate(chain.model_dump(mode="json")) == chain
        assert list(mistakes((chain,))) == []
    made = carry_out(chain, blueprint, Surroundings(), np.random.default_rng(seed))
    if made is not None:
        assert replayed(blueprint, made.steps) == made.child


@settings(max_examples=up_to(40), deadline=None)
@given(blueprint=blueprints(), seed=st.integers(0, 2**31))
def test_operators_switched_off_are_in_no_jitter_and_in_no_new_template(blueprint, seed):
    weights = dict.fromkeys(simple_operators({}), 0.0) | {"widen_ffn": 1.0, "widen_dim": 2.0}
    for name in ("graph_jitter", "template_mutation"):
        made = apply_operator(blueprint, name, np.random.default_rng(seed), Surroundings(weights=weights))
        if made is not None:
            assert {step.operator for step in made[1].steps} <= {"widen_ffn", "widen_dim"}
            assert digest(made[0]) != digest(blueprint)
