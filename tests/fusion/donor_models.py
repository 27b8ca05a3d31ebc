"""Tiny random models whose layers are taken: one or several of each architecture; and their own logits."""

from pathlib import Path
from typing import Any

import torch
from tiny_models import DECODER, GPT2, GROUPED, SSM, TOKENS, VOCAB

N = 4  # layers, so that each kind of layer of an alternating model is there twice
PLAIN = {**DECODER, "num_hidden_layers": N}
KV = {**GROUPED, "num_hidden_layers": N}
OLD = {**GPT2, **TOKENS, "n_layer": N}
ENCODER = {**PLAIN, "type_vocab_size": 2}
RECURRENT = {**SSM, "num_hidden_layers": N}
DISTIL = {
    "vocab_size": VOCAB,
    "dim": 32,
    "hidden_dim": 44,
    "n_layers": N,
    "n_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 2,
}
ROPES = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
}
#: name -> (model_type, fields of its config). Those asked for.
ASKED: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt2", {**OLD, "scale_attn_by_inverse_layer_idx": True}),
    "gpt_neo": (
        "gpt_neo",
        {**PLAIN, "num_layers": N, "num_heads": 4, "attention_types": [[["global", "local"], 2]], "window_size": 5},
    ),
    "gptj": ("gptj", {**OLD, "rotary_dim": 4}),
    "gpt_neox": ("gpt_neox", PLAIN),
    "opt": ("opt", {**PLAIN, "ffn_dim": 44, "word_embed_proj_dim": 32}),
    "opt, projected": ("opt", {**PLAIN, "ffn_dim": 44, "word_embed_proj_dim": 16, "do_layer_norm_before": False}),
    "llama": ("llama", {**KV, "tie_word_embeddings": True}),
    "mistral": ("mistral", {**KV, "sliding_window": 7, "head_dim": 12}),
    "qwen2": ("qwen2", {**KV, "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 2}),
    "qwen3": ("qwen3", {**KV, "head_dim": 16}),
    "gemma2": ("gemma2", {**KV, "head_dim": 16, "sliding_window": 5, "query_pre_attn_scalar": 16}),
    "gemma3": (
        "gemma3_text",
        {**KV, "head_dim": 16, "sliding_window": 5, "sliding_window_pattern": 2, "rope_parameters": ROPES},
    ),
    "phi": ("phi", {**PLAIN, "partial_rotary_factor": 0.5}),
    "olmo2": ("olmo2", KV),
    "falcon": ("falcon", {**PLAIN, "alibi": False, "new_decoder_architecture": False}),
    "falcon, alibi": ("falcon", {**PLAIN, "alibi": True}),
    "bert": ("bert", ENCODER),
    "roberta": ("roberta", {**ENCODER, "max_position_embeddings": 70}),
    "distilbert": ("distilbert", DISTIL),
    "mamba": ("mamba", RECURRENT),
}
#: And others of the same shapes.
FURTHER: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma": ("gemma", {**KV, "head_dim": 16}),
    "phi3": ("phi3", {**KV, "sliding_window": 9}),
    "olmo": ("olmo", KV),
    "stablelm": ("stablelm", {**KV, "use_qkv_bias": True, "partial_rotary_factor": 0.25}),
    "starcoder2": ("starcoder2", KV),
    "cohere": ("cohere", KV),
    "cohere2": ("cohere2", {**KV, "sliding_window": 5}),
    "granite": ("granite", {**KV, "logits_scaling": 2.0, "embedding_multiplier": 3.0, "residual_multiplier": 0.5}),
    "bloom": ("bloom", {"vocab_size": VOCAB, "hidden_size": 32, "n_layer": N, "n_head": 4, **TOKENS}),
    "mpt": ("mpt", {"vocab_size": VOCAB, "d_model": 32, "n_layers": N, "n_heads": 4, "expansion_ratio": 2}),
    "mamba2": ("mamba2", {**RECURRENT, "num_heads": 8, "head_dim": 8, "n_groups": 1, "chunk_size": 16}),
    "electra": ("electra", {**ENCODER, "embedding_size": 16}),
    "camembert": ("camembert", {**ENCODER, "max_position_embeddings": 70}),
    "xlm-roberta": ("xlm-roberta", {**ENCODER, "max_position_embeddings": 70}),
    "smollm3": ("smollm3", KV),
    "olmo3": ("olmo3", {**KV, "sliding_window": 5}),
    "glm": ("glm", {**KV, "head_dim": 8}),
    "nemotron": ("nemotron", KV),
    "exaone4": ("exaone4", {**KV, "sliding_window": 5}),
    "gpt_bigcode": ("gpt_bigcode", OLD),
    "codegen": ("codegen", {**OLD, "rotary_dim": 4}),
    "persimmon": ("persimmon", PLAIN),
    "biogpt": ("biogpt", PLAIN),
    "helium": ("helium", {**KV, "head_dim": 8}),
    "ministral": ("ministral", {**KV, "sliding_window": 5, "head_dim": 8}),
    "mixtral": ("mixtral", {**KV, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen2_moe": (
        "qwen2_moe",
        {
            **KV,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 12,
            "shared_expert_intermediate_size": 20,
            "mlp_only_layers": [1],
        },
    ),
    "modernbert": (
        "modernbert",
        {**PLAIN, "local_attention": 8, "global_attn_every_n_layers": 2, "cls_token_id": 0, "sep_token_id": 1},
    ),
    "megatron-bert": ("megatron-bert", ENCODER),
    "nomic_bert": ("nomic_bert", ENCODER),
    "data2vec-text": ("data2vec-text", {**ENCODER, "max_position_embeddings": 70}),
    "roberta-prelayernorm": ("roberta-prelayernorm", {**ENCODER, "max_position_embeddings": 70}),
    "glm4": ("glm4", {**KV, "head_dim": 8}),
    "qwen3_moe": (
        "qwen3_moe",
        {**KV, "head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 12},
    ),
    "olmoe": ("olmoe", {**KV, "num_experts": 4, "num_experts_per_tok": 2}),
    "granitemoe": ("granitemoe", {**KV, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "phimoe": ("phimoe", {**KV, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "ernie4_5": ("ernie4_5", {**KV, "head_dim": 8}),
    "arcee": ("arcee", KV),
    "apertus": ("apertus", KV),
    "diffllama": ("diffllama", KV),
    "ctrl": ("ctrl", {"vocab_size": VOCAB, "n_positions": 64, "n_embd": 32, "dff": 44, "n_layer": N, "n_head": 4}),
    "xglm": ("xglm", {"vocab_size": VOCAB, "d_model": 32, "ffn_dim": 44, "num_layers": N, "attention_heads": 4}),
    "vaultgemma": ("vaultgemma", {**KV, "head_dim": 8, "sliding_window": 5}),
    "seed_oss": ("seed_oss", {**KV, "head_dim": 8}),
    "ernie": ("ernie", ENCODER),
    "jamba": (
        "jamba",
        {
            **KV,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "num_experts": 2,
            "use_mamba_kernels": False,
            "mamba_d_state": 4,
            "mamba_dt_rank": 4,
        },
    ),
    "falcon_mamba": ("falcon_mamba", RECURRENT),
    "lfm2": ("lfm2", {**KV, "layer_types": ["conv", "full_attention"] * 2, "conv_L_cache": 3, "block_multiple_of": 4}),
    "gpt_oss": (
        "gpt_oss",
        {**KV, "head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 5},
    ),
    "bamba": (
        "bamba",
        {
            **KV,
            "attn_layer_indices": [1, 3],
            "mamba_n_heads": 8,
            "mamba_d_head": 8,
            "mamba_d_state": 4,
            "mamba_chunk_size": 8,
        },
    ),
    "qwen3_next": (
        "qwen3_next",
        {
            **KV,
            "head_dim": 16,
            "linear_num_value_heads": 4,
            "linear_num_key_heads": 2,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 12,
            "shared_expert_intermediate_size": 12,
        },
    ),
}
MODELS = ASKED | FURTHER
#: Those whose layers cannot be run by themselves -> what is said of them.
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "rwkv": (
        {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": N, "context_length": 64},
        "its model reaches into a layer for its 'attention'",
    ),
    "recurrent_gemma": (
        {**KV, "head_dim": 8, "attention_window_size": 5, "lru_width": 32},
        "layer 0 takes padding for tokens",
    ),
    "albert": ({**ENCODER, "embedding_size": 16}, "it has no list of 4 layers"),
    "mpnet": (ENCODER, "handed more than the residual stream"),
    "fnet": (ENCODER, "layer 0 sees the future, and takes no mask against it"),
    "deberta-v2": ({**ENCODER, "relative_attention": True}, "handed more than the residual stream"),
    "deberta": ({**ENCODER, "relative_attention": True}, "handed more than the residual stream"),
    "roformer": (ENCODER, "handed more than the residual stream"),
    "convbert": ({**ENCODER, "embedding_size": 32}, "layer 0 sees the future, and takes no mask against it"),
    "t5": ({"vocab_size": VOCAB, "d_model": 32, "num_layers": N, "num_heads": 4}, "has an encoder and a decoder"),
    "vit": ({}, "has no vocab_size, expected a language model"),
}


def saved_model(name: str, folder: Path, seed: int = 0, **options: Any) -> Any:
    """A random model, every tensor of it away from its start, written to a folder."""
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForMaskedLM

    kind, fields = MODELS[name]
    config = CONFIG_MAPPING[kind](**fields)
    masked = type(config) in AutoModelForMaskedLM._model_mapping
    torch.manual_seed(seed)
    auto = AutoModelForMaskedLM if masked else AutoModelForCausalLM
    model = auto.from_config(config, attn_implementation="eager").float().eval()
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=noise))
    model.save_pretrained(folder, **options)
    return model


@torch.no_grad()
def own_logits(model: Any, ids_BT: torch.Tensor) -> torch.Tensor:
    """Logits by the model's own forward, under a causal mask where it has none of its own."""
    kind = model.config.model_type
    if type(model).__name__.endswith("ForMaskedLM"):
        T = ids_BT.shape[1]
        later = torch.ones(T, T, dtype=torch.bool).triu(1)
        if kind == "modernbert":  # half of the window to each side
            far = torch.ones(T, T, dtype=torch.bool).tril(-model.config.local_attention // 2 - 1)
            masks = {"full_attention": later, "sliding_attention": later | far}
            mask: Any = {name: additive(hidden, len(ids_BT)) for name, hidden in masks.items()}
        else:
            mask = additive(later, len(ids_BT))
        return model(ids_BT, attention_mask=mask).logits
    return model(ids_BT, use_cache=False).logits


def additive(hidden_TT: torch.Tensor, batch: int) -> torch.Tensor:
    """A mask that attention adds to its scores."""
    least = torch.finfo(torch.float32).min
    return torch.zeros(hidden_TT.shape).masked_fill(hidden_TT, least).expand(batch, 1, *hidden_TT.shape)
