"""Crossover by gene id: where children's blocks come from."""

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from pydantic import ValidationError

from examples import up_to
from morphogen.blueprint.diff import apply, digest
from morphogen.blueprint.schema import Block, Blueprint
from morphogen.experiment import Evolution
from morphogen.inherit.plan import plan
from morphogen.parts.ffn.mlp import MLP
from morphogen.variation.crossover import CROSSOVERS, aligned_span, crossover, one_point, uniform
from morphogen.variation.operator import mutate
from strategies import blueprints, rngs


def of(genes, base, **model):
    """Feed-forward blocks with these genes, each of a size that tells gene and parent."""
    blocks = tuple(Block(id=gene, ffn=MLP(hidden=base + ord(gene))) for gene in genes)
    return Blueprint.model_validate({"emb": {"dim": 8, "vocab": 37}, "blocks": blocks, **model})


def mosaics(make, first, second, draws=60):
    """Every child seen, as text: capitals are blocks of the second parent."""
    found = set()
    for seed in range(draws):
        proposal = make(first, second, np.random.default_rng(seed))
        if proposal is not None:
            sources = proposal.edits[0].sources
            found.add("".join(b.id.upper() if sources[b.id] else b.id for b in proposal.child.blocks))
    return found


def test_one_point_cuts_at_shared_genes():
    assert mosaics(one_point, of("abc", 0), of("abc", 500)) == {"aBC", "abC"}


def test_aligned_span_takes_any_stretch_between_shared_genes():
    assert mosaics(aligned_span, of("abc", 0), of("abc", 500)) == {"Abc", "aBc", "abC", "ABc", "aBC"}


def test_genes_of_one_parent_alone_travel_with_their_stretch():
    assert mosaics(one_point, of("ab", 0), of("axyb", 500)) == {"aXYB", "aB"}
    assert mosaics(aligned_span, of("ab", 0), of("axyb", 500)) == {"Ab", "aB"}  # AXYB is the second parent
    assert mosaics(aligned_span, of("abc", 0), of("axyb", 500)) == {"Abc", "aBc", "AXYBc"}


def test_homology_is_by_id_whatever_the_position():
    assert mosaics(one_point, of("abc", 0), of("cab", 500)) == {"aB", "abC"}
    children = mosaics(aligned_span, of("abc", 0), of("cab", 500))
    assert "abC" in children
    assert all(len(set(child.lower())) == len(child) for child in children)


def test_the_model_fields_are_the_first_parents():
    first = of("ab", 0, name="one", norm="layernorm", head={"tie_embeddings": False})
    second = of("ab", 500, name="two", emb={"dim": 16, "vocab": 37})
    for name, make in CROSSOVERS.items():
        child, (edit,) = make(first, second, np.random.default_rng(0))
        assert (child.name, child.norm, child.emb, child.head) == (first.name, first.norm, first.emb, first.head)
        assert (edit.operator, edit.target, edit.preserves) == (f"crossover_{name}", "model", False)


def test_nothing_comes_of_strangers_or_twins():
    rng = np.random.default_rng(0)
    assert crossover(of("ab", 0), of("cd", 500), rng) is None
    assert crossover(of("ab", 0), of("ab", 0), rng) is None
    assert crossover(of("a", 0), of("a", 500), rng) is None


def test_a_child_that_happens_to_be_a_parent_is_not_produced():
    first, second = of("ab", 0), of("ab", 0).evolve(blocks=(of("a", 0).blocks[0], of("b", 500).blocks[0]))
    assert mosaics(crossover, first, second) == set()


@pytest.mark.parametrize("name", sorted(CROSSOVERS))
@given(root=blueprints(min_blocks=2), rng=rngs())
@settings(max_examples=up_to(40), deadline=None, suppress_health_check=list(HealthCheck))
def test_children_are_mosaics_of_whole_blocks(name, root, rng):
    first, second = mutate(root, rng, 4, {}).child, mutate(root, rng, 4, {}).child
    before = first.to_json(), second.to_json()
    proposal = CROSSOVERS[name](first, second, rng)
    assert (first.to_json(), second.to_json()) == before
    assume(proposal is not None)
    child, (edit,) = proposal
    parents = [{block.id: block for block in parent.blocks} for parent in (first, second)]
    assert set(edit.sources) == {block.id for block in child.blocks}
    assert set(edit.sources.values()) == {0, 1}
    assert all(parents[edit.sources[block.id]][block.id] == block for block in child.blocks)
    assert digest(child) not in (digest(first), digest(second))
    assert Blueprint.model_validate(child.to_json()) == child
    assert apply(first, edit.changes) == child
    assert not plan(child, [first, second], edit.sources).exact


@given(root=blueprints(min_blocks=2), rng=rngs())
@settings(max_examples=up_to(40), deadline=None, suppress_health_check=list(HealthCheck))
def test_an_aligned_span_is_contiguous_in_the_child(root, rng):
    proposal = aligned_span(mutate(root, rng, 3, {}).child, mutate(root, rng, 3, {}).child, rng)
    assume(proposal is not None)
    child, (edit,) = proposal
    sources = "".join(str(edit.sources[block.id]) for block in child.blocks)
    assert sources.strip("0").strip("1") == ""


def test_uniform_takes_each_gene_by_itself():
    assert mosaics(uniform, of("abc", 0), of("abc", 500)) == {"Abc", "aBc", "abC", "ABc", "aBC", "AbC"}


def test_uniform_leaves_out_what_the_chosen_parent_has_not_and_places_its_own_genes_after_what_they_follow():
    found = mosaics(uniform, of("ab", 0), of("xayb", 500), draws=400)
    assert {"aB", "Ab", "XaYb", "aYb", "Xab", "XaYB", "XAYb"} <= found
    assert {child for child in found if not set("ab") <= set(child.lower())} == set()
    found = mosaics(uniform, of("axb", 0), of("ab", 500), draws=400)
    assert found == {"AxB", "axB", "Axb", "aB", "Ab"}


def test_all_crossovers_are_used_by_their_weights():
    rng = np.random.default_rng(0)
    first, second = of("abcd", 0), of("abcd", 500)
    names = [crossover(first, second, rng).edits[0].operator for _ in range(90)]
    assert min(names.count(f"crossover_{name}") for name in CROSSOVERS) > 15
    weights = {"one_point": 1.0, "uniform": 9.0}
    names = [crossover(first, second, rng, weights).edits[0].operator for _ in range(60)]
    assert set(names) == {"crossover_one_point", "crossover_uniform"}
    assert names.count("crossover_uniform") > 40


@pytest.mark.parametrize(
    ("given_as", "message"),
    [({"two_point": 1.0}, "one_point"), ({"uniform": -1.0}, "greater than"), ({"uniform": 0.0}, "crossover_prob to 0")],
)
def test_bad_ways_to_cross_are_refused(given_as, message):
    with pytest.raises(ValidationError, match=message):
        Evolution.model_validate({"crossover": given_as})


def test_one_name_means_that_way_alone():
    assert Evolution.model_validate({"crossover": "uniform"}).crossover == {"uniform": 1.0}
