"""Who runs against whom in `speed.py`: every kind of part, and what is nearest to it in transformers or torch.

A maker gives, for so many sequences of so many tokens, in fp32 or under bf16 autocast, a forward and a backward pass as
one call. `layer` makers run whole branches without their norm, projections included; `op` makers run attention alone on
given q, k and v.

B batch, H heads, T tokens, E head width, D model dim
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
import transformers
from torch import Tensor
from torch.nn import functional as F
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Attention, DeepseekV3RotaryEmbedding
from transformers.models.deepseek_v32.modeling_deepseek_v32 import DeepseekV32Attention, DeepseekV32RotaryEmbedding
from transformers.models.lfm2.modeling_lfm2 import Lfm2ShortConv
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRotaryEmbedding
from transformers.models.mamba.modeling_mamba import MambaMixer
from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer
from transformers.models.minimax.modeling_minimax import MiniMaxLightningAttention
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock
from transformers.models.qwen3_next.modeling_qwen3_next import torch_chunk_gated_delta_rule

from morphogen.ops import naive_memory
from morphogen.ops.fast_weights import delta_memory
from morphogen.ops.linear_attention import gated_delta, linear_attention, unit
from morphogen.ops.patterns import Pattern
from morphogen.ops.sparse_attention import attend
from morphogen.ops.visibility import visible
from morphogen.parts.attention.attention import Attention
from morphogen.parts.attention.latent_attention import LatentAttention
from morphogen.parts.attention.linear_attention import LinearAttention
from morphogen.parts.contract.initial import draw
from morphogen.parts.contract.part import Context, Part
from morphogen.parts.ffn.mlp import MLP
from morphogen.parts.ffn.moe import MoE
from morphogen.parts.memory.associative_memory import AssocMemory
from morphogen.parts.memory.chunk_memory import ChunkMemory
from morphogen.parts.memory.memory_tokens import MemoryTokens
from morphogen.parts.memory.retro import Retro
from morphogen.parts.mixing.short_conv import ShortConv
from morphogen.parts.ssm import mamba2_layer, mamba_layer
from morphogen.parts.ssm.mamba import Mamba
from morphogen.parts.ssm.mamba2 import Mamba2
from morphogen.parts.ssm.ssm_layer import stacked
from training_step import llama_like, our_step, peer_llama, peer_step

DIM, HEADS, WIDTH, SIZE = 256, 4, 64, 128
SIZES = {"heads": HEADS, "head_dim": WIDTH}
Step = Callable[[], object]
#: (sequences, tokens of each, whether under bf16 autocast) to a step.
Maker = Callable[[int, int, bool], Step]


@dataclass(frozen=True)
class Match:
    """One row of the table. at: tokens of the sequences on which the peer is met. batch: so many of them.

    least: the peer's time over ours that is asked for. growth: whether it is asked to grow by an exponent of 1.15.
    rounds: fewer where the peer takes seconds.
    """

    kind: str
    peer: str
    ours: Maker
    theirs: Maker
    at: int = 1024
    batch: int = 2
    least: float = 1.0
    growth: bool = True
    rounds: int | None = None
    lengths: Sequence[int] = field(default=(512, 1024, 2048, 4096))


def branch(part: Part) -> Any:
    """The part's module, freshly drawn."""
    ctx = Context(DIM, "rmsnorm", vocab=256, init_std=0.02, branches=2)
    module, noise = part.build(ctx), torch.Generator().manual_seed(0)
    module.load_state_dict({n: draw(s.init, s.shape, noise) for n, s in part.specs(ctx).items()}, assign=True)
    return module


def passes(function: Callable[[], Tensor], leaves: Sequence[Tensor], bf16: bool) -> Step:
    """A forward pass, and a backward pass to all of `leaves`."""
    with torch.no_grad():
        gradient = torch.randn(function().shape, generator=torch.Generator().manual_seed(2))

    def step() -> object:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            y = function()
        return torch.autograd.grad(y, leaves, gradient.to(y.dtype), allow_unused=True)

    return step


def layer(module: Any, call: Callable[..., Any] | None = None, width: int = DIM) -> Maker:
    """A whole layer: `call(x)`, or the module's `mix`."""

    def make(batch: int, length: int, bf16: bool) -> Step:
        x_BTD = torch.randn(batch, length, width, generator=torch.Generator().manual_seed(1)).requires_grad_()
        run = call or module.mix
        return passes(lambda: run(x_BTD), [x_BTD, *module.parameters()], bf16)

    return make


def op(function: Callable[..., Tensor], inputs: int = 3) -> Maker:
    """q, k, v as projections give them, then log decays and the delta rule's beta; the first `inputs` of them."""

    def make(batch: int, length: int, bf16: bool) -> Step:
        noise = torch.Generator().manual_seed(0)
        q, k, v = (torch.randn(batch, length, HEADS, WIDTH, generator=noise).transpose(1, 2) for _ in range(3))
        g, beta = (torch.rand(batch, HEADS, length, generator=noise) for _ in range(2))
        leaves = [t.clone().requires_grad_() for t in (unit(q), unit(k), v, -0.1 * g, beta)[:inputs]]
        return passes(lambda: function(*leaves), leaves, bf16)

    return make


def trained(ours: bool) -> Maker:
    """A whole training step of a small Llama, optimizer included."""

    def make(batch: int, length: int, bf16: bool) -> Step:
        if ours:
            return our_step(llama_like(), batch, length, bf16=bf16)
        return peer_step(peer_llama(length), batch, length, bf16=bf16, fused=True)

    return make


# ------------------------------------------------------------------------------------------------ attention


def masked(pattern: Pattern) -> Maker:
    """Torch's attention under the pattern as a boolean mask."""

    @functools.cache
    def mask_of(length: int) -> Tensor:
        at_T = torch.arange(length)
        return visible(pattern, at_T[:, None], at_T)

    return op(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=mask_of(q.shape[2])))


def fused(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Torch's causal attention."""
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def llama() -> Maker:
    """transformers' attention layer with its SDPA path."""
    config = transformers.LlamaConfig(
        hidden_size=DIM, num_attention_heads=HEADS, head_dim=WIDTH, attn_implementation="sdpa",
    )  # fmt: skip
    peer, rotary = LlamaAttention(config, 0), LlamaRotaryEmbedding(config)
    return layer(peer, lambda x: peer(x, rotary(x, torch.arange(x.shape[1])[None]), attention_mask=None)[0])


MLA = {"kv_lora_rank": 64, "qk_nope_head_dim": 32, "v_head_dim": 32, "qk_rope_head_dim": 16}


def deepseek() -> Maker:
    """transformers' latent attention."""
    config = transformers.DeepseekV3Config(
        hidden_size=DIM, num_attention_heads=HEADS, num_key_value_heads=HEADS, q_lora_rank=None, **MLA,
        attn_implementation="sdpa", rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
    )  # fmt: skip
    peer, rotary = DeepseekV3Attention(config, 0), DeepseekV3RotaryEmbedding(config)

    def call(x_BTD: Tensor) -> Tensor:
        places = rotary(x_BTD, torch.arange(x_BTD.shape[1])[None])
        y_BTD: Tensor = peer(x_BTD, position_embeddings=places, attention_mask=None)[0]
        return y_BTD

    return layer(peer, call)


def deepseek_sparse(topk: int) -> Maker:
    """transformers' latent attention with an indexer: the tokens picked become a mask."""
    config = transformers.DeepseekV32Config(
        hidden_size=DIM, num_attention_heads=HEADS, num_key_value_heads=HEADS, q_lora_rank=HEADS * 48, **MLA,
        index_n_heads=4, index_head_dim=32, index_topk=topk, attn_implementation="sdpa",
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
    )  # fmt: skip
    peer, rotary = DeepseekV32Attention(config, 0), DeepseekV32RotaryEmbedding(config)

    def call(x_BTD: Tensor) -> Tensor:
        places_1T = torch.arange(x_BTD.shape[1])[None]
        mask = torch.ones(x_BTD.shape[1], x_BTD.shape[1], dtype=torch.bool).tril().expand(len(x_BTD), 1, -1, -1)
        y_BTD: Tensor = peer(x_BTD, rotary(x_BTD, places_1T), mask, position_ids=places_1T)[0]
        return y_BTD

    return layer(peer, call)


# ------------------------------------------------------------------------------------------- linear attention


def normalised(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Weighted means, as by `decay: none` with a positive feature map."""
    y = linear_attention(q[:, :, None], k, torch.cat([v, torch.ones_like(v[..., :1])], -1))[0][:, :, 0]
    return y[..., :-1] / (y[..., -1:] + 1e-6)


def retention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A fixed decay per head."""
    return linear_attention(q[:, :, None], k, v, -torch.linspace(0.002, 0.03, HEADS)[None, :, None])[0]


def gated(q: Tensor, k: Tensor, v: Tensor, g: Tensor) -> Tensor:
    """A decay per head and token."""
    return linear_attention(q[:, :, None], k, v, g)[0]


def delta(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor) -> Tensor:
    """The gated delta rule."""
    return gated_delta(q[:, :, None], k, v, g, beta)[0]


def delta_of_transformers(*inputs: Tensor) -> Tensor:
    """The gated delta rule, by transformers' chunked path; its tensors have heads after tokens."""
    y: Tensor = torch_chunk_gated_delta_rule(*(x.transpose(1, 2) for x in inputs))[0]
    return y


def lightning() -> Maker:
    """transformers' chunked attention with a fixed decay per head: MiniMax's layer, gated."""
    config = transformers.MiniMaxConfig(
        hidden_size=DIM, num_attention_heads=HEADS, num_key_value_heads=HEADS, head_dim=WIDTH, num_hidden_layers=2,
        layer_types=["linear_attention", "full_attention"],
    )  # fmt: skip
    peer = MiniMaxLightningAttention(config, 0)
    return layer(peer, lambda x: peer(x, position_embeddings=None, attention_mask=None)[0])


# ----------------------------------------------------------------------------------------- recurrences, experts


def mamba_mixer(part: Mamba | Mamba2) -> Any:
    """The transformers mixer of the same sizes, its chunk as it ships."""
    sizes = {"hidden_size": DIM, "state_size": part.d_state, "expand": 2, "num_hidden_layers": 1}
    if part.label == "mamba":
        return MambaMixer(transformers.MambaConfig(**sizes), layer_idx=0)
    heads = {"num_heads": 2 * DIM // part.head_dim, "head_dim": part.head_dim, "n_groups": 1}
    return Mamba2Mixer(transformers.Mamba2Config(**sizes, **heads), layer_idx=0)


def scans(part: Mamba | Mamba2) -> tuple[Maker, Maker]:
    """What lies between the first and the last projection of a layer: convolution, scan, gate; ours, transformers'."""
    ours, peer, module = branch(part), mamba_mixer(part), mamba_layer if part.label == "mamba" else mamba2_layer
    width = peer.in_proj.out_features
    for projection in (ours.out, peer.in_proj, peer.out_proj):
        projection.forward = lambda x: x

    def all_but_first(layers: Sequence[Any], x: Tensor) -> Tensor:
        return x if any(each is ours.x for each in layers) else stacked(layers, x)

    def call(x_BTC: Tensor) -> Any:
        with mock.patch.object(module, "stacked", all_but_first):
            return ours.mix(x_BTC)

    return layer(ours, call, width), layer(peer, peer, width)


def skewed_module(n_experts: int, skewed: bool) -> Any:
    """A mixture whose router prefers some experts, the busiest by several times, or none."""
    ours = branch(MoE(hidden=512, n_experts=n_experts, k=2))
    with torch.no_grad():
        ours.router.weight.mul_(3.0)
        if skewed:
            ours.router.weight.mul_(torch.linspace(0.3, 3.0, n_experts)[:, None])
    return ours


def mixtral(ours: Any) -> Maker:
    """transformers' mixture by grouped matmuls, with the weights of `ours`, so that it routes alike."""
    n_experts, hidden, _ = ours.up.weight.shape
    config = transformers.MixtralConfig(
        hidden_size=DIM, intermediate_size=hidden, num_local_experts=n_experts, num_experts_per_tok=2,
    )  # fmt: skip
    config._experts_implementation = "grouped_mm"
    peer: Any = MixtralSparseMoeBlock(config)
    with torch.no_grad():
        peer.gate.weight.copy_(ours.router.weight)
        peer.experts.gate_up_proj.copy_(torch.cat([ours.gate.weight, ours.up.weight], 1))
        peer.experts.down_proj.copy_(ours.down.weight.mT)
    return layer(peer, peer)


# --------------------------------------------------------------------------------------------------- memories


def conv_of_lfm2() -> Maker:
    """transformers' gated short convolution."""
    config = transformers.Lfm2Config(
        hidden_size=DIM, num_hidden_layers=1, conv_L_cache=4, conv_bias=False, layer_types=["conv"],
        num_attention_heads=HEADS, num_key_value_heads=HEADS, vocab_size=8, intermediate_size=16,
    )  # fmt: skip
    return layer(peer := Lfm2ShortConv(config, 0), peer)


def memory(function: Callable[..., tuple[Tensor, Tensor]]) -> Maker:
    """Fast weights under the delta rule."""

    def run(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor) -> Tensor:
        return function(q, k, v, beta, q.new_zeros(len(q), HEADS, WIDTH, WIDTH))[0]

    return op(run, 5)


# ---------------------------------------------------------------------------------------------------- the card


#: Of a long sequence, alone in its batch.
FAR = {"at": 4096, "batch": 1}


def matches() -> list[Match]:
    """All of them."""
    dense = llama()
    return [
        Match("training step, 6 layers", "Llama", trained(True), trained(False), 256, 8, lengths=()),
        *attentions(dense),
        *linear_attentions(),
        *ssms(),
        *mixtures(),
        *memories(dense),
    ]


def attentions(dense: Maker) -> Iterator[Match]:
    """Softmax attention: dense, by pattern, over latents, and by a selector."""
    yield Match("attn, dense", "Llama attention", layer(branch(Attention(kind="MHA", **SIZES))), dense, growth=False)
    patterns = {
        "sliding": (Pattern("sliding", window=SIZE), 12.0),
        "block": (Pattern("block", block_size=SIZE), 12.0),
        "dilated": (Pattern("dilated", dilation=16), 1.0),
        "local_global": (Pattern("local_global", window=SIZE, global_stride=SIZE), 1.0),
        "local_block": (Pattern("local_block", window=SIZE, block_size=SIZE, block_stride=8), 1.0),
    }
    for name, (pattern, least) in patterns.items():
        ours = op(functools.partial(attend, pattern=pattern))
        yield Match(f"{name}, op", "masked SDPA", ours, masked(pattern), least=least, **FAR)
    latent = {"heads": HEADS, "head_dim": 32, "kv_latent_dim": 64, "rope_head_dim": 16}
    yield Match("MLA", "DeepSeek V3 attention", layer(branch(LatentAttention(**latent))), deepseek(), growth=False)
    sparse = layer(branch(LatentAttention(**latent, selector="dsa", selector_topk=64)))
    yield Match("MLA, selector dsa, 64", "DeepSeek V3.2 attention", sparse, deepseek_sparse(64), growth=False)
    chosen = layer(branch(Attention(kind="MHA", **SIZES, selector="dsa", selector_topk=64)))
    yield Match("MHA, selector dsa, 64", "Llama attention", chosen, dense, growth=False, **FAR)


def linear_attentions() -> Iterator[Match]:
    """Attention without a softmax, by its decay."""
    yield Match("LINEAR none, op", "SDPA", op(normalised), op(fused), **FAR)
    yield Match("LINEAR retention, op", "SDPA", op(retention), op(fused), **FAR)
    retaining = LinearAttention(**SIZES, decay="retention")
    yield Match("LINEAR retention", "MiniMax lightning", layer(branch(retaining)), lightning())
    yield Match("LINEAR gated, op", "SDPA", op(gated, 4), op(fused), **FAR)
    yield Match("LINEAR delta, op", "Qwen3-Next delta rule", op(delta, 5), op(delta_of_transformers, 5))


def ssms() -> Iterator[Match]:
    """State-space mixers, and their scans alone."""
    for ssm, least in ((Mamba(d_state=16), 50.0), (Mamba2(d_state=16, head_dim=64), 3.5),
                       (Mamba2(d_state=64, head_dim=64), 3.5)):  # fmt: skip
        mixer, rounds = mamba_mixer(ssm), 1 if ssm.label == "mamba" else None
        ours, peer = layer(branch(ssm)), layer(mixer, mixer)
        for at, lengths in ((512, {"lengths": ()}), (1024, {})):
            name = f"{ssm.label}, state {ssm.d_state}"
            yield Match(name, f"{ssm.label} mixer", ours, peer, at, 1, least, rounds=rounds, **lengths)
        name, theirs = f"{ssm.label} scan, state {ssm.d_state}", f"{ssm.label} mixer's"
        for at in (512, 1024):
            yield Match(name, theirs, *scans(ssm), at, 1, least, rounds=rounds, lengths=())


def mixtures() -> Iterator[Match]:
    """Mixtures of experts, with even routers and skewed ones."""
    wide = layer(branch(MLP(hidden=1024)))
    for n_experts in (8, 32):
        for skewed in (False, True):
            module = skewed_module(n_experts, skewed)
            name = f"moe, {n_experts} experts" + (", skewed" if skewed else "")
            yield Match(name, "Mixtral, grouped", layer(module), mixtral(module), 256, 8, lengths=())
            yield Match(name, "dense, same FLOPs", layer(module), wide, 256, 8, 1 / 1.15, lengths=())


def memories(dense: Maker) -> Iterator[Match]:
    """What remembers, and short convolutions."""
    loop = naive_memory.delta_memory
    yield Match("retro, 64 of 32", "Llama attention", layer(branch(Retro(**SIZES))), dense, **FAR)
    yield Match("chunk_memory, 64 by 32", "Llama attention", layer(branch(ChunkMemory(**SIZES))), dense, **FAR)
    yield Match("memory_tokens, 64", "Llama attention", layer(branch(MemoryTokens(tokens=64, **SIZES))), dense, **FAR)
    yield Match("assoc_memory", "Llama attention", layer(branch(AssocMemory(**SIZES))), dense, **FAR)
    yield Match("assoc_memory, op", "loop over tokens", memory(delta_memory), memory(loop), 512, rounds=1)
    yield Match("short_conv, 4", "Lfm2 short conv", layer(branch(ShortConv())), conv_of_lfm2())
