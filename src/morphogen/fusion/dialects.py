"""Architectures of other frameworks as data: what their configs' fields and their tensors are called.

A `Dialect` says it for decoders of attention and feed-forward layers. A new architecture of that shape is an entry of
`DIALECTS`; `fusion.describe` reads it. No torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from morphogen.parts.contract.context import NormKind

#: Their names of activations -> ours; those of a gate, too.
PLAIN: Mapping[str, str] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "relu": "relu",
    "relu2": "relu2",
    "relu_squared": "relu2",
    "silu": "silu",
    "swish": "silu",
}
GATE: Mapping[str, str] = {"silu": "swiglu", "gelu": "geglu", "gelu_tanh": "geglu_tanh"}


@dataclass(frozen=True)
class Dialect:
    """How a decoder of attention and feed-forward layers is called; the defaults are Llama's.

    Names of configs' fields end in `_key` (None: there is none), names of tensors do not. Tensors of a layer are named
    below `layer`, and those without a name are not there. fixed: fields that have to have one of the values given.
    """

    prefix: str = "model."
    layer: str = "model.layers.{}."
    embedding: str = "model.embed_tokens.weight"
    positions: str | None = None
    final_norm: str = "model.norm"
    head: str = "lm_head"
    attn_norm: str = "input_layernorm"
    ffn_norm: str = "post_attention_layernorm"
    heads: tuple[str, ...] = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    fused: Literal["rows", "interleaved"] = "rows"
    out: str = "self_attn.o_proj"
    qk_norm: Literal["none", "rms", "layer"] = "none"
    gate: str | None = "mlp.gate_proj"
    up: str = "mlp.up_proj"
    down: str = "mlp.down_proj"
    gate_up: str | None = None
    transposed: bool = False
    norm: NormKind = "rmsnorm"
    norm_weight: bool = True
    norm_plus: float = 0.0
    scaled_embedding: bool = False
    attn_bias: Literal["none", "qkv", "all"] = "none"
    attn_bias_key: str | None = None
    mlp_bias: bool = False
    mlp_bias_key: str | None = None
    head_bias: bool = False
    parallel_key: str | None = None
    parallel: bool = False
    dim_key: str = "hidden_size"
    layers_key: str = "num_hidden_layers"
    heads_key: str = "num_attention_heads"
    kv_heads_key: str | None = "num_key_value_heads"
    head_dim_key: str | None = "head_dim"
    hidden_key: str = "intermediate_size"
    eps_key: str | None = "rms_norm_eps"
    activation_key: str = "hidden_act"
    positions_key: str | None = None
    rope: bool = True
    partial_rope: bool = False
    sliding: Literal["none", "all", "layers"] = "none"
    dropout_keys: Mapping[str, str] = field(default_factory=lambda: {"attention_dropout": "attn.dropout"})
    fixed: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)


#: model_type -> its dialect.
DIALECTS: Mapping[str, Dialect] = {
    "llama": Dialect(
        attn_bias="all",
        attn_bias_key="attention_bias",
        mlp_bias=True,
        mlp_bias_key="mlp_bias",
        fixed={"pretraining_tp": (1,)},
    ),
    "mistral": Dialect(sliding="all"),
    "qwen2": Dialect(attn_bias="qkv", sliding="layers"),
    "qwen3": Dialect(attn_bias="all", attn_bias_key="attention_bias", qk_norm="rms", sliding="layers"),
    "gemma": Dialect(
        norm_plus=1.0,
        scaled_embedding=True,
        attn_bias="all",
        attn_bias_key="attention_bias",
        fixed={
            "use_bidirectional_attention": (None, False),
            "hidden_activation": (None, "gelu_pytorch_tanh"),  # which its class does not read any more
        },
    ),
    "phi3": Dialect(
        partial_rope=True,
        heads=("self_attn.qkv_proj",),
        gate_up="mlp.gate_up_proj",
        sliding="all",
        dropout_keys={"attention_dropout": "attn.dropout", "embd_pdrop": "emb.dropout"},
    ),
    "olmo": Dialect(
        norm="layernorm",
        norm_weight=False,
        eps_key=None,
        attn_bias="all",
        attn_bias_key="attention_bias",
        fixed={"clip_qkv": (None,)},
    ),
    "stablelm": Dialect(
        partial_rope=True,
        norm="layernorm",
        eps_key="layer_norm_eps",
        attn_bias="qkv",
        attn_bias_key="use_qkv_bias",
        head_dim_key=None,
        fixed={"qk_layernorm": (False,), "use_parallel_residual": (False,)},
    ),
    "starcoder2": Dialect(
        norm="layernorm",
        eps_key="norm_epsilon",
        gate=None,
        up="mlp.c_fc",
        down="mlp.c_proj",
        attn_bias="all",
        attn_bias_key="use_bias",
        mlp_bias=True,
        mlp_bias_key="use_bias",
        sliding="all",
        dropout_keys={"attention_dropout": "attn.dropout", "embedding_dropout": "emb.dropout"},
    ),
    "phi": Dialect(
        partial_rope=True,
        norm="layernorm",
        eps_key="layer_norm_eps",
        final_norm="model.final_layernorm",
        ffn_norm="input_layernorm",
        parallel=True,
        out="self_attn.dense",
        gate=None,
        up="mlp.fc1",
        down="mlp.fc2",
        attn_bias="all",
        mlp_bias=True,
        head_bias=True,
        dropout_keys={"attention_dropout": "attn.dropout", "embd_pdrop": "emb.dropout"},
        fixed={"qk_layernorm": (False,)},
    ),
    "gpt_neox": Dialect(
        partial_rope=True,
        norm="layernorm",
        eps_key="layer_norm_eps",
        prefix="gpt_neox.",
        layer="gpt_neox.layers.{}.",
        embedding="gpt_neox.embed_in.weight",
        final_norm="gpt_neox.final_layer_norm",
        head="embed_out",
        parallel=True,
        parallel_key="use_parallel_residual",
        heads=("attention.query_key_value",),
        fused="interleaved",
        out="attention.dense",
        gate=None,
        up="mlp.dense_h_to_4h",
        down="mlp.dense_4h_to_h",
        attn_bias="all",
        attn_bias_key="attention_bias",
        mlp_bias=True,
        kv_heads_key=None,
        head_dim_key=None,
    ),
    "gpt2": Dialect(
        prefix="transformer.",
        layer="transformer.h.{}.",
        embedding="transformer.wte.weight",
        positions="transformer.wpe.weight",
        final_norm="transformer.ln_f",
        attn_norm="ln_1",
        ffn_norm="ln_2",
        heads=("attn.c_attn",),
        out="attn.c_proj",
        gate=None,
        up="mlp.c_fc",
        down="mlp.c_proj",
        transposed=True,
        norm="layernorm",
        attn_bias="all",
        mlp_bias=True,
        dim_key="n_embd",
        layers_key="n_layer",
        heads_key="n_head",
        kv_heads_key=None,
        head_dim_key=None,
        hidden_key="n_inner",
        eps_key="layer_norm_epsilon",
        activation_key="activation_function",
        positions_key="n_positions",
        rope=False,
        dropout_keys={"attn_pdrop": "attn.dropout", "embd_pdrop": "emb.dropout"},
        fixed={
            "scale_attn_weights": (True,),
            "scale_attn_by_inverse_layer_idx": (False,),
            "add_cross_attention": (False,),
        },
    ),
}
#: Architectures that are known, and what of them a blueprint cannot say.
REFUSED: Mapping[str, str] = {
    "olmo2": "its norms stand after the branches instead of before, and one norm spans all heads",
    "gemma2": "its branches have a second norm, after them",
    "gemma3_text": "its branches have a second norm, after them",
    "bloom": "its embedding has a norm",
    "falcon_mamba": "its state-space layers norm b, c and dt",
    "cohere": "its logits are scaled and its rotation is of another order",
}
#: Fields that say nothing of what is computed from tokens to logits.
SILENT = frozenset(
    [
        "model_type",
        "transformers_version",
        "architectures",
        "torch_dtype",
        "dtype",
        "_name_or_path",
        "name_or_path",
        "use_cache",
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
        "sep_token_id",
        "decoder_start_token_id",
        "initializer_range",
        "max_position_embeddings",
        "original_max_position_embeddings",
        "id2label",
        "label2id",
        "problem_type",
        "return_dict",
        "output_attentions",
        "output_hidden_states",
        "chunk_size_feed_forward",
        "is_encoder_decoder",
        "is_decoder",
        "task_specific_params",
        "summary_type",
        "summary_use_proj",
        "summary_activation",
        "summary_proj_to_labels",
        "summary_first_dropout",
        "classifier_dropout",
        "max_window_layers",
        "use_sliding_window",
        "no_rope_layer_interval",
        "reorder_and_upcast_attn",
        "rope_theta",
        "rope_scaling",
        "partial_rotary_factor",
        "tokenizer_class",
        "attn_implementation",
        "_attn_implementation",
        "gradient_checkpointing",
        "n_ctx",
    ]
)
#: Dropout that a blueprint does not have, and what it is of.
DROPOUTS = ("resid_pdrop", "hidden_dropout", "residual_dropout")
