"""Recorded edits lead from the root to every candidate of a long lineage, crossovers included."""

import pytest
import simulated

from morphogen.blueprint.diff import apply, digest
from morphogen.blueprint.schema import Blueprint
from morphogen.store.lineage import Lineage, build_lineage


@pytest.mark.parametrize(("generations", "count"), [(7, 60), pytest.param(24, 200, marks=pytest.mark.slow)])
def test_edits_on_record_lead_from_the_root_to_every_node_of_a_lineage(generations, count):
    search = simulated.engine(
        seed=11, generations=generations, population=10, topk_keep=6, mutation_steps=3, crossover_prob=0.3
    )
    simulated.run(search)
    text = build_lineage("demo", search.candidates, search.reports, search.frontier_ids).to_json()
    lineage = Lineage.model_validate_json(text)
    assert len(lineage.nodes) >= count
    edges = {}
    for edge in lineage.edges:
        edges.setdefault(edge.child, []).append(edge)
    rebuilt = {lineage.nodes[0].id: search.experiment.model}
    crossed = deepest = 0
    depth = {lineage.nodes[0].id: 0}
    for node in lineage.nodes[1:]:  # by index, so that parents come first
        parents = [edge.parent for edge in edges[node.id]]
        edits = edges[node.id][0].edits
        here = rebuilt[parents[0]]
        for edit in edits:
            if edit.sources:
                here = of_both(here, rebuilt[parents[1]], edit)
                crossed += 1
            else:
                here = apply(here, edit.changes)
        rebuilt[node.id] = here
        depth[node.id] = 1 + max(depth[parent] for parent in parents)
        deepest = max(deepest, depth[node.id])
    assert rebuilt == {id: Blueprint.model_validate(each.blueprint) for id, each in search.candidates.items()}
    assert len({digest(blueprint) for blueprint in rebuilt.values()}) == len(rebuilt)
    assert crossed >= count // 10
    assert deepest >= generations // 3


def of_both(first, second, edit):
    """The child of a crossover, its blocks fetched from the parents that the edit names."""
    homes = [{block.id: block for block in parent.blocks} for parent in (first, second)]
    child = apply(first, edit.changes)
    assert set(edit.sources.values()) == {0, 1}
    assert child == first.with_blocks(homes[edit.sources[block.id]][block.id] for block in child.blocks)
    return child
