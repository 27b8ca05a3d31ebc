"""What is left of an architecture without one of its parts, or without one edit."""

from typing import Any

import pytest

from morphogen.analysis.ablations import ABLATIONS, Surrounding, find_ablation
from morphogen.analysis.undoing import chosen, lineage_edits, undone
from morphogen.blueprint.diff import apply, changes, digest
from morphogen.blueprint.schema import Blueprint
from morphogen.candidate import Candidate, Change, Edit
from morphogen.errors import InputError
from morphogen.experiment import Priors, Train
from morphogen.parts.attention.sparsity import Sparse, seen_pairs
from morphogen.search.space import Design

AROUND = Surrounding(64, Priors())
MLP: dict[str, Any] = {"kind": "dense", "hidden": 32}
GQA: dict[str, Any] = {"kind": "GQA", "heads": 4, "head_dim": 8, "kv_groups": 2}
WHOLE: dict[str, Any] = {
    "emb": {"dim": 16, "vocab": 64},
    "blocks": [
        {
            "attn": {**GQA, "sparsity": "local_global", "sliding_window": 8, "rope_theta": 500.0},
            "extras": [
                {"kind": "retro", "memory_tokens": 4, "stride": 4},
                {"kind": "gated", "targets": ["attn", "extra"]},
            ],
            "ffn": {"kind": "moe", "hidden": 16, "n_experts": 4, "k": 2, "shared": 1, "twins": [0],
                    "experts": [{"kind": "mamba2", "expand": 1.0, "head_dim": 8}]},
        },
        {"ssm": {"kind": "mamba2", "head_dim": 8}},
        {"attn": {"kind": "MQA", "heads": 2, "head_dim": 8, "selector": "dsa"}, "ffn": MLP},
        {"attn": {**GQA, "sparsity": "dilated", "dilation": 4}, "extras": [{"kind": "short_conv"}]},
    ],
    "recurrences": [{"start": 1, "end": 3}],
}  # fmt: skip
PLAIN: dict[str, Any] = {
    "emb": {"dim": 16, "vocab": 64},
    "blocks": [{"attn": {"kind": "MHA", "heads": 2, "head_dim": 8}, "ffn": MLP}],
}


def ablated(name: str, whole: dict[str, Any] = WHOLE, around: Surrounding = AROUND) -> Blueprint | None:
    return ABLATIONS[name].act(Blueprint.model_validate(whole), around)


def labels(blueprint: Blueprint | None) -> list[list[str]]:
    assert blueprint is not None
    return [[part.label for _, _, part in block.parts()] for block in blueprint.blocks]


def test_what_is_taken_out_is_gone_and_what_acted_on_it_too() -> None:
    assert labels(ablated("retro_off")) == [
        ["GQA", "gated", "moe"],
        ["mamba2"],
        ["MQA", "dense"],
        ["GQA", "short_conv"],
    ]
    gated = ablated("retro_off").blocks[0].extras[0]  # type: ignore[union-attr]
    assert dict(gated)["targets"] == ("attn",)
    assert ablated("memory_off") == ablated("retro_off")
    assert labels(ablated("extras_off")) == [["GQA", "moe"], ["mamba2"], ["MQA", "dense"], ["GQA"]]


def test_without_state_spaces_a_block_of_nothing_else_goes_and_an_expert_becomes_a_plain_one() -> None:
    found = ablated("ssm_off")
    assert found is not None
    assert [block.id for block in found.blocks] == ["b0", "b2", "b3"]
    assert [(loop.start, loop.end) for loop in found.recurrences] == [(1, 2)]
    moe = dict(found.blocks[0].ffn or {})
    assert (moe["n_experts"], moe["experts"], moe["twins"]) == (4, (), (0,))


def test_a_mixture_gives_way_to_a_layer_of_as_many_units_as_a_token_runs() -> None:
    found = ablated("moe_to_dense")
    assert found is not None
    assert dict(found.blocks[0].ffn or {})["hidden"] == 2 * 16 + 16


def test_a_window_stands_in_for_other_patterns_and_reads_as_many_keys_where_they_have_none() -> None:
    found = ablated("sparsity_to_sliding")
    assert found is not None
    first, _, _, last = (block.attn for block in found.blocks)
    assert isinstance(first, Sparse)
    assert isinstance(last, Sparse)
    assert (first.sparsity, first.sliding_window, last.sparsity) == ("sliding", 8, "sliding")
    before = Blueprint.model_validate(WHOLE).blocks[3].attn
    assert isinstance(before, Sparse)
    smaller = last.model_copy(update={"sliding_window": last.sliding_window - 1})
    assert seen_pairs(smaller.pattern, 64) < seen_pairs(before.pattern, 64) <= seen_pairs(last.pattern, 64)


def test_fields_go_back_to_what_is_plain() -> None:
    dense = ablated("kv_groups_to_dense")
    assert dense is not None
    assert [(dict(b.attn)["kind"], dict(b.attn)["kv_groups"]) for b in dense.blocks if b.attn] == [
        ("GQA", 1),
        ("MHA", 1),
        ("GQA", 1),
    ]
    open_ = ablated("sparsity_off")
    assert open_ is not None
    assert {dict(block.attn)["sparsity"] for block in open_.blocks if block.attn} == {"none"}
    turned = ablated("rope_reset", around=Surrounding(64, Priors(rope_theta_default=777.0)))
    assert turned is not None
    assert {dict(block.attn)["rope_theta"] for block in turned.blocks if block.attn} == {777.0}
    chosen_by_none = ablated("selector_off")
    assert chosen_by_none is not None
    assert {dict(block.attn)["selector"] for block in chosen_by_none.blocks if block.attn} == {"none"}
    assert ablated("norm_swap").norm == "layernorm"  # type: ignore[union-attr]
    assert ablated("recurrence_off").recurrences == ()  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ABLATIONS)
def test_what_has_nothing_of_the_sort_is_left_as_it_is(name: str) -> None:
    found = ablated(name, PLAIN)
    assert (found is None) == (name != "norm_swap")
    assert ABLATIONS[name].absent or name == "norm_swap"


@pytest.mark.parametrize("name", ABLATIONS)
def test_an_ablation_leaves_nothing_of_its_sort(name: str) -> None:
    found = ablated(name)
    if name == "foreign_off":
        assert found is None
        return
    assert found is not None
    if name != "norm_swap":
        assert ABLATIONS[name].act(found, AROUND) in (None, found)


def test_nothing_is_left_of_a_model_that_is_all_memory() -> None:
    memory = {"emb": {"dim": 16, "vocab": 64}, "blocks": [{"extras": [{"kind": "retro"}]}]}
    assert ablated("memory_off", memory) is None


def test_names_of_the_older_system_are_understood_and_others_named() -> None:
    assert find_ablation("remove_ssm")[0] == "ssm_off"
    with pytest.raises(InputError, match="did you mean 'retro_off'"):
        find_ablation("retro_of")


# ------------------------------------------------------------------------------------------------------------- edits

ROOT = Blueprint.model_validate({**PLAIN, "blocks": [PLAIN["blocks"][0], {"ffn": MLP}]})


def grown(*steps: tuple[str, Any]) -> tuple[Blueprint, list[Edit]]:
    """The root through edits, each a change of its plain data."""
    here, edits = ROOT, list[Edit]()
    for operator, change in steps:
        data = here.to_json()
        change(data)
        after = Blueprint.model_validate(data)
        edits.append(Edit(operator=operator, target="model", preserves=False, changes=changes(here, after)))
        here = after
    return here, edits


def widen(data: Any) -> None:
    data["blocks"][1]["ffn"]["hidden"] = 48


def widen_again(data: Any) -> None:
    data["blocks"][1]["ffn"]["hidden"] = 64


def insert(data: Any) -> None:
    data["blocks"].insert(1, {"id": "g1", "ffn": MLP})


def drop_second(data: Any) -> None:
    data["blocks"] = [block for block in data["blocks"] if block["id"] != "b1"]


def swap(data: Any) -> None:
    data["blocks"].reverse()


def loop(data: Any) -> None:
    data["recurrences"] = [{"id": "r0", "start": 0, "end": 1}]


@pytest.mark.parametrize(
    "steps",
    [
        [("widen", widen), ("insert", insert), ("loop", loop)],
        [("insert", insert), ("widen", lambda data: data["blocks"][2]["ffn"].update(hidden=48))],
        [("swap", swap), ("norm", lambda data: data.update(norm="layernorm"))],
        [("insert", insert), ("swap", swap)],
        [("drop", drop_second), ("insert", insert)],
    ],
)
def test_an_edit_undone_leaves_all_the_others(steps: list[tuple[str, Any]]) -> None:
    last, edits = grown(*steps)
    for i, edit in enumerate(edits):
        found = undone(Design(last, Train()), edit).blueprint
        others, expected = [step for k, step in enumerate(steps) if k != i], None
        try:
            expected, _ = grown(*others)
        except (IndexError, KeyError):
            continue  # the steps of this test go by position
        if steps[i][0] == "insert" and any(name == "widen" for name, _ in others):
            continue
        assert digest(found) == digest(expected), edit.operator


def test_undoing_the_last_edit_gives_the_parent() -> None:
    for step in (("insert", insert), ("drop", drop_second), ("swap", swap), ("loop", loop), ("widen", widen)):
        last, (edit,) = grown(step)
        assert undone(Design(last, Train()), edit).blueprint == ROOT
        assert apply(ROOT, edit.changes) == last


def test_what_a_later_edit_changed_again_cannot_be_undone_alone() -> None:
    last, (first, second) = grown(("widen", widen), ("widen", widen_again))
    with pytest.raises(ValueError, match=r"blocks.b1.ffn.hidden was changed again later"):
        undone(Design(last, Train()), first)
    assert dict(undone(Design(last, Train()), second).blueprint.blocks[1].ffn or {})["hidden"] == 48
    last, (first, _) = grown(("widen", widen), ("drop", drop_second))
    with pytest.raises(ValueError, match="was taken away again later"):
        undone(Design(last, Train()), first)


def test_an_edit_of_training_is_undone_too() -> None:
    edit = Edit(
        operator="tune_lr", target="train", preserves=True, changes=(Change(path="train.lr", before=0.003, after=0.01),)
    )
    assert undone(Design(ROOT, Train(lr=0.01)), edit).train.lr == 0.003
    with pytest.raises(ValueError, match=r"train.lr was changed again later"):
        undone(Design(ROOT, Train(lr=0.02)), edit)


def test_edits_of_a_lineage_have_names_of_their_own() -> None:
    plain = ROOT.to_json()
    edit = Edit(operator="widen", target="model", preserves=True)
    candidates = {
        "root": Candidate(id="root", index=0, generation=0, blueprint=plain),
        "a": Candidate(id="a", index=1, generation=1, blueprint=plain, parents=("root",), edits=(edit, edit)),
        "b": Candidate(id="b", index=2, generation=1, blueprint=plain, parents=("root",), edits=(edit,)),
        "c": Candidate(id="c", index=3, generation=2, blueprint=plain, parents=("a",)),
    }
    found = lineage_edits(candidates, "c")
    assert [done.name for done in found] == ["undo:widen@a#1", "undo:widen@a#2"]
    assert len(chosen(found, "undo")) == len(chosen(found, "undo:widen")) == len(chosen(found, "undo:widen@a")) == 2
    assert len(chosen(found, "undo:widen@a#2")) == 1
    assert not chosen(found, "undo:narrow")


def test_a_layer_of_another_model_is_taken_out_by_its_kind_whatever_it_needs_to_be_run() -> None:
    foreign = {"kind": "foreign", "experts": [{"model": "/nowhere", "layer": 0}]}
    found = ablated("foreign_off", {**PLAIN, "blocks": [{**PLAIN["blocks"][0], "extras": [foreign]}]})
    assert found == Blueprint.model_validate(PLAIN)
