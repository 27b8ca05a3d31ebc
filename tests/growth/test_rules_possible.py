"""What cannot be meant in growth rules is refused with its place, and only that."""

from pathlib import Path
from typing import Any

import pytest

from morphogen.blueprint.diff import digest
from morphogen.blueprint.growth import of_blocks
from morphogen.blueprint.schema import Blueprint
from morphogen.checks import validated
from morphogen.cli import main
from morphogen.errors import InputError
from morphogen.growth.rules import growth_remarks, late, unheard
from morphogen.knobs import Remark
from morphogen.reading import dotted

DENSE = {"ffn": {"kind": "dense", "hidden": 32}}
MIXED = {"ffn": {"kind": "moe", "hidden": 16, "n_experts": 4, "k": 2}}
ATTN = {"attn": {"kind": "MHA", "heads": 2, "head_dim": 8}}
FULL: dict[str, Any] = {"ffn": {"kind": "moe", "hidden": 16, "n_experts": 2, "k": 2}}
STEP = {"trigger": "step", "at": 8}
PPL = {"trigger": "perplexity"}
USED = {"trigger": "utilization"}
USAGE = {"trigger": "expert_usage"}


def rule(do: dict[str, Any] | str = "widen", when: dict[str, Any] | None = None, **limits: Any) -> dict[str, Any]:
    return {"when": when or STEP, "do": {"action": do} if isinstance(do, str) else do, "limits": limits}


def blueprint(*growth: dict[str, Any], blocks: Any = (ATTN | DENSE, DENSE)) -> Blueprint:
    return Blueprint.model_validate({"emb": {"dim": 16, "vocab": 37}, "blocks": blocks, "growth": growth})


def remarks(model: Blueprint, steps: int | None = None, tokens: int = 10**9) -> list[Remark]:
    """What is odd about its rules, in a training of so many steps, if that is known."""
    return [*growth_remarks(model, 256), *(late(model, steps, tokens) if steps is not None else ())]


def said(model: Blueprint, steps: int | None = None, tokens: int = 10**9) -> str:
    """What is refused of it."""
    return "\n".join(f"{dotted(it.loc)}: {it.said}" for it in remarks(model, steps, tokens) if it.refused)


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
    "split and merged": (
        [
            rule("merge_experts", {**USAGE, "split_above": 1.5, "prune_below": 0.75}),
            rule("split_experts", {**USAGE, "split_above": 0.5, "prune_below": 0.1}),
        ],
        (MIXED,),
        "growth[1].when: of 4 experts, one used between 0.125 and 0.188 is split by rule1 and let go by rule0",
    ),
    "experts that all run": (
        [rule("split_experts", USAGE)],
        (FULL,),
        "when: never fires: it waits for a usage above 0.75, but each token runs 2 of 2 experts, so that none is used",
    ),
    "experts that all run, to be let go": (
        [rule({"action": "cross_experts"}, USAGE)],
        (FULL,),
        "when: never fires: it waits for a usage below 0.125, but each token runs all of the 2 experts, which are used",
    ),
    "a share that no expert can have": (
        [rule("split_experts", {**USAGE, "relative": False, "split_above": 0.5})],
        (MIXED,),
        "when: never fires: it waits for a usage above 0.5, but each token runs 2 of 4 experts",
    ),
    "a share of experts of a rule": (
        [rule({"action": "to_moe", "n_experts": 3, "k": 3}), rule("widen", USAGE)],
        None,
        "growth[1].when: never fires: it waits for a usage above 0.5, but each token runs 3 of 3 experts",
    ),
    "bounds that exclude each other": (
        [rule("widen", {"trigger": "all", "of": [{**PPL, "above": 9}, {**PPL, "below": 9}]})],
        None,
        "when.of[1]: never fires with number 0: no mean is below 9 and above 9 at once",
    ),
    "as many experts as run": (
        [rule({"action": "prune_experts", "min_experts": 2})],
        ({"ffn": {"kind": "moe", "hidden": 16, "n_experts": 4, "k": 4}},),
        "do: prune_experts can do nothing in the model: as many experts stay as each token runs",
    ),
    "experts of other kinds alone to cross": (
        [rule("cross_experts")],
        ({"ffn": {**FULL["ffn"], "n_experts": 2, "k": 1, "experts": [{"kind": "dense", "hidden": 8}]}},),
        "do: cross_experts can do nothing in the model",
    ),
    "a block without experts": (
        [rule({"action": "split_experts", "blocks": ["b1"]})],
        (MIXED, DENSE),
        "do: split_experts has nothing to act on: b1 has no mixture of experts",
    ),
    "before there is anything": (
        [rule("to_moe", {"trigger": "step", "at": 20}), rule("split_experts")],
        None,
        "growth[1].when: fires once, at step 8, when there is nothing for it to act on: no rule acts before step 20",
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
        [rule("deepen", {"trigger": "step", "every": 8}, max_layers=2), rule("drop_layer", {"trigger": "plateau"})],
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
    "experts that all run, of which there will be more": (
        [rule("split_experts", USAGE), rule("add_experts")],
        (FULL,),
    ),
    "a place that twins share": (
        [rule("prune_experts", USAGE)],
        ({"ffn": {**FULL["ffn"], "n_experts": 3, "twins": [0]}},),
    ),
    "the only expert that may go": (
        [rule("prune_experts")],
        ({"ffn": {**FULL["ffn"], "n_experts": 3, "twins": [1]}},),
    ),
    "bounds of other windows": (
        [rule("widen", {"trigger": "all", "of": [{**PPL, "above": 9}, {**PPL, "below": 9, "window": 9}]})],
        None,
    ),
    "one bound of two": ([rule("widen", {"trigger": "any", "of": [{**PPL, "above": 9}, {**PPL, "below": 9}]})], None),
    "blocks of the whole stream": ([rule({"action": "widen", "target": "dim", "blocks": ["b0"]})], None),
    "when there is something": ([rule("to_moe"), rule("split_experts", {"trigger": "step", "at": 9})], None),
    "opposite targets": ([rule(), rule({"action": "narrow", "target": "heads"})], None),
}


@pytest.mark.parametrize("what", FINE)
def test_what_may_be_is_not_refused(what: str) -> None:
    growth, blocks = FINE[what]
    assert said(blueprint(*growth, blocks=blocks or (ATTN | DENSE, DENSE))) == ""


#: Trigger, what it waits for in steps, in words.
LATE: list[tuple[dict[str, Any], int, str]] = [
    ({"trigger": "step", "at": 101}, 101, "when: never fires: it waits for 101 steps, but there are 100 in all"),
    ({"trigger": "step", "every": 101}, 101, "when: never fires: it waits for 101 steps"),
    ({"trigger": "step", "at": 100}, 100, "there are 100 in all, and nothing grows after the last step"),
    (
        {"trigger": "tokens", "at": 6401},
        101,
        "when: never fires: it waits for 6,401 tokens, but there are 6,400 in all",
    ),
    ({"trigger": "tokens", "every": 6337}, 100, "it waits for 6,337 tokens, but there are 6,400 in all, and nothing"),
    ({"trigger": "plateau", "window": 200}, 200, "when: never fires: it waits for 200 steps"),
    ({"trigger": "gradient_norm", "above": 1.0, "window": 200}, 200, "when: never fires: it waits for 200 steps"),
    ({**PPL, "above": 1.0, "window": 200}, 200, "when: never fires: it waits for 200 steps"),
    ({"trigger": "loss_spike", "window": 200}, 201, "when: never fires: it waits for 201 steps"),
    ({**USED, "measure": "gradient", "window": 209}, 207, "when: never fires: it waits for 207 steps"),
    ({**USED, "window": 200}, 200, "when: never fires: it waits for 200 steps"),
    ({"trigger": "expert_usage", "interval": 200}, 200, "when: never fires: it waits for 200 steps"),
    ({"trigger": "any", "of": [{"trigger": "step", "at": 900}] * 2}, 900, "when.of[1]: never fires: it waits for 900"),
    (
        {"trigger": "all", "of": [STEP, {"trigger": "step", "at": 900}]},
        900,
        "when.of[1]: never fires: it waits for 900 steps",
    ),
]


@pytest.mark.parametrize(("when", "steps", "message"), LATE)
def test_a_trigger_beyond_the_end_is_refused(when: dict[str, Any], steps: int, message: str) -> None:
    model = blueprint(rule("widen", when), blocks=(ATTN | DENSE, MIXED))
    assert message in said(model, 100, 6400)
    assert said(model, steps, 64 * steps) != ""
    assert said(model, steps + 1, 64 * (steps + 1)) == said(model) == ""


def test_of_little_used_experts_probation_counts_and_of_those_that_come_their_age_too() -> None:
    usage = {**USAGE, "interval": 20, "probation": 70, "min_age": 30, "window": 10}
    prune, to_moe = rule("prune_experts", usage), rule("to_moe", {"trigger": "step", "at": 50})
    for growth, blocks, waits in (
        ((prune,), (MIXED,), 80),
        ((rule("split_experts", {**USAGE, "interval": 20, "window": 10}),), (MIXED,), 20),
        ((prune, to_moe), (DENSE,), 120),
        ((rule("split_experts", {**usage, "probation": 0}), to_moe), (DENSE,), 80),
        ((rule("split_experts", {**usage, "probation": 0}, cooldown_steps=90), to_moe), (DENSE,), 140),
    ):
        model = blueprint(*growth, blocks=blocks)
        assert f"when: never fires: it waits for {waits} steps" in said(model, waits)
        assert said(model, waits + 1) == ""


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
    wide = rule({"action": "widen", "target": "dim", "blocks": ["b0"]}, {"trigger": "step", "at": 9}, max_layers=9)
    split = rule("split_experts", {"trigger": "all", "of": [STEP, {**USAGE, "prune_below": 0.1, "probation": 9}]})
    told = remarks(blueprint(drop, prune, any_of, rule(), rule(), wide, split, blocks=(MIXED, DENSE)), 1000)
    assert not [remark for remark in told if remark.refused]
    told += remarks(blueprint(any_of), 100)
    assert {".".join(map(str, remark.loc[2:])): remark.said for remark in told} == {
        "0.do.warmup": "has no effect: drop_layer adds no parameters",
        "0.limits.max_dim": "has no effect: drop_layer changes nothing that it limits",
        "1.when.split_above": "has no effect: prune_experts is about experts that are used too little",
        "0.when.of.1": "never fires: it waits for 900 steps, but there are 100 in all",
        "4": "says what rule3 says, so that both act at once",
        "5.do.blocks": "has no effect: target dim is the width of all blocks",
        "5.limits.max_layers": "has no effect: widen changes nothing that it limits",
        "6.when.of.1.prune_below": "has no effect: split_experts is about experts that are used too much",
        "6.when.of.1.probation": "has no effect: split_experts is about experts that are used too much",
    }


def test_what_has_no_effect_makes_no_other_architecture() -> None:
    def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
        return digest(blueprint(one, blocks=(MIXED, DENSE))) == digest(blueprint(other, blocks=(MIXED, DENSE)))

    assert same(rule("deepen"), rule("deepen", max_dim=64))
    assert same(rule("split_experts", USAGE), rule("split_experts", {**USAGE, "prune_below": 0.1, "probation": 9}))
    dim = {"action": "widen", "target": "dim"}
    assert same(rule(dim), rule({**dim, "blocks": ["b0"]}))
    assert not same(rule(), rule({"action": "widen", "blocks": ["b0"]}))
    assert not same(rule("deepen"), rule("deepen", max_layers=9))
    assert not same(rule("prune_experts", USAGE), rule("prune_experts", {**USAGE, "probation": 9}))


def test_a_rule_for_the_whole_model_survives_blocks_that_it_names() -> None:
    dim = {"action": "widen", "target": "dim", "blocks": ["b0"]}
    (left,) = of_blocks(blueprint(rule(dim), rule({"action": "widen", "blocks": ["b0"]})).growth, {"b1"})
    assert (left.id, left.blocks()) == ("rule0", ())


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
    ("at", "weights", "fine"), [(29, "parent", True), (30, "parent", False), (10, "scratch", False)]
)
def test_in_a_search_the_longest_lineage_counts(at: int, weights: str, fine: bool, tmp_path: Path) -> None:
    file = tmp_path / "f.yaml"
    file.write_text(FILE.format(at=at, action="widen", weights=weights))
    if fine:
        assert validated(str(file)).said.startswith("ok")
    else:
        with pytest.raises(InputError, match=r"f.yaml:6:7 model.growth\[0\].when: never fires: it waits for"):
            validated(str(file))


def test_nobody_asks_by_hand_in_a_search(tmp_path: Path) -> None:
    file = tmp_path / "f.yaml"
    text = FILE.format(at=5, action="widen", weights="parent").replace("trigger: step, at: 5", "trigger: manual")
    for written, count in ((text, 1), (text.partition("evolution")[0], 0)):
        file.write_text(written)
        found = validated(str(file))
        assert found.said.startswith("ok")
        assert (
            len([note for note in found.notes if "f.yaml:6:7" in note and "nobody asks in a search" in note]) == count
        )


def test_of_a_training_without_steps_nothing_is_said_to_come_too_late() -> None:
    assert not list(late(blueprint(rule(), rule("deepen", {"trigger": "plateau"})), 0, 0))
