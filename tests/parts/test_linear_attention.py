"""The LINEAR kind against independent layers, its costs against counters, and what its edits keep.

B batch, T tokens, D model dim, K heads, E width of q and k, V width of v
"""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from morphogen.blueprint.schema import Blueprint
from morphogen.inherit.descent import inherit
from morphogen.network import Cache, assemble, build, cache_bytes, initial_state
from morphogen.parts.attention.attention import Attention
from morphogen.parts.attention.linear_attention import LinearAttention
from morphogen.parts.attention.linear_attention_layer import LinearAttentionBranch
from morphogen.parts.contract.part import Context

DIM, HEADS, E, V = 24, 3, 8, 12
CTX = Context(dim=DIM, norm="rmsnorm", vocab=50, init_std=0.02, branches=2, seq_len=128)
FORWARD, GRADIENT = 1e-5, 1e-4


def branch_of(**fields: Any) -> LinearAttentionBranch:
    """A branch with random weights."""
    part = LinearAttention(**{"heads": HEADS, "head_dim": E, "value_dim": V, **fields})
    branch, draw = part.build(CTX), torch.Generator().manual_seed(3)
    assert isinstance(branch, LinearAttentionBranch)
    state = {n: 0.5 * torch.randn(t.shape, generator=draw) for n, t in branch.state_dict().items()}
    state |= {n: torch.tensor(1e-6) for n in state if n.endswith("eps")}
    branch.load_state_dict(state)
    return branch


def x_of(tokens: int, batch: int = 2) -> Tensor:
    return torch.randn(batch, tokens, DIM, generator=torch.Generator().manual_seed(tokens)).requires_grad_()


def off(want: Tensor, got: Tensor) -> float:
    """Relative RMS error."""
    want, got = want.detach(), got.detach()
    return float((want - got).square().mean().sqrt() / want.square().mean().sqrt())


@pytest.mark.parametrize("tokens", [7, 63, 130])
def test_retention_equals_the_lightning_attention_of_another_library(tokens: int) -> None:
    """Compared before its norm, which runs over all heads there and over each here."""
    from transformers import MiniMaxConfig
    from transformers.models.minimax.modeling_minimax import MiniMaxLightningAttention

    branch = branch_of(decay="retention", feature_map="silu", value_dim=E)
    config = MiniMaxConfig(
        hidden_size=DIM, num_attention_heads=HEADS, head_dim=E, block_size=16, num_hidden_layers=3,
        layer_types=["linear_attention"] * 3, num_key_value_heads=1,
    )  # fmt: skip
    peer = MiniMaxLightningAttention(config, 1)
    heard: list[Tensor] = []
    peer.norm.register_forward_pre_hook(lambda module, args: heard.append(args[0]))
    with torch.no_grad():
        branch.slopes.copy_(peer.slope_rate.flatten())
        by_head = [w.view(HEADS, E, DIM) for w in (branch.q.weight, branch.k.weight, branch.v.weight)]
        peer.qkv_proj.weight.copy_(torch.cat(by_head, 1).flatten(0, 1))
    assert branch.out_norm is not None
    branch.out_norm.register_forward_pre_hook(lambda module, args: heard.append(args[0]))
    x_BTD = x_of(tokens)
    # its activation acts on values too
    branch.v.register_forward_hook(lambda module, args, output: torch.nn.functional.silu(output))
    peer(x_BTD, None, None)
    branch.mix(x_BTD)
    want_BTF = heard[0]
    got_BTF = heard[1].squeeze(2).transpose(1, 2).flatten(2) * E**0.5  # the scale of queries, which it has not
    assert off(want_BTF, got_BTF) <= FORWARD
    d_BTF = torch.randn(want_BTF.shape, generator=torch.Generator().manual_seed(1))
    d_want = torch.autograd.grad(want_BTF, [x_BTD, peer.qkv_proj.weight], d_BTF)
    ours = [x_BTD, branch.q.weight, branch.k.weight, branch.v.weight]
    d_x, *d_qkv = torch.autograd.grad(got_BTF, ours, d_BTF)
    assert off(d_want[0], d_x) <= GRADIENT
    assert off(d_want[1], torch.cat([d.view(HEADS, E, DIM) for d in d_qkv], 1).flatten(0, 1)) <= GRADIENT


def test_without_decay_each_output_is_the_weighted_mean_of_its_past() -> None:
    """Katharopoulos et al., eq. 8, with every weight written out."""
    for feature, phi in (
        ("elu", lambda x: torch.nn.functional.elu(x) + 1),
        ("relu", torch.relu),
        ("softmax", lambda x: x.softmax(-1)),
    ):
        branch = branch_of(feature_map=feature, heads=4, kv_groups=2).double()
        x_BTD = x_of(70).detach().double()
        q = phi(branch.q(x_BTD).view(2, 70, 4, E).transpose(1, 2))
        k = phi(branch.k(x_BTD).view(2, 70, 2, E).transpose(1, 2)).repeat_interleave(2, 1)
        v = branch.v(x_BTD).view(2, 70, 2, V).transpose(1, 2).repeat_interleave(2, 1)
        weights = (q @ k.mT).tril()
        y = weights / (weights.sum(-1, keepdim=True) + 1e-6) @ v
        want = branch.o(y.transpose(1, 2).flatten(2))
        torch.testing.assert_close(branch.mix(x_BTD), want, rtol=1e-10, atol=1e-10)


KINDS = [("none", "elu"), ("none", "identity"), ("retention", "silu"), ("gated", "relu"), ("delta", "silu")]


@pytest.mark.parametrize(("decay", "feature"), KINDS)
def test_flops_are_those_counted_and_linear_in_the_length(decay: Any, feature: Any) -> None:
    part = LinearAttention(heads=4, head_dim=32, kv_groups=2, decay=decay, feature_map=feature, gate="swish")
    for length in (64, 512):
        ctx = Context(dim=96, norm="rmsnorm", vocab=50, init_std=0.02, branches=2, seq_len=length)
        with torch.device("meta"):
            branch, x_BTD = part.build(ctx), torch.zeros(1, length, 96)
        with FlopCounterMode(display=False) as counter:
            branch(x_BTD)
        counted = counter.get_total_flops() / length
        if decay == "delta":  # the counter sees no triangular solve: half a square for each right-hand side
            counted += 2 * 2 * 64 * (32 + 32) / 2
        assert counted == pytest.approx(part.cost(ctx).flops, rel=0.05)
    long = Context(dim=96, norm="rmsnorm", vocab=50, init_std=0.02, branches=2, seq_len=8192)
    assert part.cost(long).flops == part.cost(ctx).flops
    assert part.cost(long).kv_bytes == 0.0


def blueprint(**attn: Any) -> Blueprint:
    block = {"attn": {"kind": "LINEAR", "heads": 4, "head_dim": 8, **attn}, "ffn": {"kind": "dense", "hidden": 24}}
    return Blueprint.model_validate({"emb": {"dim": DIM, "vocab": 50}, "blocks": [block]})


@pytest.mark.parametrize(("decay", "feature"), KINDS)
def test_the_state_has_the_bytes_of_its_cost_whatever_the_length(decay: Any, feature: Any) -> None:
    plan = blueprint(decay=decay, feature_map=feature, kv_groups=2)
    model, predicted = build(plan).eval(), plan.blocks[0].attn.cost(CTX).state_bytes
    for length in (3, 200):
        cache: Cache = {}
        with torch.no_grad():
            model.extend(torch.zeros(1, length, dtype=torch.long), cache)
        assert cache_bytes(cache) == predicted


@pytest.mark.parametrize(("decay", "feature"), KINDS)
def test_bf16_autocast_stays_bf16_and_near_with_its_state_in_fp32(decay: Any, feature: Any) -> None:
    model = build(blueprint(decay=decay, feature_map=feature, gate="swish"), seed=2)
    ids_BT = torch.randint(50, (2, 100), generator=torch.Generator().manual_seed(0))
    exact, cache = model(ids_BT).detach(), {}
    with torch.autocast("cpu", torch.bfloat16):
        assert model.blocks[0].attn.mix(torch.randn(2, 5, DIM).bfloat16()).dtype == torch.bfloat16
        logits_BTV = model(ids_BT)
        with torch.no_grad():
            model.eval().extend(ids_BT, cache)
    logits_BTV.float().square().mean().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())
    assert off(exact, logits_BTV.detach().float()) <= 0.03
    assert {x.dtype for x in cache["blocks.0.attn"].values()} == {torch.float32}


def test_softmax_attention_becomes_linear_and_back_with_its_projections() -> None:
    soft = Blueprint.model_validate({
        "emb": {"dim": DIM, "vocab": 50},
        "blocks": [{"attn": Attention(kind="GQA", heads=4, head_dim=8, kv_groups=2)}],
    })  # fmt: skip
    state = initial_state(soft, 0)
    linear = soft.evolve(
        blocks=({"id": "b0", "attn": LinearAttention(heads=4, head_dim=8, kv_groups=2, decay="delta")},)
    )
    assert linear is not None
    made, report = inherit(linear, [(soft, state)], seed=1)
    back, _ = inherit(soft, [(linear, made)], seed=2)
    for name in ("q", "k", "v", "o"):
        key = f"blocks.0.attn.{name}.weight"
        assert torch.equal(made[key], state[key])
        assert torch.equal(back[key], state[key])
    assert not report.exact
    assert "GQA became LINEAR" in report.notes[0]
    assert assemble(linear, made)(torch.zeros(1, 3, dtype=torch.long)).isfinite().all()


def test_retention_forgets_slowest_in_the_last_head_and_new_heads_leave_old_ones_alone() -> None:
    small, large = blueprint(decay="retention", heads=2), blueprint(decay="retention", heads=4)
    state = initial_state(small, 0)
    torch.testing.assert_close(1 - torch.exp(-state["blocks.0.attn.slopes"]), torch.tensor([1 / 32, 1 / 512]))
    made, report = inherit(large, [(small, state)])
    assert report.exact
    assert torch.equal(made["blocks.0.attn.slopes"][:2], state["blocks.0.attn.slopes"])
