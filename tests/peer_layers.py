"""State-space, feed-forward and convolution layers beside those of transformers. B batch, T tokens, D model dim"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, Mamba2Config, MambaConfig, NemotronConfig
from transformers.models.deepseek_v3 import modeling_deepseek_v3 as deepseek_v3
from transformers.models.lfm2.configuration_lfm2 import Lfm2Config
from transformers.models.lfm2.modeling_lfm2 import Lfm2ShortConv
from transformers.models.llama.modeling_llama import LlamaMLP
from transformers.models.mamba.modeling_mamba import MambaMixer
from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer
from transformers.models.mixtral import modeling_mixtral as mixtral
from transformers.models.nemotron.modeling_nemotron import NemotronMLP
from transformers.models.olmoe import modeling_olmoe as olmoe

from morphogen.parts.ffn.mlp import MLP
from morphogen.parts.ffn.moe import MoE
from morphogen.parts.mixing.short_conv import ShortConv
from morphogen.parts.ssm.mamba import Mamba
from morphogen.parts.ssm.mamba2 import Mamba2
from peers import DIM, Case, Weights, case, layer


def mamba2() -> Case:
    """Several heads over channels that the convolution mixes in time."""
    part = Mamba2(d_state=9, head_dim=16, chunk=16)
    heads = {"num_heads": 2 * DIM // 16, "head_dim": 16, "n_groups": 1, "chunk_size": 32, "state_size": 9}
    config = Mamba2Config(
        hidden_size=DIM, conv_kernel=4, expand=2, num_hidden_layers=1, layer_norm_epsilon=1e-5, **heads
    )

    def weights_of(weights: Weights) -> Weights:
        convs = [weights[f"conv_{name}.weight"] for name in "xbc"]
        return {
            "in_proj.weight": torch.cat([weights[f"{name}.weight"] for name in ("z", "x", "b", "c", "dt")]),
            "conv1d.weight": torch.cat(convs)[:, None],
            "conv1d.bias": torch.cat([weights[f"conv_{name}.bias"] for name in "xbc"]),
            "A_log": weights["a_log"],
            "dt_bias": weights["dt_bias"],
            "D": weights["d"],
            "norm.weight": weights["out_norm.weight"],
            "out_proj.weight": weights["out.weight"],
        }

    return case("mamba2", "Mamba-2", part, layer(Mamba2Mixer(config, layer_idx=0), weights_of))


def mamba() -> Case:
    """A decay per channel and state."""
    part = Mamba(d_state=9, dt_rank=5, chunk=16)
    config = MambaConfig(hidden_size=DIM, state_size=9, conv_kernel=4, expand=2, num_hidden_layers=1, time_step_rank=5)

    def weights_of(weights: Weights) -> Weights:
        return {
            "in_proj.weight": torch.cat([weights["x.weight"], weights["z.weight"]]),
            "conv1d.weight": weights["conv_x.weight"][:, None],
            "conv1d.bias": weights["conv_x.bias"],
            "x_proj.weight": torch.cat([weights[f"{name}.weight"] for name in ("dt_down", "b", "c")]),
            "dt_proj.weight": weights["dt_up.weight"],
            "dt_proj.bias": weights["dt_bias"],
            "A_log": weights["a_log"].view(9, -1).t(),
            "D": weights["d"],
            "out_proj.weight": weights["out.weight"],
        }

    return case("mamba", "Mamba", part, layer(MambaMixer(config, layer_idx=0), weights_of))


def dense(activation: Any) -> Case:
    """With a gate Llama's layer, without one Nemotron's."""
    part = MLP(hidden=40, activation=activation)
    gate = {"swiglu": "silu", "geglu": "gelu"}.get(activation)
    if gate is None:
        config = NemotronConfig(hidden_size=DIM, num_attention_heads=2, intermediate_size=40, hidden_act=activation)
        return case(f"dense {activation}", "Nemotron", part, layer(NemotronMLP(config), projections))
    config = LlamaConfig(hidden_size=DIM, num_attention_heads=2, intermediate_size=40, hidden_act=gate)
    return case(f"dense {activation}", "Llama", part, layer(LlamaMLP(config), projections))


def projections(weights: Weights) -> Weights:
    """Up and down, and the gate where there is one."""
    return {
        f"{name}_proj.weight": weights[f"{name}.weight"]
        for name in ("up", "gate", "down")
        if f"{name}.weight" in weights
    }


def routed(weights: Weights) -> dict[str, Tensor]:
    """Our router's and stacked experts' weights under the peers' names."""
    return {
        "gate.weight": weights["router.weight"],
        "experts.gate_up_proj": torch.cat([weights["gate.weight"], weights["up.weight"]], 1),
        "experts.down_proj": weights["down.weight"].mT,
    }


def moes() -> Iterator[Case]:
    """Softmax routers that renormalise over the chosen, and the sigmoid router with a bias and shared experts."""
    config: Any = mixtral.MixtralConfig(
        hidden_size=DIM, intermediate_size=24, num_local_experts=6, num_experts_per_tok=2
    )
    part = MoE(hidden=24, n_experts=6, k=2)
    yield case("moe softmax top 2", "Mixtral", part, layer(mixtral.MixtralSparseMoeBlock(config), routed))
    config = olmoe.OlmoeConfig(
        hidden_size=DIM, intermediate_size=8, num_experts=8, num_experts_per_tok=4, norm_topk_prob=True
    )
    part = MoE(hidden=8, n_experts=8, k=4)
    yield case("moe softmax top 4", "OLMoE", part, layer(olmoe.OlmoeSparseMoeBlock(config), routed))
    config = deepseek_v3.DeepseekV3Config(
        hidden_size=DIM, moe_intermediate_size=12, n_routed_experts=8, num_local_experts=8, num_experts_per_tok=3,
        n_shared_experts=2, n_group=1, topk_group=1, norm_topk_prob=True, routed_scaling_factor=1.0,
    )  # fmt: skip

    def weights_of(weights: Weights) -> Weights:
        shared = {f"shared_experts.{n}_proj.weight": weights[f"shared_{n}.weight"] for n in ("up", "gate", "down")}
        return routed(weights) | shared | {"gate.e_score_correction_bias": weights["router.bias"]}

    part = MoE(hidden=12, n_experts=8, k=3, shared=2, router_type="sigmoid", router_bias="aux_free")
    yield case(
        "moe sigmoid, shared, aux_free", "DeepSeek V3", part, layer(deepseek_v3.DeepseekV3MoE(config), weights_of)
    )


def short_conv() -> Case:
    """Gated, over four tokens."""
    config = Lfm2Config(
        hidden_size=DIM, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, conv_L_cache=4,
        conv_bias=False, layer_types=["conv"], vocab_size=8, intermediate_size=16,
    )  # fmt: skip

    def weights_of(weights: Weights) -> Weights:
        return {
            "in_proj.weight": weights["bch.weight"],
            "conv.weight": weights["taps"].flip(1)[:, None],
            "out_proj.weight": weights["o.weight"],
        }

    return case("short_conv", "LFM2", ShortConv(kernel=4), layer(Lfm2ShortConv(config, 0), weights_of))


def cases() -> Iterator[Case]:
    """Every one."""
    yield mamba2()
    yield mamba()
    yield from (dense(name) for name in ("swiglu", "geglu", "gelu", "relu", "relu2", "silu"))
    yield from moes()
    yield short_conv()
