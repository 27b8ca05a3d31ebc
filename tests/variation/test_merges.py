"""Crossings that merge weights: what they draw, what they refuse, and a run of them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

import morphogen as mg
from morphogen.blueprint.schema import Blueprint
from morphogen.errors import InputError
from morphogen.inherit.descent import inherit
from morphogen.inherit.merging import NEED_BASE, Model, Settings, merge
from morphogen.network import initial_state
from morphogen.sections.evolution import Evolution
from morphogen.variation.crossover import crossover
from morphogen.variation.merging import MERGES
from tiny import write_config

BLOCK = {"attn": {"kind": "MHA", "heads": 2, "head_dim": 4}, "ffn": {"kind": "dense", "hidden": 12}}
FIRST = Blueprint.model_validate({"emb": {"dim": 8, "vocab": 30}, "blocks": [BLOCK, BLOCK]})
SECOND = Blueprint.model_validate(
    {"emb": {"dim": 8, "vocab": 30}, "blocks": [BLOCK, {**BLOCK, "ffn": {"kind": "dense", "hidden": 16}}]}
)
STRANGE = Blueprint.model_validate({"emb": {"dim": 8, "vocab": 30}, "blocks": [{**BLOCK, "id": "x"}]})


@pytest.mark.parametrize("name", sorted(MERGES))
def test_a_child_has_the_weights_that_its_edit_says(name: str) -> None:
    proposal = MERGES[name](FIRST, SECOND, np.random.default_rng(3))
    assert proposal is not None
    child, (edit,) = proposal
    assert (edit.operator, edit.preserves) == (name, False)
    how = edit.merging
    assert how is not None
    parents = [(FIRST, initial_state(FIRST, 1)), (SECOND, initial_state(SECOND, 2))]
    began = FIRST, initial_state(FIRST, 3)
    state, report = inherit(child, parents, edits=[edit], base=began)
    models, settings = [Model(*each) for each in parents], Settings(*list(dict(how).values())[1:])
    origin = Model(*began) if how.method in NEED_BASE else None
    wanted = merge(how.method, models, settings, origin, ids=[block.id for block in child.blocks])
    assert wanted.blueprint == child
    assert all(torch.equal(state[tensor], wanted.state[tensor]) for tensor in wanted.state)
    assert any(not torch.equal(state[tensor], parents[0][1].get(tensor, state[tensor] + 1)) for tensor in state)
    assert not report.exact
    assert report.notes == (f"weights of two parents, merged by {how.method}",)
    whole = {origin.gene: (origin.parent, origin.how) for origin in report.genes}
    if name == "merge_passthrough":
        assert child.blocks[2].origin == "b0"
        assert whole == {"stem": ("0", "whole"), **{b.id: (str(i // 2), "whole") for i, b in enumerate(child.blocks)}}
    else:
        assert child == FIRST
        assert set(whole.values()) == {("0", "merged")}


def test_what_is_stacked_twice_is_no_gene_that_anybody_else_has() -> None:
    rng = np.random.default_rng(0)
    made = [MERGES["merge_passthrough"](*pair, rng) for pair in ((FIRST, SECOND), (FIRST, SECOND), (SECOND, FIRST))]
    again = [block.id for proposal in made if proposal is not None for block in proposal.child.blocks[2:]]
    assert len(set(again)) == 6
    assert not {"b0", "b1"} & set(again)
    # the command names them after what they are
    models = [Model(each, initial_state(each, 0)) for each in (FIRST, SECOND)]
    named = merge("passthrough", models, Settings((1.0, 1.0))).blueprint
    assert [block.id for block in named.blocks] == ["b0", "b1", "b0_0", "b1_0"]


def test_differences_need_what_they_are_from() -> None:
    proposal = MERGES["merge_ties"](FIRST, SECOND, np.random.default_rng(0))
    assert proposal is not None
    parents = [(FIRST, initial_state(FIRST, 1)), (SECOND, initial_state(SECOND, 2))]
    with pytest.raises(InputError, match="merge_ties needs what the parents' weights began as"):
        inherit(FIRST, parents, edits=proposal.edits)


def test_what_cannot_be_merged_has_no_child() -> None:
    rng = np.random.default_rng(0)
    assert [name for name, make in MERGES.items() if make(FIRST, STRANGE, rng)] == ["merge_passthrough"]
    narrow = Blueprint.model_validate({"emb": {"dim": 4, "vocab": 30}, "blocks": [{**BLOCK, "id": "x"}]})
    assert not any(make(FIRST, narrow, rng) for make in MERGES.values())


def test_merges_are_drawn_only_where_they_have_a_weight() -> None:
    rng = np.random.default_rng(0)
    drawn = [crossover(FIRST, SECOND, rng) for _ in range(30)]
    assert not any(edit.merging for made in drawn if made is not None for edit in made.edits)
    weights = {"merge_slerp": 1.0, "merge_della": 1.0}
    names = {made.edits[0].operator for _ in range(30) if (made := crossover(FIRST, SECOND, rng, weights)) is not None}
    assert names == set(weights)
    with pytest.raises(ValidationError, match="no weights to merge with weight_inheritance 'scratch'"):
        Evolution(crossover="merge_slerp", weight_inheritance="scratch")


def test_a_run_breeds_by_merging_and_replays_itself(tmp_path: Path) -> None:
    said = "crossover_prob: 1.0, crossover: {merge_ties: 1.0, merge_slerp: 1.0}, "
    path = write_config(tmp_path, **{"evolution: {generations: 2,": f"evolution: {{{said}generations: 2,"})
    run = mg.evolve(mg.load(path), out=tmp_path / "run")
    merged = [edge for edge in run.lineage.edges if any(edit.merging for edit in edge.edits)]
    assert {edge.kind for edge in merged} == {"crossover"}
    children = {edge.child for edge in merged}
    assert {id.split("-")[0].split("+")[0] for id in children} <= {"merge_ties", "merge_slerp"}
    assert len(merged) == 2 * len(children) > 0
    assert {node.status for node in run.lineage.nodes if node.id in children} == {"trained"}
    more = mg.evolve(mg.load(path), out=tmp_path / "run", resume=True)
    assert more.lineage == run.lineage
