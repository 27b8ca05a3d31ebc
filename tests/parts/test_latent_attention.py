"""Latent attention against the reference, its caches, costs and changes of kind. B batch, T tokens, D model dim."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from morphogen.blueprint.schema import Blueprint
from morphogen.errors import InputError
from morphogen.inherit.descent import inherit
from morphogen.network import assemble, build, cache_bytes, initial_state
from morphogen.ops import naive_selection
from morphogen.ops.elementwise import rope_frequencies
from morphogen.parts.attention.attention import Attention
from morphogen.parts.attention.latent_attention import LatentAttention
from morphogen.parts.contract.branch import Branch
from morphogen.parts.contract.operator import OPERATORS
from morphogen.parts.contract.part import Context, Part

DIM = 24
CTX = Context(dim=DIM, norm="rmsnorm", vocab=37, init_std=0.02, branches=2, seq_len=96)


def blueprint_of(part: Any) -> Blueprint:
    return Blueprint.model_validate({"emb": {"dim": DIM, "vocab": 37}, "blocks": [{"id": "b0", "attn": part}]})


def mla(**more: Any) -> LatentAttention:
    made = {"heads": 3, "head_dim": 8, "kv_latent_dim": 10, "rope_head_dim": 6} | more
    return LatentAttention.model_validate(made)


def weights_of(part: Part, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """A state in which every norm and gate has moved off its start."""
    draw = torch.Generator().manual_seed(0)
    return {
        name: (tensor if name.endswith("eps") else tensor + 0.1 * torch.randn(tensor.shape, generator=draw)).to(dtype)
        for name, tensor in initial_state(blueprint_of(part), 0).items()
    }


def branch_of(part: Part, dtype: torch.dtype = torch.float64) -> Branch:
    branch = assemble(blueprint_of(part), weights_of(part, dtype)).eval().blocks[0].attn
    assert isinstance(branch, Branch)
    return branch


def inputs(tokens: int, dtype: torch.dtype = torch.float64) -> Tensor:
    draw = torch.Generator().manual_seed(tokens)
    return torch.randn(2, tokens, DIM, generator=draw, dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("sparsity", ["none", "sliding"])
def test_outputs_and_all_gradients_equal_the_reference(sparsity: Any) -> None:
    part = mla(sparsity=sparsity, sliding_window=5)
    freqs_F, _ = rope_frequencies(6, part.rope_theta)
    for tokens, (dtype, rtol) in itertools.product((1, 7, 63, 130), ((torch.float32, 1e-5), (torch.float64, 1e-10))):
        branch, x_BTD = branch_of(part, dtype), inputs(tokens, dtype).requires_grad_()
        weights = {n: p for n, p in branch.named_parameters() if not n.startswith("norm.")}
        eps = branch.get_buffer("latent_norm.eps")
        want = naive_selection.latent_attention(x_BTD, weights, part.heads, freqs_F, eps, part.pattern)
        got = branch.mix(x_BTD)
        dy_BTD = torch.randn(got.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
        leaves = [x_BTD, *weights.values()]
        wants, gots = (torch.autograd.grad(y, leaves, dy_BTD) for y in (want, got))
        for name, a, b in zip(["y", "x", *weights], [want, *wants], [got, *gots], strict=True):
            error = (a - b).square().mean().sqrt() / a.square().mean().sqrt().clamp(min=1e-2)
            assert error <= rtol, (name, tokens, dtype)


@pytest.mark.parametrize("selector", ["none", "dsa"])
@pytest.mark.parametrize("rotated", [0, 6])
def test_a_cache_of_latents_decodes_what_the_whole_gives(selector: Any, rotated: int) -> None:
    part = mla(rope_head_dim=rotated, selector=selector, selector_topk=12, selector_dim=6)
    for dtype, bound in ((torch.float64, 1e-10), (torch.float32, 1e-4)):
        branch, x_BTD, state = branch_of(part, dtype), inputs(63, dtype), dict[str, Tensor]()
        with torch.no_grad():
            pieces = [branch.mix_on(x, state) for x in x_BTD.split([1, 30, 1, 1, 30], 1)]
            assert (torch.cat(pieces, 1) - branch.mix(x_BTD)).abs().max() <= bound
        kept = {name: x.shape[-1] for name, x in state.items() if name != "seen"}
        wanted = {"latent": 10, "key": rotated, "selector_k": 6}
        assert kept == {k: n for k, n in wanted.items() if n and (selector == "dsa" or k != "selector_k")}


@pytest.mark.parametrize("policy", [{"kind": "latent"}, {"kind": "full"}, {"kind": "window", "window": 200}])
def test_the_cache_has_the_bytes_it_is_said_to_cost(policy: dict[str, Any]) -> None:
    part = mla(kv_policy=policy)
    model, cache = build(blueprint_of(part), 0), dict[str, dict[str, Tensor]]()
    ids_BT = torch.zeros(1, CTX.seq_len, dtype=torch.long)
    with torch.no_grad():
        model.eval().extend(ids_BT, cache)
    entries = cache_bytes({"b": {n: x for s in cache.values() for n, x in s.items() if n != "seen"}}) / 4
    assert part.cost(CTX).kv_bytes * CTX.seq_len == 2 * entries


def test_a_sliding_window_and_a_windowed_cache_keep_only_the_window() -> None:
    x_BTD = inputs(63)
    sliding = branch_of(mla(sparsity="sliding", sliding_window=8))
    windowed = branch_of(mla(kv_policy={"kind": "window", "window": 9}))
    for branch in (sliding, windowed):
        state: dict[str, Tensor] = {}
        with torch.no_grad():
            pieces = [branch.mix_on(x, state) for x in x_BTD.split(7, 1)]
        assert state["latent"].shape[2] == 8
        torch.testing.assert_close(torch.cat(pieces, 1), sliding.mix(x_BTD).detach(), rtol=1e-10, atol=1e-10)


def test_flops_are_those_counted() -> None:
    part = mla(heads=4, head_dim=16, kv_latent_dim=32, rope_head_dim=8)
    branch, x_BTD = branch_of(part, torch.float32), inputs(96, torch.float32)[:1]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        branch.mix(x_BTD)
    per_tile = counter.get_total_flops() / 96
    triangle = part.cost(CTX).flops
    tiles = (64 * 64 + 32 * 96) / 96 - (
        96 + 1
    ) / 2  # whole tiles are computed, half of those on the diagonal for nought
    assert triangle + 2.0 * 4 * (16 + 8 + 16) * tiles == pytest.approx(per_tile, rel=0.05)


def test_bf16_autocast_stays_bf16_and_near() -> None:
    branch, x_BTD = branch_of(mla(), torch.float32), inputs(63, torch.float32)
    with torch.no_grad():
        exact = branch.mix(x_BTD)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y_BTD = branch.mix(x_BTD)
            state: dict[str, Tensor] = {}
            decoded = torch.cat([branch.mix_on(x, state) for x in x_BTD.split(20, 1)], 1)
    for got in (y_BTD, decoded):
        assert got.dtype == torch.bfloat16
        assert (got - exact).square().mean().sqrt() <= 2e-2 * exact.square().mean().sqrt()
    assert state["latent"].dtype == torch.bfloat16


def test_a_latent_cache_is_for_latent_attention_only() -> None:
    with pytest.raises(ValueError, match="no latent to cache"):
        Attention.model_validate({"kind": "MHA", "heads": 2, "head_dim": 8, "kv_policy": {"kind": "latent"}})


# --------------------------------------------------------------------------------------------- changes of kind


def outputs(part: Part, state: dict[str, Tensor]) -> Tensor:
    """Logits, over inputs that make the branch's input white."""
    ids_BT = torch.randint(37, (4, 24), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return assemble(blueprint_of(part), state).eval()(ids_BT)


def with_embedding(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Embeddings of unit variance, as a normalised residual stream has."""
    draw = torch.Generator().manual_seed(3)
    return state | {"emb.weight": torch.randn(37, DIM, generator=draw, dtype=torch.float64)}


def share_lost(parent: Part, child: Part) -> float:
    """RMS change of the logits over the RMS of what the branch adds to them."""
    state = with_embedding(weights_of(parent))
    child_state, report = inherit(blueprint_of(child), [(blueprint_of(parent), state)])
    assert not report.exact
    silent = state | {"blocks.0.attn.o.weight": torch.zeros_like(state["blocks.0.attn.o.weight"])}
    before, after, without = outputs(parent, state), outputs(child, child_state), outputs(parent, silent)
    return float((after - before).square().mean().sqrt() / (before - without).square().mean().sqrt())


def test_through_a_latent_of_full_rank_only_its_norm_and_rope_are_lost() -> None:
    parent = Attention(kind="GQA", heads=4, head_dim=8, kv_groups=2, rope="none")
    whole, half, little = (
        LatentAttention(heads=4, head_dim=8, kv_latent_dim=rank, rope_head_dim=0) for rank in (24, 12, 4)
    )
    losses = [share_lost(parent, child) for child in (whole, half, little)]
    assert losses[0] < 0.25 < 1.0
    assert losses[0] < losses[1] < losses[2]


def test_the_norm_apart_the_factored_maps_are_the_parents() -> None:
    parent = Attention(kind="GQA", heads=4, head_dim=8, kv_groups=2, rope="none")
    child = LatentAttention(heads=4, head_dim=8, kv_latent_dim=24, rope_head_dim=0)
    state = weights_of(parent)
    made, _ = inherit(blueprint_of(child), [(blueprint_of(parent), state)])
    part = "blocks.0.attn."
    for up, mine in (("k_up", "k"), ("v_up", "v")):
        whole_FD = made[f"{part}{up}.weight"] @ made[f"{part}kv_down.weight"]
        repeated_FD = state[f"{part}{mine}.weight"].view(2, 8, DIM).repeat_interleave(2, 0).flatten(0, 1)
        torch.testing.assert_close(whole_FD, repeated_FD, rtol=1e-10, atol=1e-10)


def test_multiplied_out_only_the_latents_norm_is_lost() -> None:
    parent = mla(kv_latent_dim=20)
    child = Attention(kind="MHA", heads=3, head_dim=14, rope="partial", rope_factor=6.5 / 14)
    assert child.rotated_dims == 6
    state = with_embedding(weights_of(parent))
    assert share_lost(parent, child) < 0.3
    # an eps that outweighs the latent makes its norm a constant, and then nothing is lost
    state |= {
        "blocks.0.attn.latent_norm.eps": torch.tensor(1e12, dtype=torch.float64),
        "blocks.0.attn.latent_norm.weight": 1e6 * state["blocks.0.attn.latent_norm.weight"],
    }
    made, _ = inherit(blueprint_of(child), [(blueprint_of(parent), state)])
    before = outputs(parent, state)
    assert (outputs(child, made) - before).abs().max() <= 1e-9 * before.abs().max()


@pytest.mark.parametrize("seed", range(4))
def test_toggling_there_and_back_keeps_what_both_have(seed: int) -> None:
    parent = Attention(
        kind="GQA", heads=4, head_dim=8, kv_groups=2, rope_theta=1e5, sparsity="sliding", sliding_window=9
    )
    toggle, rng = OPERATORS["toggle_mla_attention"], np.random.default_rng(seed)
    latent = toggle.act(blueprint_of(parent).blocks[0], CTX, rng).attn
    assert isinstance(latent, LatentAttention)
    assert latent.kv_policy.kind == "latent"
    back = toggle.act(blueprint_of(latent).blocks[0], CTX, rng).attn
    for part in (latent, back):
        assert (part.heads, part.rope_theta, part.sparsity, part.sliding_window) == (4, 1e5, "sliding", 9)
    assert share_lost(latent, back) < 0.5


def test_weights_that_are_not_finite_stay_so_and_raise_nothing() -> None:
    parent = Attention(kind="MHA", heads=2, head_dim=8)
    state = {name: torch.full_like(tensor, torch.nan) for name, tensor in weights_of(parent).items()}
    child = LatentAttention(heads=2, head_dim=8, kv_latent_dim=8, rope_head_dim=4)
    made, _ = inherit(blueprint_of(child), [(blueprint_of(parent), state)])
    assert bool(made["blocks.0.attn.k_up.weight"].isnan().all())


def test_a_state_of_other_shapes_is_refused() -> None:
    with pytest.raises(InputError, match="of another shape"):
        assemble(blueprint_of(mla(kv_latent_dim=12)), weights_of(mla()))
