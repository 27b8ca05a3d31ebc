"""Growth rules as genes of a blueprint: read and written, told apart by their ids, counted where there are some."""

import json
from pathlib import Path
from typing import Any

import pytest

from morphogen.blueprint.diff import apply, canonical, changes, digest, distance
from morphogen.blueprint.encoding import encoded
from morphogen.blueprint.growth import Deepen, GrowthRule, Widen
from morphogen.blueprint.schema import Blueprint
from morphogen.blueprint.triggers import StepTrigger
from morphogen.blueprint.yaml import dumps, loads, read
from morphogen.errors import InputError
from morphogen.experiment import Experiment

SMOKE = Path(__file__).parents[2] / "configs" / "live_smoke.yaml"
TEXT = """\
model:
  emb: {dim: 16}
  blocks:
    - attn: {kind: MHA, heads: 2, head_dim: 8}
      ffn: {kind: dense, hidden: 32}
    - ffn: {kind: dense, hidden: 32}
  growth:   # how it grows
    - {when: {trigger: plateau, window: 40}, do: {action: widen, blocks: [b1]}}   # wider first
    - when: {trigger: any, of: [{trigger: step, at: 3}, {trigger: tokens, every: 3}]}
      do: {action: deepen, layers: 2}
      limits: {max_layers: 9}   # no further
data: {seq_len: 32}
"""
#: What replaces what in TEXT -> what is said of it.
MISTAKES = {
    ("trigger: plateau", "trigger: platau"): ":8:15 model.growth[0].when.trigger: got 'platau', expected one of all, ",
    ("trigger: plateau, ", ""): ":8:8 model.growth[0].when: got {'window': 40}, expected a mapping with 'trigger'",
    ("{trigger: plateau, window: 40}", "plateau"): ":8:8 model.growth[0].when: got 'plateau', expected a mapping with",
    ("window: 40", "windw: 40"): ":8:33 model.growth[0].when.windw: unknown field, did you mean 'window'?",
    ("window: 40", "factor: 2"): ":8:33 model.growth[0].when.factor: unknown field of plateau; loss_spike has it",
    ("window: 40", "window: 1"): ":8:33 model.growth[0].when.window: got 1, expected greater than or equal to 2",
    ("at: 3", "at: true"): "model.growth[1].when.of[0].at: got true, expected a number",
    ("action: widen", "action: wide"): "model.growth[0].do.action: got 'wide', expected one of add_experts, ",
    (
        "action: widen",
        "target: ffn",
    ): "model.growth[0].do: got {'target': 'ffn', 'blocks': ['b1']}, expected a mapping wi",
    ("action: widen", "action: widen, target: emb"): "model.growth[0].do.target: got 'emb', expected one of ffn, heads",
    ("action: widen", "action: widen, factor: 1"): "model.growth[0].do.factor: got 1, expected greater than 1",
    ("blocks: [b1]", "blocks: b1"): "model.growth[0].do.blocks: got 'b1', expected a list",
    ("action: widen, blocks: [b1]", "action: grow_vocabulary"): "model.growth[0].do.tokens: required field is missing",
    (
        "action: widen, blocks: [b1]",
        "action: to_moe, k: 9",
    ): "model.growth[0].do: k is 9, expected at most the 4 experts",
    ("at: 3", "at: x"): ":9:49 model.growth[1].when.of[0].at: got 'x', expected a whole number",
    ("at: 3", "at: 3, every: 2"): "model.growth[1].when.of[0]: got both 'at' and 'every', expected one of the two",
    (", at: 3", ""): "model.growth[1].when.of[0]: got neither 'at' nor 'every', expected one of the two",
    (
        "at: 3",
        "window: 3",
    ): "when.of[0].window: unknown field of step; expert_usage, gradient_norm, loss_spike, perplexity",
    (
        "trigger: tokens",
        "trigger: tokns",
    ): ":9:58 model.growth[1].when.of[1].trigger: got 'tokns', expected one of all,",
    (", {trigger: tokens, every: 3}", ""): ":9:28 model.growth[1].when.of: got 1 items, expected at least 2",
    ("of: [{trigger: step, at: 3}", "of: [3"): "model.growth[1].when.of[0]: got 3, expected a mapping with 'trigger'",
    ("max_layers: 9", "max_layrs: 9"): ":11:16 model.growth[1].limits.max_layrs: unknown field, did you mean 'max_la",
    ("max_layers: 9", "max_times: 0"): ":11:16 model.growth[1].limits.max_times: got 0, expected greater than 0",
    (
        "action: deepen, layers: 2",
        "action: deepen, layers: 2.5",
    ): "model.growth[1].do.layers: got 2.5, expected a whole",
    ("      do: {action: deepen, layers: 2}\n", ""): ":9:7 model.growth[1].do: required field is missing",
    (
        "trigger: plateau, window: 40",
        "trigger: gradient_norm",
    ): "growth[0].when: got neither 'above' nor 'below', expec",
    (
        "trigger: plateau, window: 40",
        "trigger: perplexity, below: 1",
    ): "model.growth[0].when.below: got 1, expected greater than 1",
    (
        "trigger: plateau, window: 40",
        "trigger: utilization, threshold: 1.0",
    ): "model.growth[0].when.threshold: got 1.0, expected less than 1",
    ("trigger: plateau, window: 40", "trigger: perplexity"): "growth[0].when: got neither 'above' nor 'below', expecte",
    (
        "trigger: plateau, window: 40",
        "trigger: expert_usage, split_above: 0.1",
    ): "model.growth[0].when: prune_below 0.25 is not below split_above 0.1",
    ("  growth:   # how it grows\n", "  growth: {}\n  grow:\n"): "model.grow: unknown field, did you mean 'growth'?",
}


def rules(*made: dict[str, Any], blocks: int = 2) -> Blueprint:
    """A blueprint with rules."""
    block = {"attn": {"kind": "MHA", "heads": 2, "head_dim": 8}, "ffn": {"kind": "dense", "hidden": 32}}
    return Blueprint.model_validate({"emb": {"dim": 16, "vocab": 9}, "blocks": [block] * blocks, "growth": made})


def rule(do: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    """A rule that widens at step 3, unless told otherwise."""
    return {"when": {"trigger": "step", "at": 3}, "do": do or {"action": "widen"}, **more}


def test_rules_are_named_and_survive_the_files_layout() -> None:
    document = loads(TEXT)
    experiment = document.parse(Experiment)
    assert [each.id for each in experiment.model.growth] == ["rule0", "rule1"]
    data = experiment.model_dump(mode="json")
    data["model"]["growth"][1]["limits"]["max_layers"] = 8
    text = dumps(Experiment.model_validate(data), like=document)
    assert text == TEXT.replace("max_layers: 9", "max_layers: 8")
    alone = dumps(experiment.model)
    assert loads(alone).parse(Blueprint) == experiment.model
    assert "trigger: plateau" in alone
    assert "action: widen" in alone
    assert "tolerance" not in alone


@pytest.mark.parametrize(("change", "said"), MISTAKES.items())
def test_each_mistake_in_a_rule_is_told_with_its_place(change: tuple[str, str], said: str) -> None:
    assert change[0] in TEXT
    with pytest.raises(InputError) as error:
        loads(TEXT.replace(*change, 1), "f.yaml").parse(Experiment)
    message = str(error.value)
    assert said in message
    assert all(line.startswith("f.yaml:") for line in message.splitlines())
    assert not any(inside in message for inside in ("function-", "kind=", "type=", "Trigger", "_tag"))


def test_two_rules_of_one_name_are_refused() -> None:
    text = TEXT.replace("{when", "{id: a, when").replace("- when", "- id: a\n      when")
    with pytest.raises(InputError, match=r"^f.yaml:1:1 model: growth rules share the id a, expected every id once$"):
        loads(text, "f.yaml").parse(Experiment)


def test_ids_are_given_to_rules_made_in_python_too() -> None:
    made = GrowthRule(when=StepTrigger(at=3), do=Widen())
    named = GrowthRule(id="rule0", when=StepTrigger(at=9), do=Deepen())
    assert [each.id for each in rules(rule()).evolve(growth=(made, named, made)).growth] == ["rule1", "rule0", "rule2"]


def test_without_rules_all_is_as_it_was_before_there_were_any() -> None:
    plain = read(SMOKE).parse(Experiment).model
    known = "4680dfdbb7bb88c6cf200d59ade3923f09abd9742698bfb1e0a77cf009e097cc"
    older = {name: value for name, value in plain.to_json().items() if name != "growth"}
    assert digest(plain) == digest(Blueprint.model_validate(older)) == known
    assert Blueprint.model_validate(older) == plain
    assert not [name for name in encoded(plain) if "growth" in name]
    assert "growth" not in dumps(plain)


def test_a_rule_is_part_of_what_a_blueprint_is_and_its_name_is_not() -> None:
    plain, grown = rules(), rules(rule())
    assert digest(plain) != digest(grown)
    assert digest(rules(rule(id="other"))) == digest(grown)
    assert digest(rules(rule(), rule({"action": "deepen"}))) != digest(rules(rule({"action": "deepen"}), rule()))
    assert 0 < distance(plain, grown) < 1
    assert distance(grown, rules(rule({"action": "widen", "factor": 2.0}))) > 0
    names = encoded(grown).keys() - encoded(plain).keys()
    assert {"growth.when.step.at", "growth.do.widen.action=widen", "growth.do.widen.factor"} <= names


def test_what_a_rule_does_not_read_and_how_its_blocks_are_called_is_no_difference() -> None:
    drop = {"action": "drop_layer"}
    assert digest(rules(rule({**drop, "warmup": 3, "new_param_lr_multiplier": 2.0}))) == digest(rules(rule(drop)))
    named = rules(rule({"action": "widen", "blocks": ["b1", "b0"]}))
    data = json.loads(named.model_dump_json().replace('"b1"', '"x"'))
    assert digest(Blueprint.model_validate(data)) == digest(named)
    assert digest(named) == digest(rules(rule({"action": "widen", "blocks": ["b0", "b1"]})))
    assert digest(named) != digest(rules(rule({"action": "widen", "blocks": ["b0"]}))) != digest(rules(rule()))


def test_the_canonical_form_has_defaults_for_what_is_not_read_and_is_the_caller_s_own() -> None:
    model = rules(rule({"action": "drop_layer", "warmup": 3, "new_param_lr_multiplier": 2.0}, limits={"max_dim": 99}))
    plain, before = canonical(model), digest(model)
    (told,) = plain["growth"]
    assert (told["do"]["warmup"], told["do"]["new_param_lr_multiplier"], told["limits"]["max_dim"]) == (None, 1.0, None)
    plain["blocks"][0]["parts"][0][1].clear()
    assert digest(model) == before
    assert canonical(model)["blocks"][0]["parts"][0][1]


@pytest.mark.parametrize(
    ("before", "after", "paths"),
    [
        ((), (rule(),), ["growth.rule0", "growth"]),
        ((rule(), rule()), (rule(id="rule1"),), ["growth.rule0", "growth"]),
        ((rule(),), (rule({"action": "widen", "factor": 2.0}),), ["growth.rule0.do.factor"]),
        ((rule(),), (rule({"action": "deepen"}),), ["growth.rule0.do"]),
        ((rule(),), (rule(limits={"max_dim": 99}),), ["growth.rule0.limits.max_dim"]),
        ((rule(),), (rule(when={"trigger": "manual"}),), ["growth.rule0.when"]),
        ((rule(id="a"), rule(id="b")), (rule(id="b"), rule(id="a")), ["growth"]),
        (
            (rule(when={"trigger": "all", "of": [{"trigger": "manual"}, {"trigger": "plateau"}]}),),
            (rule(when={"trigger": "all", "of": [{"trigger": "manual"}, {"trigger": "loss_spike"}]}),),
            ["growth.rule0.when.of"],
        ),
    ],
)
def test_changes_of_rules_are_told_field_by_field_and_made_again(before: Any, after: Any, paths: list[str]) -> None:
    one, other = rules(*before), rules(*after)
    found = changes(one, other)
    assert [change.path for change in found] == paths
    assert apply(one, found) == other
    assert apply(other, changes(other, one)) == one


def test_an_edit_of_a_rule_that_is_not_as_it_was_is_refused() -> None:
    edits = changes(rules(rule()), rules(rule({"action": "widen", "factor": 2.0})))
    with pytest.raises(ValueError, match=r"growth.rule0.do.factor: found 3.0, the edit expects 1.5"):
        apply(rules(rule({"action": "widen", "factor": 3.0})), edits)


def test_rules_follow_the_blocks_that_they_name() -> None:
    named = rules(
        rule({"action": "widen", "blocks": ["b0", "b1"]}), rule({"action": "narrow", "blocks": ["b0"]}), rule()
    )
    left = named.with_blocks(named.blocks[1:])
    assert left is not None
    assert [each.id for each in left.growth] == ["rule0", "rule2"]
    assert left.growth[0].blocks() == ("b1",)


def test_the_schema_for_editors_says_what_every_field_of_a_rule_means() -> None:
    kinds = Experiment.model_json_schema()["$defs"]
    assert kinds["Blueprint"]["properties"]["growth"]["items"] == {"$ref": "#/$defs/GrowthRule"}
    for name in ("PlateauTrigger", "MajorityTrigger", "SplitExperts", "GrowthLimits", "GrowthRule"):
        fields = kinds[name]["properties"]
        assert all("const" in what or what["description"] for what in fields.values()), name
