"""Attention, latent attention and its selector against the transformers classes with the same weights.

The peer's weights are computed from ours, so that gradients of both sides are those of our parameters: outputs within
1e-5, every gradient within 1e-4, relative to the largest entry, in fp32. B batch, T tokens, D model dim
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers import (
    DeepseekV3Config,
    DeepseekV32Config,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    Qwen3Config,
)
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Attention, DeepseekV3RotaryEmbedding
from transformers.models.deepseek_v32.modeling_deepseek_v32 import DeepseekV32Attention
from transformers.models.gemma2.modeling_gemma2 import Gemma2Attention
from transformers.models.gpt2.modeling_gpt2 import GPT2Attention
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRotaryEmbedding
from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention

from morphogen.blueprint.schema import Blueprint
from morphogen.network import assemble, initial_state
from morphogen.parts.attention import Attention
from morphogen.parts.base import Branch, Part
from morphogen.parts.latent_attention import LatentAttention

DIM, HEADS, WIDTH, LATENT, ROTATED = 24, 4, 8, 10, 6
TOKENS = 63
Weights = dict[str, Tensor]


def branch_of(part: Part, dtype: torch.dtype = torch.float32) -> Branch:
    """The part's module, every tensor moved off its special start."""
    blueprint = Blueprint.model_validate({"emb": {"dim": DIM, "vocab": 37}, "blocks": [{"attn": part}]})
    draw = torch.Generator().manual_seed(0)
    state = {
        name: tensor if name.endswith(("eps", "slopes")) else tensor + 0.1 * torch.randn(tensor.shape, generator=draw)
        for name, tensor in initial_state(blueprint, 0).items()
    }
    branch = assemble(blueprint, {name: tensor.to(dtype) for name, tensor in state.items()}).blocks[0].attn
    assert isinstance(branch, Branch)
    return branch.eval()


def halves(weight: Tensor, width: int) -> Tensor:
    """Rows of heads of `width` channels, rotated pairs side by side, reordered to first halves, then second halves."""
    return weight.unflatten(0, (-1, width // 2, 2)).transpose(1, 2).flatten(0, 2)


def compare(part: Part, peer: nn.Module, weights_of: Callable[[Weights], Weights], **inputs: Any) -> None:
    branch, x_BTD = branch_of(part), torch.randn(2, TOKENS, DIM, generator=torch.Generator().manual_seed(1))
    x_BTD = x_BTD / x_BTD.square().mean(-1, keepdim=True).sqrt()
    params = {n: p for n, p in branch.named_parameters() if not n.startswith(("norm.", "selector."))}
    fixed = {name: p for name, p in branch.named_parameters() if name.startswith("selector.")}
    mine_BTD = branch.mix(x_BTD)
    bias_TT = torch.full((TOKENS, TOKENS), torch.finfo(torch.float32).min).triu(1)
    weights = weights_of({**params, **fixed})
    options = {"attention_mask": bias_TT.expand(2, 1, -1, -1)} | inputs
    theirs_BTD = functional_call(peer.eval(), weights, (x_BTD,), options)[0]
    assert (mine_BTD - theirs_BTD).abs().max() <= 1e-5 * theirs_BTD.abs().max()
    dy_BTD = torch.randn(mine_BTD.shape, generator=torch.Generator().manual_seed(2))
    want = torch.autograd.grad(theirs_BTD, list(params.values()), dy_BTD)
    got = torch.autograd.grad(mine_BTD, list(params.values()), dy_BTD)
    for name, a, b in zip(params, want, got, strict=True):
        assert (a - b).abs().max() <= 1e-4 * a.abs().max(), name


def rotary(module: type[nn.Module], config: Any) -> tuple[Tensor, Tensor]:
    """cos and sin of the peer's own tables."""
    return module(config)(torch.zeros(1, TOKENS, DIM), torch.arange(TOKENS)[None])  # type: ignore[no-any-return]


def common(config: type[Any], **more: Any) -> Any:
    made = config(
        hidden_size=DIM, num_attention_heads=HEADS, head_dim=WIDTH, num_hidden_layers=2, attention_bias=False,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0}, **more,
    )  # fmt: skip
    made._attn_implementation = "eager"
    return made


def projections(weights: Weights) -> Weights:
    """q and k with pairs as halves, v and o as they are."""
    return {
        "q_proj.weight": halves(weights["q.weight"], WIDTH),
        "k_proj.weight": halves(weights["k.weight"], WIDTH),
        "v_proj.weight": weights["v.weight"],
        "o_proj.weight": weights["o.weight"],
    }


def test_grouped_attention_equals_llama() -> None:
    config = common(LlamaConfig, num_key_value_heads=2)
    part = Attention(kind="GQA", heads=HEADS, head_dim=WIDTH, kv_groups=2)
    tables = rotary(LlamaRotaryEmbedding, config)
    compare(part, LlamaAttention(config, 0), projections, position_embeddings=tables)


def test_softcap_equals_gemma2() -> None:
    config = common(Gemma2Config, num_key_value_heads=2, query_pre_attn_scalar=WIDTH, attn_logit_softcapping=0.7)
    part = Attention(kind="GQA", heads=HEADS, head_dim=WIDTH, kv_groups=2, softcap=0.7)
    tables = rotary(LlamaRotaryEmbedding, config)
    compare(part, Gemma2Attention(config, 1), projections, position_embeddings=tables)


def test_qk_norm_equals_qwen3() -> None:
    config = common(Qwen3Config, num_key_value_heads=4, rms_norm_eps=1e-5)
    part = Attention(kind="MHA", heads=HEADS, head_dim=WIDTH, qk_norm="rms")

    def weights_of(weights: Weights) -> Weights:
        norms = {f"{n}.weight": halves(weights[f"{n}.weight"], WIDTH) for n in ("q_norm", "k_norm")}
        return projections(weights) | norms

    compare(part, Qwen3Attention(config, 0), weights_of, position_embeddings=rotary(LlamaRotaryEmbedding, config))


def test_attention_without_rope_equals_gpt2() -> None:
    config = GPT2Config(n_embd=DIM, n_head=HEADS, n_positions=TOKENS, attn_pdrop=0.0, resid_pdrop=0.0)
    config._attn_implementation = "eager"

    def weights_of(weights: Weights) -> Weights:
        qkv = torch.cat([weights["q.weight"], weights["k.weight"], weights["v.weight"]]).T
        zeros = {"c_attn.bias": torch.zeros(3 * DIM), "c_proj.bias": torch.zeros(DIM)}
        return {"c_attn.weight": qkv, "c_proj.weight": weights["o.weight"].T} | zeros

    part = Attention(kind="MHA", heads=HEADS, head_dim=DIM // HEADS, rope="none")
    compare(part, GPT2Attention(config, layer_idx=0), weights_of)


def latent_weights(weights: Weights) -> Weights:
    """Ours as DeepSeek stacks them: per head unrotated before rotated, keys before values."""

    def by_head(*names: str) -> Tensor:
        return torch.cat([weights[name].unflatten(0, (HEADS, -1)) for name in names], 1).flatten(0, 1)

    return {
        "q_proj.weight": by_head("q.weight", "q_rope.weight"),
        "kv_a_proj_with_mqa.weight": torch.cat([weights["kv_down.weight"], weights["k_rope.weight"]]),
        "kv_a_layernorm.weight": weights["latent_norm.weight"],
        "kv_b_proj.weight": by_head("k_up.weight", "v_up.weight"),
        "o_proj.weight": weights["o.weight"],
    }


def latent_config(config: type[Any], **more: Any) -> Any:
    made = config(
        hidden_size=DIM, num_attention_heads=HEADS, num_key_value_heads=HEADS, num_hidden_layers=1,
        kv_lora_rank=LATENT, qk_nope_head_dim=WIDTH, v_head_dim=WIDTH, qk_rope_head_dim=ROTATED,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0}, **more,
    )  # fmt: skip
    made._attn_implementation = "eager"
    return made


def latent_part(**more: Any) -> LatentAttention:
    return LatentAttention(heads=HEADS, head_dim=WIDTH, kv_latent_dim=LATENT, rope_head_dim=ROTATED, **more)


def with_eps(peer: nn.Module, name: str) -> nn.Module:
    peer.get_submodule(name).variance_epsilon = 1e-5
    return peer


def test_latent_attention_equals_deepseek_v3() -> None:
    config = latent_config(DeepseekV3Config, q_lora_rank=None)
    peer = with_eps(DeepseekV3Attention(config, 0), "kv_a_layernorm")
    compare(latent_part(), peer, latent_weights, position_embeddings=rotary(DeepseekV3RotaryEmbedding, config))


@pytest.mark.parametrize("topk", [4, 20, 100])
def test_the_selector_equals_deepseek_v32(topk: int) -> None:
    """Its low-rank queries are made plain: an identity, and a norm that leaves inputs of unit mean square alone.

    With so many indexer heads no two scores are equal, all ReLUs at zero: among equals the peer leaves it to torch.
    """
    config = latent_config(
        DeepseekV32Config, q_lora_rank=DIM, index_topk=topk, index_n_heads=32, index_head_dim=ROTATED
    )
    peer = with_eps(DeepseekV32Attention(config, 0), "kv_a_layernorm")
    peer.get_submodule("indexer.k_norm").eps = 1e-5

    def weights_of(weights: Weights) -> Weights:
        made = latent_weights(weights)
        made["q_b_proj.weight"] = made.pop("q_proj.weight")
        made |= {"q_a_proj.weight": torch.eye(DIM), "q_a_layernorm.weight": torch.ones(DIM)}
        selector = {name.removeprefix("selector."): p for name, p in weights.items() if name.startswith("selector.")}
        return made | {
            "indexer.wq_b.weight": halves(selector["q.weight"], ROTATED),
            "indexer.wk.weight": halves(selector["k.weight"], ROTATED),
            "indexer.k_norm.weight": halves(selector["k_norm.weight"], ROTATED),
            "indexer.k_norm.bias": halves(selector["k_norm.bias"], ROTATED),
            "indexer.weights_proj.weight": selector["w.weight"],
        }

    part = latent_part(selector="dsa", selector_topk=topk, selector_heads=32, selector_dim=ROTATED)
    tables = rotary(DeepseekV3RotaryEmbedding, config)
    compare(part, peer, weights_of, position_embeddings=tables, position_ids=torch.arange(TOKENS)[None])
