"""Edits that no sequence of a run's length can tell are none, and nothing else is taken for one.

B batch, T tokens, V vocabulary
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from examples import up_to
from morphogen.blueprint.diff import digest
from morphogen.blueprint.effective import effective
from morphogen.blueprint.schema import Blueprint
from morphogen.blueprint.tensors import parameter_count
from morphogen.cost import costs
from morphogen.inherit.descent import inherit
from morphogen.network import assemble
from morphogen.parts.contract.operator import OPERATORS
from morphogen.testing import blueprints, ids_of, logits, loss_of, stirred
from morphogen.testing.contract import TOLERATED
from morphogen.variation.act import Surroundings
from morphogen.variation.operator import apply_operator

#: All but those on rules of growth, which act later, in training.
NAMES = [
    name
    for name, op in sorted(OPERATORS.items())
    if op.level in ("part", "block", "model") and not name.endswith("_growth_rule")
]
DIM = 16


def model(*, norm: str = "rmsnorm", **block: Any) -> Blueprint:
    plain = {"ffn": {"kind": "dense", "hidden": 8, "activation": "gelu"}}
    return Blueprint.model_validate({"emb": {"dim": DIM, "vocab": 64}, "norm": norm, "blocks": [{**plain, **block}]})


def attention(**fields: Any) -> Blueprint:
    return model(attn={"kind": "GQA", "heads": 2, "head_dim": 8, **fields})


def moe(**fields: Any) -> Blueprint:
    return model(ffn={"kind": "moe", "hidden": 8, "n_experts": 4, **fields})


LENGTH = 16
#: Pairs that sequences of 16 tokens cannot tell apart.
ALIKE = {
    "a cache's window": (attention(), attention(kv_policy={"kind": "window", "window": 16})),
    "a cache's longer window": (
        attention(kv_policy={"kind": "window", "window": 32}),
        attention(kv_policy={"kind": "window", "window": 4096}),
    ),
    "a cache's window beyond the pattern's": (
        attention(sparsity="sliding", sliding_window=4),
        attention(sparsity="sliding", sliding_window=4, kv_policy={"kind": "window", "window": 5}),
    ),
    "a latent cache's window": (
        model(attn={"kind": "MLA", "heads": 2, "head_dim": 8, "kv_latent_dim": 8, "rope_head_dim": 4}),
        model(
            attn={
                "kind": "MLA",
                "heads": 2,
                "head_dim": 8,
                "kv_latent_dim": 8,
                "rope_head_dim": 4,
                "kv_policy": {"kind": "window", "window": 64},
            }
        ),
    ),
    "a window": (attention(), attention(sparsity="sliding", sliding_window=15)),
    "a longer window": (
        attention(sparsity="local_global", sliding_window=16),
        attention(sparsity="sliding", sliding_window=99),
    ),
    "a block": (attention(), attention(sparsity="block", block_size=16)),
    "every block": (attention(), attention(sparsity="block", block_size=4, block_stride=1)),
    "a stride of blocks": (
        attention(sparsity="block", block_size=4, block_stride=4),
        attention(sparsity="block", block_size=4, block_stride=8),
    ),
    "a global stride": (
        attention(sparsity="local_global", sliding_window=4, global_stride=11),
        attention(sparsity="local_global", sliding_window=4, global_stride=32),
    ),
    "every token global": (attention(), attention(sparsity="local_global", sliding_window=4, global_stride=1)),
    "dilation": (attention(sparsity="dilated", dilation=16), attention(sparsity="dilated", dilation=64)),
    "no dilation": (attention(), attention(sparsity="dilated", dilation=1)),
    "stations": (
        attention(sparsity="local_block", sliding_window=4, block_size=16),
        attention(sparsity="local_block", sliding_window=4, block_size=4, block_stride=4),
    ),
    "a selector of all": (attention(), attention(selector="dsa", selector_topk=16, selector_heads=1, selector_dim=8)),
    "yarn by one": (attention(), attention(rope="yarn", rope_factor=1.0)),
    "all of partial RoPE": (attention(), attention(rope="partial", rope_factor=1.0)),
    "shares of the same pairs": (
        attention(rope="partial", rope_factor=0.5),
        attention(rope="partial", rope_factor=0.6),
    ),
    "a name of groups": (attention(kind="MHA"), attention(kind="GQA", kv_groups=1)),
    "a memory of nothing": (model(), model(extras=[{"kind": "retro", "stride": 16, "heads": 1, "head_dim": 8}])),
    "chunks remembered": (
        model(extras=[{"kind": "retro", "stride": 4, "memory_tokens": 3, "heads": 1, "head_dim": 8}]),
        model(extras=[{"kind": "retro", "stride": 4, "memory_tokens": 64, "heads": 1, "head_dim": 8}]),
    ),
    "runs that never end": (
        model(),
        model(extras=[{"kind": "chunk_memory", "chunk_size": 16, "stride": 8, "heads": 1, "head_dim": 8}]),
    ),
    "a next run": (
        model(extras=[{"kind": "chunk_memory", "chunk_size": 12, "stride": 4, "heads": 1, "head_dim": 8}]),
        model(extras=[{"kind": "chunk_memory", "chunk_size": 12, "stride": 12, "heads": 1, "head_dim": 8}]),
    ),
    "taps": (
        model(extras=[{"kind": "short_conv", "kernel": 16, "width": 8}]),
        model(extras=[{"kind": "short_conv", "kernel": 17, "width": 8}]),
    ),
    "taps of a state-space layer": (
        model(ssm={"kind": "mamba2", "head_dim": 8, "d_conv": 16}),
        model(ssm={"kind": "mamba2", "head_dim": 8, "d_conv": 20}),
    ),
    "balance of all experts": (moe(k=4), moe(k=4, balance=0.3)),
    "a bias for no choice": (moe(k=4), moe(k=4, router_bias="aux_free")),
    "room for all": (moe(), moe(drop_policy="greedy", capacity_factor=2.0)),
    "shared experts' size": (moe(shared=1), moe(shared=1, shared_hidden=8)),
    "one branch in parallel": (model(), model(parallel=True)),
}


@pytest.mark.parametrize("pair", ALIKE.values(), ids=ALIKE)
def test_what_no_sequence_of_that_length_tells_apart_counts_as_the_same(pair: tuple[Blueprint, Blueprint]) -> None:
    first, second = pair
    assert digest(first) != digest(second)
    assert digest(effective(first, LENGTH)) == digest(effective(second, LENGTH))
    ids_BT = ids_of(0, LENGTH)
    state = stirred(second)
    kept = {name: tensor for name, tensor in state.items() if name in inherit(first, [(second, state)])[0]}
    if all(kept[name].shape == tensor.shape for name, tensor in stirred(first).items()):
        torch.testing.assert_close(logits(first, kept, ids_BT), logits(second, state, ids_BT), rtol=0, atol=1e-10)


#: Pairs that 16 tokens tell apart, each just short of one above.
DIFFERENT = {
    "a cache's window": (attention(), attention(kv_policy={"kind": "window", "window": 15})),
    "int8": (attention(), attention(kv_policy={"kind": "full", "quant": "int8"})),
    "a window": (attention(), attention(sparsity="sliding", sliding_window=14)),
    "a block": (attention(), attention(sparsity="block", block_size=15)),
    "a global stride": (
        attention(sparsity="local_global", sliding_window=4, global_stride=10),
        attention(sparsity="local_global", sliding_window=4, global_stride=11),
    ),
    "dilation": (attention(sparsity="dilated", dilation=15), attention(sparsity="dilated", dilation=16)),
    "a selector": (attention(), attention(selector="dsa", selector_topk=15)),
    "a memory": (model(), model(extras=[{"kind": "retro", "stride": 15, "heads": 1, "head_dim": 8}])),
    "taps": (model(extras=[{"kind": "short_conv", "kernel": 15}]), model(extras=[{"kind": "short_conv"}])),
    "balance": (moe(k=2), moe(k=2, balance=0.3)),
    "room": (moe(k=1), moe(k=1, drop_policy="greedy", capacity_factor=3.9)),
}


@pytest.mark.parametrize("pair", DIFFERENT.values(), ids=DIFFERENT)
def test_what_makes_a_difference_is_left(pair: tuple[Blueprint, Blueprint]) -> None:
    assert digest(effective(pair[0], LENGTH)) != digest(effective(pair[1], LENGTH))


@settings(max_examples=up_to(120), suppress_health_check=TOLERATED, deadline=None)
@given(blueprint=blueprints(max_blocks=2), length=st.integers(1, 40), seed=st.integers(0, 99))
def test_the_plainest_form_computes_the_same_at_that_length(blueprint: Blueprint, length: int, seed: int) -> None:
    try:
        plain = Blueprint.model_validate(effective(blueprint, length).to_json())
    except ValidationError:
        return  # a block has nothing left, or a modifier nothing to act on
    assert digest(effective(plain, length)) == digest(plain)
    state = stirred(blueprint, seed)
    kept, _ = inherit(plain, [(blueprint, state)])
    ids_BT = ids_of(seed, length)
    want_BTV = logits(blueprint, state, ids_BT)
    torch.testing.assert_close(logits(plain, kept, ids_BT), want_BTV, rtol=0, atol=1e-9 * float(want_BTV.abs().max()))


def shown(blueprint: Blueprint, state: dict[str, torch.Tensor], length: int, seed: int) -> Iterator[torch.Tensor]:
    """All that a run could see of a model: logits, gradients in training, early and late, and what it costs."""
    for draw in range(2):
        yield logits(blueprint, state, ids_of(seed + draw, length))
    for progress in (0.0, 0.5, 1.0):
        model = assemble(blueprint, state).train()
        model.set_progress(progress)
        torch.manual_seed(seed)
        torch.autograd.backward(loss_of(model, ids_of(seed, length + 1)))
        yield torch.tensor(sum(p.numel() for p in model.parameters() if p.grad is not None and bool(p.grad.any())))
        yield torch.cat([p.grad.flatten() for _, p in sorted(model.named_parameters()) if p.grad is not None])
    yield torch.tensor(sorted(costs(blueprint, length).values()), dtype=torch.float64)


def same(first: torch.Tensor, second: torch.Tensor) -> bool:
    return first.shape == second.shape and torch.allclose(first.double(), second.double(), rtol=1e-12, atol=1e-12)


@settings(max_examples=up_to(150), suppress_health_check=TOLERATED, deadline=None)
@given(
    blueprint=blueprints(max_blocks=2),
    name=st.sampled_from(NAMES),
    length=st.sampled_from([2, 5, 9, 16, 24]),
    seed=st.integers(0, 2**20),
)
def test_no_operator_proposes_what_a_run_cannot_see(blueprint: Blueprint, name: str, length: int, seed: int) -> None:
    made = apply_operator(blueprint, name, np.random.default_rng(seed), Surroundings(seq_len=length))
    if made is None:
        return
    child, edit = made
    state = stirred(blueprint, seed % 1000)
    carried, report = inherit(child, [(blueprint, state)], edits=[edit], seed=seed % 1000)
    if report.fresh or report.resized or state.keys() != carried.keys():
        return  # it has other weights
    before, after = shown(blueprint, state, length, seed % 97), shown(child, carried, length, seed % 97)
    assert not all(same(a, b) for a, b in zip(before, after, strict=True)), edit


@pytest.mark.parametrize(
    ("name", "root"),
    [
        ("toggle_kv_policy", attention()),
        ("tune_kv_policy", attention(kv_policy={"kind": "window", "window": 64})),
        ("tune_attn_sparsity", attention(sparsity="sliding", sliding_window=64)),
        ("tune_retro", model(extras=[{"kind": "retro", "stride": 8, "memory_tokens": 64, "heads": 1, "head_dim": 8}])),
        ("insert_retro_module", model()),
        ("insert_chunk_memory", model()),
        ("toggle_selector", attention()),
        ("tune_selector", attention(selector="dsa", selector_topk=64)),
        ("grow_short_conv", model(extras=[{"kind": "short_conv", "kernel": 15, "width": 8}])),
    ],
)
def test_what_operators_leave_out_depends_on_the_length(name: str, root: Blueprint) -> None:
    def made(length: int) -> list[Blueprint]:
        around = Surroundings(seq_len=length)
        found = (apply_operator(root, name, np.random.default_rng(seed), around) for seed in range(40))
        return [child for child, _ in filter(None, found)]

    def null(child: Blueprint) -> bool:
        smaller = parameter_count(child) < parameter_count(root)  # what does nothing may go
        return not smaller and digest(effective(child, 8)) == digest(effective(root, 8))

    assert any(map(null, made(4096)))
    assert not any(map(null, made(8)))


@pytest.mark.parametrize("name", ["tune_router_coeffs", "tune_capacity"])
def test_what_has_no_effect_where_every_expert_runs_is_not_proposed(name: str) -> None:
    def null(root: Blueprint, seed: int) -> bool | None:
        made = apply_operator(root, name, np.random.default_rng(seed), Surroundings(seq_len=LENGTH))
        return None if made is None else digest(effective(made[0], LENGTH)) == digest(effective(root, LENGTH))

    assert True not in [null(moe(k=4), seed) for seed in range(20)]
    assert False in [null(moe(k=2), seed) for seed in range(20)]
    # what they would make is no other model: nothing is balanced, and no expert is ever full
    without = (moe(k=4, balance=0.03), moe(k=4, drop_policy="greedy", capacity_factor=1.0))
    assert {digest(effective(child, LENGTH)) for child in without} == {digest(effective(moe(k=4), LENGTH))}


@pytest.mark.parametrize(
    ("name", "root"),
    [
        ("remove_extra", model(extras=[{"kind": "retro", "stride": 16, "heads": 1, "head_dim": 8}])),
        ("toggle_selector", attention(selector="dsa", selector_topk=16, selector_heads=1, selector_dim=8)),
    ],
)
def test_what_does_nothing_at_that_length_may_go(name: str, root: Blueprint) -> None:
    around = Surroundings(seq_len=16)
    child, _ = next(filter(None, (apply_operator(root, name, np.random.default_rng(k), around) for k in range(20))))
    assert around.digest(child) == around.digest(root)
    assert around.key(child) != around.key(root)


def test_without_a_length_every_other_blueprint_is_a_child() -> None:
    made = [apply_operator(attention(), "toggle_kv_policy", np.random.default_rng(seed)) for seed in range(30)]
    assert any(child.blocks[0].attn.kv_policy.window == 4096 for child, _ in filter(None, made))
