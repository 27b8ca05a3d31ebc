"""Operators on depth, width, norm, head and branches: what each does, and that exact ones leave real logits alone."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from grounds import grounds
from morphogen.blueprint.schema import Block, Blueprint
from morphogen.inherit.descent import inherit
from morphogen.network import assemble, initial_state
from morphogen.parts.attention.attention import Attention
from morphogen.parts.contract.operator import OPERATORS
from morphogen.parts.contract.part import REGISTRY
from morphogen.parts.contract.registry import SETTLED
from morphogen.parts.ffn.mlp import MLP
from morphogen.parts.mixing.layer_scale import LayerScale
from morphogen.variation import structure
from morphogen.variation.operator import apply_operator
from morphogen.variation.operator import edit as named_edit
from morphogen.variation.structure import plain_attention, plain_ffn
from strategies import VOCAB, blueprints, rngs

HERE = {name: op for name, op in sorted(OPERATORS.items()) if op.act.__module__ == structure.__name__}
EXACT = [name for name, op in HERE.items() if op.preserves is True]
LOSSY = [name for name, op in HERE.items() if op.preserves is False]


def trained_like(blueprint, seed):
    """An fp64 state in which no weight is at its special starting value."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, tensor in initial_state(blueprint, seed).items():
        moved = tensor.double()
        if not name.endswith(("eps", "slopes")):
            moved = moved + 0.1 * torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
        state[name] = moved
    return state


def jump(blueprint, child, seed):
    """max |Δlogit| / max |logit| between a model and the child that inherits from it."""
    state = trained_like(blueprint, seed)
    inherited, report = inherit(child, [(blueprint, state)], seed=seed)
    ids_BT = torch.randint(VOCAB, (2, 16), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        before_BTV = assemble(blueprint, state).eval()(ids_BT)
        after_BTV = assemble(child, inherited).eval()(ids_BT)
    return float((after_BTV - before_BTV).abs().max() / before_BTV.abs().max()), report


def three():
    attn = Attention(kind="GQA", heads=2, head_dim=8)
    blocks = tuple(Block(id=f"b{i}", attn=attn, ffn=MLP(hidden=8 * (i + 1))) for i in range(3))
    return Blueprint(emb={"dim": 16, "vocab": VOCAB}, blocks=blocks)


def ids(blueprint):
    return [block.id for block in blueprint.blocks]


def starts():
    """Blueprints at which every lossy operator of the file may act, at one or another."""
    plain = three()
    first, *rest = plain.blocks
    scaled = first.evolve(extras=({"kind": "layer_scale", "init": 0.5},))
    mixture = first.evolve(ffn={"kind": "moe", "hidden": 8, "n_experts": 4})
    untied = plain.evolve(head={"tie_embeddings": False})
    return [plain, untied, *(plain.evolve(blocks=(block, *rest)) for block in (scaled, mixture))]


def test_all_operators_of_this_file_are_exact_or_lossy_everywhere():
    assert {*EXACT, *LOSSY} == HERE.keys()


@pytest.mark.parametrize("name", EXACT)
def test_exact_operators_leave_the_logits_alone(name):
    for blueprint, seed in itertools.islice(grounds(name), 2):
        assert_exact(name, blueprint, np.random.default_rng(seed), seed % 1000)


@pytest.mark.slow
@pytest.mark.parametrize("name", EXACT)
@given(blueprint=blueprints(max_blocks=3), rng=rngs(), seed=st.integers(0, 999))
@settings(max_examples=6, suppress_health_check=list(HealthCheck))
def test_exact_operators_leave_the_logits_of_any_blueprint_alone(name, blueprint, rng, seed):
    assert_exact(name, blueprint, rng, seed)


def assert_exact(name, blueprint, rng, seed):
    made = apply_operator(blueprint, name, rng)
    if made is None:
        return
    moved, report = jump(blueprint, made[0], seed)
    assert moved <= 1e-12
    assert report.exact


@pytest.mark.parametrize("name", LOSSY)
def test_lossy_operators_move_the_logits(name):
    made = [(start, apply_operator(start, name, np.random.default_rng(3))) for start in starts()]
    start, (child, _) = next((start, found) for start, found in made if found is not None)
    moved, report = jump(start, child, 0)
    assert moved > 1e-4
    assert not report.exact


def test_insert_puts_one_new_gene_between_the_old_ones():
    places = set()
    for seed in range(60):
        child, _ = named_edit(three(), "insert_block", seed)
        (new,) = set(ids(child)) - {"b0", "b1", "b2"}
        places.add(ids(child).index(new))
        assert [id for id in ids(child) if id != new] == ["b0", "b1", "b2"]
        assert next(block for block in child.blocks if block.id == new).origin is None
    assert places == {0, 1, 2, 3}


def test_inserted_blocks_are_plain_or_like_a_present_one_without_its_scales():
    scaled = three().blocks[0].evolve(extras=(LayerScale(targets=("attn",), init=0.5),))
    start = Blueprint(emb={"dim": 16, "vocab": VOCAB}, blocks=(scaled,))
    seen = set()
    for seed in range(30):
        child, _ = named_edit(start, "insert_block", seed)
        (new,) = [block for block in child.blocks if block.id != "b0"]
        assert new.extras == ()
        seen.add((new.attn, new.ffn))
    assert seen == {(scaled.attn, scaled.ffn), (plain_attention(16), plain_ffn(16))}


def test_duplicates_stand_after_their_source_and_name_it():
    child, _ = named_edit(three(), "duplicate_block", 1)
    (copy,) = [block for block in child.blocks if block.origin]
    at = ids(child).index(copy.id)
    assert child.blocks[at - 1].id == copy.origin
    assert child.blocks[at - 1].model_copy(update={"id": copy.id, "origin": copy.origin}) == copy


def test_a_span_is_duplicated_in_order():
    for seed in range(20):
        child, _ = named_edit(three(), "duplicate_block_span", seed)
        origins = [block.origin for block in child.blocks if block.origin]
        assert origins in (["b0", "b1"], ["b1", "b2"], ["b0", "b1", "b2"])
        last = ids(child).index(origins[-1])
        assert [block.origin for block in child.blocks[last + 1 :][: len(origins)]] == origins
        assert len(set(ids(child))) == len(child.blocks)


def test_a_duplicate_outlives_its_source():
    child, _ = named_edit(three(), "duplicate_block", 1)
    (copy,) = [block for block in child.blocks if block.origin]
    orphaned = child.evolve(blocks=tuple(block for block in child.blocks if block.id != copy.origin))
    state = trained_like(child, 0)
    inherited, _ = inherit(orphaned, [(child, state)])
    position, before = ids(orphaned).index(copy.id), ids(child).index(copy.id)
    name = "attn.o.weight"
    torch.testing.assert_close(inherited[f"blocks.{position}.{name}"], state[f"blocks.{before}.{name}"], rtol=0, atol=0)


def test_order_changes_keep_the_genes():
    for seed in range(20):
        moved, _ = named_edit(three(), "move_block", seed)
        swapped, _ = named_edit(three(), "swap_blocks", seed)
        for child in (moved, swapped):
            assert sorted(ids(child)) == ["b0", "b1", "b2"]
            assert {block.id: block for block in child.blocks} == {block.id: block for block in three().blocks}
        assert sum(a != b for a, b in zip(ids(swapped), ids(three()), strict=True)) == 2


def test_move_reaches_every_order_one_block_can_make():
    seen = {tuple(ids(named_edit(three(), "move_block", seed)[0])) for seed in range(80)}
    assert seen == {
        ("b1", "b0", "b2"),
        ("b1", "b2", "b0"),
        ("b0", "b2", "b1"),
        ("b2", "b0", "b1"),
    }


def test_equal_blocks_are_not_swapped_and_the_last_one_is_not_deleted():
    twins = Blueprint(
        emb={"dim": 16, "vocab": VOCAB}, blocks=(Block(id="a", ffn=MLP(hidden=8)), Block(id="b", ffn=MLP(hidden=8)))
    )
    rng = np.random.default_rng(0)
    assert apply_operator(twins, "swap_blocks", rng) is None
    assert apply_operator(twins, "move_block", rng) is None
    assert apply_operator(twins.evolve(blocks=twins.blocks[:1]), "delete_block", rng) is None


@given(dim=st.integers(1, 300), seed=st.integers(0, 99))
@settings(deadline=None)
def test_width_moves_the_right_way_to_a_multiple_of_eight(dim, seed):
    blueprint = Blueprint(emb={"dim": dim, "vocab": VOCAB}, blocks=three().blocks)
    wider, _ = named_edit(blueprint, "widen_dim", seed)
    assert dim < wider.emb.dim <= max(1.5 * dim + 4, dim + 8)
    assert wider.emb.dim % 8 == 0
    narrower = apply_operator(blueprint, "narrow_dim", np.random.default_rng(seed))
    assert (narrower is None) == (dim <= 8)
    if narrower is not None:
        assert 0 < narrower[0].emb.dim < dim
        assert narrower[0].emb.dim % 8 == 0


def test_a_removed_branch_takes_what_acted_on_it_along():
    block = three().blocks[0]
    both = block.evolve(extras=(LayerScale(targets=("attn", "ffn")),))
    one = block.evolve(extras=(LayerScale(targets=("ffn",)),))
    for start, left in ((both, {("attn",): ("attn",), ("ffn",): ("ffn",)}), (one, {("attn",): (), ("ffn",): ("ffn",)})):
        blueprint = three().evolve(blocks=(start,))
        seen = {}
        for seed in range(20):
            child, _ = named_edit(blueprint, "remove_branch", seed)
            (kept,) = child.blocks
            seen[tuple(sorted(kept.slots()))] = sum((extra.targets for extra in kept.extras), ())
        assert seen == left


@pytest.mark.parametrize(("dim", "width"), [(8, 16), (16, 16), (32, 32), (64, 64), (100, 64), (512, 512)])
def test_plain_attention_is_about_as_wide_as_the_stream(dim, width):
    part = plain_attention(dim)
    assert part.heads * part.head_dim == width


def test_every_operator_that_puts_in_one_extra_exactly_is_among_those_that_two_are_drawn_from():
    """A new one goes into `structure.INSERTIONS`, but for one that nobody draws unless it is asked for."""
    blueprint = three()
    block, ctx = blueprint.blocks[0], blueprint.context()
    exact = [op.act for op in OPERATORS.values() if op.level == "block" and op.preserves is True and op.weight > 0]
    children = {act: act(block, ctx, np.random.default_rng(0)) for act in exact}
    assert {act for act, child in children.items() if child and len(child.extras) == 1} == set(structure.INSERTIONS)


def test_settled_are_kinds_that_are():
    assert REGISTRY.keys() >= SETTLED
