"""Kinds of attention beside the layers of transformers. B batch, T tokens, D model dim"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import (
    DeepseekV3Config,
    DeepseekV32Config,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    MptConfig,
    Qwen3Config,
    Qwen3NextConfig,
    StableLmConfig,
)
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Attention, DeepseekV3RotaryEmbedding
from transformers.models.deepseek_v32.modeling_deepseek_v32 import DeepseekV32Attention
from transformers.models.gemma2.modeling_gemma2 import Gemma2Attention
from transformers.models.gpt2.modeling_gpt2 import GPT2Attention
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRotaryEmbedding
from transformers.models.mpt.modeling_mpt import MptAttention, build_mpt_alibi_tensor
from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention
from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextGatedDeltaNet
from transformers.models.stablelm.modeling_stablelm import StableLmAttention, StableLmRotaryEmbedding

from morphogen.ops import naive
from morphogen.ops.patterns import Pattern
from morphogen.parts.attention.attention import Attention
from morphogen.parts.attention.latent_attention import LatentAttention
from morphogen.parts.attention.linear_attention import LinearAttention
from peers import DIM, TOKENS, Case, Weights, case, causal_bias, eager, halves, layer, rotary, with_eps

HEADS, WIDTH, LATENT, ROTATED = 4, 8, 10, 6
SPARSE = {"sliding_window": 9, "block_size": 7, "block_stride": 2, "global_stride": 5, "dilation": 3}


def common(config: type[Any], rope: dict[str, Any] | None = None, **more: Any) -> Any:
    """A peer's settings at our sizes."""
    parameters = {"rope_type": "default", "rope_theta": 10_000.0, **(rope or {})}
    made = {"head_dim": WIDTH, "num_hidden_layers": 2, "attention_bias": False, **more}
    return eager(config(hidden_size=DIM, num_attention_heads=HEADS, rope_parameters=parameters, **made))


def projections(weights: Weights, width: int = WIDTH, rotated: int | None = None) -> dict[str, Tensor]:
    """q and k with pairs as halves, v and o as they are."""
    return {
        "q_proj.weight": halves(weights["q.weight"], width, rotated),
        "k_proj.weight": halves(weights["k.weight"], width, rotated),
        "v_proj.weight": weights["v.weight"],
        "o_proj.weight": weights["o.weight"],
    }


def masked(pattern: Pattern | None = None) -> dict[str, Tensor]:
    """The mask of a pattern; all of the past by default."""
    return {"attention_mask": causal_bias(naive.mask(pattern or Pattern(), TOKENS))}


def llama(name: str, part: Attention, rope: dict[str, Any] | None = None) -> Case:
    """Grouped attention with RoPE, under any pattern by a mask."""
    config = common(LlamaConfig, rope, num_key_value_heads=part.kv_heads)
    tables = rotary(LlamaRotaryEmbedding, config)
    peer = layer(LlamaAttention(config, 0), projections, position_embeddings=tables, **masked(part.pattern))
    return case(name, "Llama", part, peer)


def llamas() -> Iterator[Case]:
    """MHA, GQA, MQA, every sparsity, linear interpolation of positions, and YaRN."""
    for kind, groups in (("MHA", 1), ("GQA", 2), ("MQA", 4)):
        yield llama(f"{kind} rope", Attention(kind=kind, heads=HEADS, head_dim=WIDTH, kv_groups=groups))
    for sparsity in ("sliding", "block", "local_global", "dilated", "local_block"):
        part = Attention(kind="GQA", heads=HEADS, head_dim=WIDTH, kv_groups=2, sparsity=sparsity, **SPARSE)
        yield llama(f"GQA {sparsity}", part)
    part = Attention(kind="GQA", heads=HEADS, head_dim=WIDTH, kv_groups=2, rope_factor=4.0)
    yield llama("GQA linear rope", part, {"rope_type": "linear", "factor": 4.0})
    part = Attention(
        kind="GQA", heads=HEADS, head_dim=WIDTH, kv_groups=2, rope="yarn", rope_factor=4.0, rope_context=64
    )
    yield llama("GQA yarn", part, {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64})


def partial() -> Case:
    """The first half of each head rotated."""
    part = Attention(kind="GQA", heads=HEADS, head_dim=DIM // HEADS, kv_groups=2, rope="partial", rope_factor=0.7)
    rope = {"partial_rotary_factor": 0.7}
    config = common(StableLmConfig, rope, num_key_value_heads=2, head_dim=DIM // HEADS, use_qkv_bias=False)
    tables = rotary(StableLmRotaryEmbedding, config)

    def weights_of(weights: Weights) -> Weights:
        return projections(weights, DIM // HEADS, part.rotated_dims)

    peer = layer(StableLmAttention(config, 0), weights_of, position_embeddings=tables, **masked())
    return case("GQA partial rope", "StableLM", part, peer)


def softcapped() -> Case:
    """Logits through a soft cap."""
    config = common(Gemma2Config, num_key_value_heads=2, query_pre_attn_scalar=WIDTH, attn_logit_softcapping=0.7)
    part = Attention(kind="GQA", heads=HEADS, head_dim=WIDTH, kv_groups=2, softcap=0.7)
    tables = rotary(LlamaRotaryEmbedding, config)
    peer = layer(Gemma2Attention(config, 1), projections, position_embeddings=tables, **masked())
    return case("GQA softcap", "Gemma 2", part, peer)


def normed() -> Case:
    """Queries and keys normalised."""
    config = common(Qwen3Config, num_key_value_heads=4, rms_norm_eps=1e-5)
    part = Attention(kind="MHA", heads=HEADS, head_dim=WIDTH, qk_norm="rms")

    def weights_of(weights: Weights) -> Weights:
        norms = {f"{n}.weight": halves(weights[f"{n}.weight"], WIDTH) for n in ("q_norm", "k_norm")}
        return projections(weights) | norms

    tables = rotary(LlamaRotaryEmbedding, config)
    peer = layer(Qwen3Attention(config, 0), weights_of, position_embeddings=tables, **masked())
    return case("MHA qk_norm rms", "Qwen 3", part, peer)


def without_rope() -> Case:
    """No positions at all."""
    config = eager(GPT2Config(n_embd=DIM, n_head=HEADS, n_positions=TOKENS, attn_pdrop=0.0, resid_pdrop=0.0))

    def weights_of(weights: Weights) -> Weights:
        qkv = torch.cat([weights["q.weight"], weights["k.weight"], weights["v.weight"]]).T
        zeros = {"c_attn.bias": torch.zeros(3 * DIM), "c_proj.bias": torch.zeros(DIM)}
        return {"c_attn.weight": qkv, "c_proj.weight": weights["o.weight"].T} | zeros

    part = Attention(kind="MHA", heads=HEADS, head_dim=DIM // HEADS, rope="none")
    return case("MHA", "GPT-2", part, layer(GPT2Attention(config, layer_idx=0), weights_of, **masked()))


def alibi() -> Case:
    """Biases that fall with the distance."""
    config = MptConfig(d_model=DIM, n_heads=HEADS, n_layers=1)

    def weights_of(weights: Weights) -> Weights:
        qkv = torch.cat([weights["q.weight"], weights["k.weight"], weights["v.weight"]])
        return {"Wqkv.weight": qkv, "out_proj.weight": weights["o.weight"]}

    hidden_TT = ~naive.mask(Pattern(), TOKENS)
    bias = build_mpt_alibi_tensor(HEADS, TOKENS)
    part = Attention(kind="MHA", heads=HEADS, head_dim=DIM // HEADS, rope="none", alibi=True)
    peer = layer(MptAttention(config, 0), weights_of, position_bias=bias, attention_mask=hidden_TT)
    return case("MHA alibi", "MPT", part, peer)


def latent_weights(weights: Weights) -> dict[str, Tensor]:
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
    """DeepSeek's settings at our sizes."""
    sizes = {"kv_lora_rank": LATENT, "qk_nope_head_dim": WIDTH, "v_head_dim": WIDTH, "qk_rope_head_dim": ROTATED}
    made = common(config, num_key_value_heads=HEADS, num_hidden_layers=1, **sizes, **more)
    made.head_dim = ROTATED
    return made


def latent(**more: Any) -> LatentAttention:
    """Our side of it."""
    return LatentAttention(heads=HEADS, head_dim=WIDTH, kv_latent_dim=LATENT, rope_head_dim=ROTATED, **more)


def latents() -> Iterator[Case]:
    """Latent attention, dense and under a window."""
    config = latent_config(DeepseekV3Config, q_lora_rank=None)
    tables = rotary(DeepseekV3RotaryEmbedding, config)
    for name, part in (("MLA", latent()), ("MLA sliding", latent(sparsity="sliding", **SPARSE))):
        peer = with_eps(DeepseekV3Attention(config, 0), "kv_a_layernorm")
        run = layer(peer, latent_weights, position_embeddings=tables, **masked(part.pattern))
        yield case(name, "DeepSeek V3", part, run)


def selected(topk: int) -> Case:
    """The peer's low-rank queries are made plain: an identity, and a norm that leaves inputs of unit mean square alone.

    With so many indexer heads no two scores are equal, all ReLUs at zero: among equals the peer leaves it to torch.
    """
    config = latent_config(
        DeepseekV32Config, q_lora_rank=DIM, index_topk=topk, index_n_heads=32, index_head_dim=ROTATED
    )
    peer = with_eps(with_eps(DeepseekV32Attention(config, 0), "kv_a_layernorm"), "indexer.k_norm", "eps")

    def weights_of(weights: Weights) -> Weights:
        made = latent_weights(weights)
        made["q_b_proj.weight"] = made.pop("q_proj.weight")
        made |= {"q_a_proj.weight": torch.eye(DIM), "q_a_layernorm.weight": torch.ones(DIM)}
        own = {name.removeprefix("selector."): w for name, w in weights.items() if name.startswith("selector.")}
        return made | {
            "indexer.wq_b.weight": halves(own["q.weight"], ROTATED),
            "indexer.wk.weight": halves(own["k.weight"], ROTATED),
            "indexer.k_norm.weight": halves(own["k_norm.weight"], ROTATED),
            "indexer.k_norm.bias": halves(own["k_norm.bias"], ROTATED),
            "indexer.weights_proj.weight": own["w.weight"],
        }

    part = latent(selector="dsa", selector_topk=topk, selector_heads=32, selector_dim=ROTATED)
    tables = rotary(DeepseekV3RotaryEmbedding, config)
    inputs = {"position_embeddings": tables, "position_ids": torch.arange(TOKENS)[None]}
    made = case(f"MLA dsa top {topk}", "DeepSeek V3.2", part, layer(peer, weights_of, **inputs, **masked()))
    return replace(made, fixed=made.fixed | {"input"})  # the norm that leaves the input alone bends its gradient


def delta() -> Case:
    """Its short convolution, which is another part here, is set to pass tokens on unchanged."""
    heads, width, values = 3, 8, 12
    part = LinearAttention(
        heads=heads, head_dim=width, value_dim=values, decay="delta", gate="swish", feature_map="identity"
    )
    config = Qwen3NextConfig(
        hidden_size=DIM, linear_num_key_heads=heads, linear_num_value_heads=heads, linear_key_head_dim=width,
        linear_value_head_dim=values, linear_conv_kernel_dim=2, num_hidden_layers=1, layer_types=["linear_attention"],
        rms_norm_eps=1e-5, num_attention_heads=2, num_key_value_heads=1,
    )  # fmt: skip
    peer = Qwen3NextGatedDeltaNet(config, 0)
    peer.activation = None

    def weights_of(weights: Weights) -> Weights:
        by_head = [weights[f"{name}.weight"].view(heads, -1, DIM) for name in ("q", "k", "v", "gate")]
        rates = torch.stack([weights["beta.weight"], weights["alpha.weight"]], 1)
        return {
            "in_proj_qkvz.weight": torch.cat(by_head, 1).flatten(0, 1),
            "in_proj_ba.weight": rates.flatten(0, 1),
            "dt_bias": weights["alpha_bias"],
            "A_log": weights["alpha_log"],
            "norm.weight": weights["out_norm.weight"],
            "out_proj.weight": weights["o.weight"],
            "conv1d.weight": torch.tensor([0.0, 1.0]).expand(peer.conv1d.weight.shape),
        }

    return case("LINEAR delta", "Qwen 3 Next", part, layer(peer, weights_of))


def cases() -> Iterator[Case]:
    """Every one."""
    yield without_rope()
    yield from llamas()
    yield partial()
    yield alibi()
    yield normed()
    yield softcapped()
    yield from latents()
    yield from (selected(topk) for topk in (4, 20, 100))
    yield delta()
