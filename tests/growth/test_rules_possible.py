"""What cannot be meant in growth rules is refused with its place, and only that."""

from pathlib import Path
from typing import Any

import pytest

from morphogen.blueprint.schema import Blueprint
from morphogen.checks import validated
from morphogen.cli import main
from morphogen.errors import InputError
from morphogen.growth.rules import check_growth, growth_remarks, unheard

DENSE = {"ffn": {"kind": "dense", "hidden": 32}}
MIXED = {"ffn": {"kind": "moe", "hidden": 16, "n_experts": 4, "k": 2}}
ATTN = {"attn": {"kind": "MHA", "heads": 2, "head_dim": 8}}
STEP = {"trigger": "step", "at": 8}
USAGE = {"trigger": "expert_usage"}


def rule(do: dict[str, Any] | str = "widen", when: dict[str, Any] | None = None, **limits: Any) -> dict[str, Any]:
    return {"when": when or STEP, "do": {"action": do} if isinstance(do, str) else do, "limits": limits}


def blueprint(*growth: dict[str, Any], blocks: Any = (ATTN | DENSE, DENSE)) -> Blueprint:
    return Blueprint.model_validate({"emb": {"dim": 16, "vocab": 37}, "blocks": blocks, "growth": growth})


def said(model: Blueprint, steps: int | None = None, tokens: int | None = None) -> str:
    """What is refused of it."""
    try:
        check_growth(model, steps, tokens)
    except InputError as error:
        return str(error)
    return ""


REFUSED: dict[str, tuple[list[dict[str, Any]], Any, str]] = {
    "layers": ([rule(max_layers=1)], None, "limits.max_layers: is 1, below the 2 blocks that the model begins with"),
    "dim": (
        [rule(max_dim=15)],
        None,
        "limits.max_dim: is 15, below the 16 residual channels that the model begins with",
    ),
    "params": ([rule(max_params=99)], None, "limits.max_params: is 99, below the "),
    "flops": ([rule(max_flops_per_token=9.5)], None, "limits.max_flops_per_token: is 9.5, below the "),
    "no room for blocks": (
        [rule({"action": "deepen", "layers": 2}, max_layers=3)],
        None,
        "limits.max_layers: is 3, it would have 4, so that deepen is never done",
    ),
    "no room for channels": (
        [rule({"action": "widen", "target": "dim"}, max_dim=16)],
        None,
        "limits.max_dim: is 16, it would have 24, so that widen is never done",
    ),
    "blocks": (
        [rule({"action": "widen", "blocks": ["b0", "b3"]})],
        None,
        "do.blocks[1]: got 'b3', but the model has the blocks b0, b1",
    ),
    "experts": ([rule("prune_experts")], None, "do: prune_experts has nothing to act on: there is no mixture"),
    "experts to add": ([rule("add_experts")], None, "do: add_experts has nothing to act on: there is no mixture"),
    "experts to cross": ([rule("cross_experts")], None, "do: cross_experts has nothing to act on: there is no mixture"),
    "experts to merge": ([rule("merge_experts")], None, "do: merge_experts has nothing to act on: there is no mixture"),
    "usage": ([rule("widen", USAGE)], None, "when: never fires: it watches experts, but the model has no mixture"),
    "usage among all": (
        [rule("widen", {"trigger": "all", "of": [STEP, USAGE]})],
        None,
        "when.of[1]: never fires: it watches experts",
    ),
    "usage among most": (
        [rule("widen", {"trigger": "majority", "of": [STEP, USAGE, USAGE]})],
        None,
        "when.of[2]: never fires: it watches experts",
    ),
    "nothing dense": (
        [rule("to_moe")],
        (ATTN, MIXED),
        "do: to_moe has nothing to act on: the model has no dense feed-",
    ),
    "a block that is not dense": (
        [rule({"action": "to_moe", "blocks": ["b0"]})],
        (ATTN, DENSE),
        "do: to_moe has nothing to act on: b0 has no dense feed-forward layer",
    ),
    "tokens": (
        [rule({"action": "grow_vocabulary", "tokens": 37})],
        None,
        "do.tokens: is 37, not above the 37 tokens that there are",
    ),
    "the last block": ([rule("drop_layer")], (DENSE,), "do: drop_layer has nothing to drop: one block is always kept"),
    "no heads": (
        [rule({"action": "widen", "target": "heads"})],
        (DENSE,),
        "do.target: is heads, of which widen can make",
    ),
    "no narrower": (
        [rule("narrow")],
        ({"ffn": {"kind": "dense", "hidden": 1}},),
        "do.target: is ffn, of which narrow can",
    ),
    "enough experts": (
        [rule({"action": "prune_experts", "min_experts": 4})],
        (MIXED,),
        "do.min_experts: is 4, and no mixture has more than 4 experts, nor does any rule add enough",
    ),
    "enough experts, made on the way": (
        [rule({"action": "to_moe", "n_experts": 4}), rule({"action": "merge_experts", "min_experts": 4})],
        None,
        "growth[1].do",
    ),
    "too many experts": (
        [rule({"action": "split_experts", "max_experts": 4})],
        (MIXED,),
        "do.max_experts: is 4, and every mixture has 4 experts or more",
    ),
    "split and let go": (
        [
            rule("split_experts", {**USAGE, "split_above": 0.5, "prune_below": 0.1}),
            rule("prune_experts", {**USAGE, "split_above": 1.5, "prune_below": 0.75}),
        ],
        (MIXED,),
        "growth[1].when: of 4 experts, one used between 0.125 and 0.188 is split by rule0 and let go by rule1",
    ),
    "wider and narrower": ([rule(), rule("narrow")], None, "growth[1].when: narrow undoes what rule0 does (widen)"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_can_never_be_is_refused_with_its_place(what: str) -> None:
    growth, blocks, message = REFUSED[what]
    found = said(blueprint(*growth, blocks=blocks or (ATTN | DENSE, DENSE)))
    assert message in found
    assert all(line.startswith("model.growth[") for line in found.splitlines())
    assert len(found.splitlines()) == 1 + (what == "usage among most")


FINE: dict[str, tuple[list[dict[str, Any]], Any]] = {
    "limits that leave room": ([rule(max_params=10**6, max_layers=9), rule("deepen", max_layers=3)], None),
    "experts of a rule": ([rule("prune_experts", USAGE), rule("to_moe")], None),
    "experts that are added": (
        [rule({"action": "prune_experts", "min_experts": 6}), rule({"action": "add_experts", "count": 1})],
        (MIXED,),
    ),
    "blocks that are added": ([rule("drop_layer", {"trigger": "plateau"}), rule("deepen")], (DENSE,)),
    "a limit that shrinking leaves": (
        [rule({"action": "deepen"}, max_layers=2), rule("drop_layer", {"trigger": "plateau"})],
        None,
    ),
    "one of any": ([rule("widen", {"trigger": "any", "of": [STEP, USAGE]})], None),
    "two of three": ([rule("widen", {"trigger": "majority", "of": [STEP, {"trigger": "plateau"}, USAGE]})], None),
    "split and prune by the defaults": ([rule("split_experts", USAGE), rule("prune_experts", USAGE)], (MIXED,)),
    "opposite by hand": ([rule("widen", {"trigger": "manual"}), rule("narrow", {"trigger": "manual"})], None),
    "a new layer for the least used": ([rule("drop_layer"), rule("deepen")], None),
    "opposite in other blocks": (
        [rule({"action": "widen", "blocks": ["b0"]}), rule({"action": "narrow", "blocks": ["b1"]})],
        None,
    ),
    "opposite targets": ([rule(), rule({"action": "narrow", "target": "heads"})], None),
}


@pytest.mark.parametrize("what", FINE)
def test_what_may_be_is_not_refused(what: str) -> None:
    growth, blocks = FINE[what]
    assert said(blueprint(*growth, blocks=blocks or (ATTN | DENSE, DENSE))) == ""


LATE: list[tuple[dict[str, Any], str]] = [
    ({"trigger": "step", "at": 101}, "when: never fires: it waits for 101 steps, but there are 100 in all"),
    ({"trigger": "step", "every": 101}, "when: never fires: it waits for 101 steps"),
    ({"trigger": "tokens", "at": 6401}, "when: never fires: it waits for 6,401 tokens, but there are 6,400 in all"),
    ({"trigger": "plateau", "window": 200}, "when: never fires: it waits for 200 steps"),
    (
        {"trigger": "all", "of": [STEP, {"trigger": "step", "at": 900}]},
        "when.of[1]: never fires: it waits for 900 steps",
    ),
]


@pytest.mark.parametrize(("when", "message"), LATE)
def test_a_trigger_beyond_the_end_is_refused(when: dict[str, Any], message: str) -> None:
    assert message in said(blueprint(rule("widen", when)), 100, 6400)
    assert said(blueprint(rule("widen", when)), 1000, 64_000) == said(blueprint(rule("widen", when))) == ""


def test_one_training_that_may_be_made_longer_needs_one_rule_that_it_comes_to() -> None:
    both = blueprint(rule("widen", {"trigger": "step", "at": 50}), rule("deepen", {"trigger": "step", "at": 900}))
    assert [(remark.loc[2], remark.refused) for remark in unheard(both, 100, 10**9)] == [(1, False)]
    assert [(remark.loc[2], remark.refused) for remark in unheard(both, 10, 10**9)] == [(0, True), (1, True)]
    assert [remark.refused for remark in unheard(blueprint(rule("widen", {"trigger": "plateau"})), 10, 99)] == [False]
    assert unheard(blueprint(), 1, 1) == []


def test_a_file_that_says_nothing_of_a_search_is_only_told_of_late_rules(tmp_path: Path) -> None:
    file = tmp_path / "f.yaml"
    file.write_text(FILE.format(at=10**6, action="widen", weights="parent").partition("evolution")[0])
    found = validated(str(file))
    assert found.said.startswith("ok")
    assert [note for note in found.notes if "never fires: it waits for 1,000,000 steps" in note]


def test_knobs_without_effect_are_told_and_not_refused() -> None:
    drop = rule({"action": "drop_layer", "warmup": 9}, max_dim=64)
    prune = rule("prune_experts", {**USAGE, "split_above": 2.0})
    any_of = rule("widen", {"trigger": "any", "of": [STEP, {"trigger": "step", "at": 900}]})
    told = check_growth(blueprint(drop, prune, any_of, rule(), rule(), blocks=(MIXED, DENSE)), 100)
    found = {".".join(map(str, remark.loc[2:])): remark.said for remark in told}
    assert found == {
        "0.do.warmup": "has no effect: drop_layer adds no parameters",
        "0.limits.max_dim": "has no effect: drop_layer changes nothing that it limits",
        "1.when.split_above": "has no effect with action prune_experts",
        "2.when.of.1": "never fires: it waits for 900 steps, but there are 100 in all",
        "4": "says what rule3 says, so that both act at once",
    }


def test_a_model_that_has_grown_to_its_limit_may_train_on() -> None:
    grown = blueprint(rule("deepen", max_layers=2), rule(max_layers=1))
    assert [remark.refused for remark in growth_remarks(grown, 64, begun=True)].count(True) == 0
    assert said(grown).count("\n") == 1


FILE = """\
model:
  emb: {{dim: 16}}
  blocks:
    - ffn: {{kind: dense, hidden: 32}}
  growth:
    - when: {{trigger: step, at: {at}}}
      do: {{action: {action}}}
data: {{seq_len: 32, batch_size: 4, shards: [{{source: stdlib-code}}]}}
evolution: {{rung1_tokens: 1280, rung2_tokens: 0, generations: 2, weight_inheritance: {weights}}}
"""


def test_validate_tells_line_and_column_and_ends_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "f.yaml"
    file.write_text(FILE.format(at=5, action="prune_experts", weights="parent"))
    with pytest.raises(SystemExit) as end:
        main(["validate", str(file)])
    assert end.value.code == 2
    assert f"{file}:7:7 model.growth[0].do: prune_experts has nothing to act on" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("at", "weights", "fine"), [(30, "parent", True), (31, "parent", False), (11, "scratch", False)]
)
def test_in_a_search_the_longest_lineage_counts(at: int, weights: str, fine: bool, tmp_path: Path) -> None:
    file = tmp_path / "f.yaml"
    file.write_text(FILE.format(at=at, action="widen", weights=weights))
    if fine:
        assert validated(str(file)).said.startswith("ok")
    else:
        with pytest.raises(InputError, match=r"f.yaml:6:7 model.growth\[0\].when: never fires: it waits for"):
            validated(str(file))
