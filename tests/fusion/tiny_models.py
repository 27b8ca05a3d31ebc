"""Tiny random models of transformers, one or several of each architecture, and a tokenizer."""

from pathlib import Path
from typing import Any

import torch

VOCAB = 300
DECODER = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 44,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
    "attn_implementation": "eager",
}
GROUPED = {**DECODER, "num_key_value_heads": 2}
GPT2 = {"vocab_size": VOCAB, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "attn_implementation": "eager"}
TOKENS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
SSM = {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4, **TOKENS}
YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4, "original_max_position_embeddings": 16}
#: name -> (model_type, fields of its config).
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {**GROUPED, "rms_norm_eps": 1e-6}),
    "llama with biases, tied": (
        "llama",
        {**DECODER, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True, "num_key_value_heads": 1},
    ),
    "llama, yarn": ("llama", {**GROUPED, "rope_parameters": YARN}),
    "llama, linear": (
        "llama",
        {**GROUPED, "head_dim": 6, "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0}},
    ),
    "mistral": ("mistral", {**GROUPED, "sliding_window": 7, "head_dim": 12}),
    "qwen2": ("qwen2", GROUPED),
    "qwen2, sliding": ("qwen2", {**GROUPED, "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}),
    "qwen3": ("qwen3", {**GROUPED, "head_dim": 16, "tie_word_embeddings": True}),
    "gemma": ("gemma", {**GROUPED, "head_dim": 16}),
    "phi": ("phi", {**DECODER, "partial_rotary_factor": 0.5}),
    "phi3": ("phi3", {**GROUPED, "sliding_window": 9}),
    "olmo": ("olmo", GROUPED),
    "stablelm": ("stablelm", {**GROUPED, "use_qkv_bias": True, "partial_rotary_factor": 0.25}),
    "starcoder2": ("starcoder2", GROUPED),
    "gpt_neox": ("gpt_neox", DECODER),
    "gpt_neox in sequence": ("gpt_neox", {**DECODER, "use_parallel_residual": False, "attention_bias": False}),
    "gpt2": ("gpt2", {**GPT2, **TOKENS}),
    "mamba": ("mamba", SSM),
    "mamba2": ("mamba2", {**SSM, "num_heads": 8, "head_dim": 8, "n_groups": 1, "chunk_size": 16}),
}


def tiny(name: str, seed: int = 0) -> Any:
    """A random model, every tensor of it away from its start."""
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    kind, fields = MODELS[name]
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**fields)).float().eval()
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=noise))
    return model


def saved(name: str, folder: Path, **options: Any) -> Any:
    """The model, written to a folder."""
    model = tiny(name)
    model.save_pretrained(folder, **options)
    return model


def write_tokenizer(folder: Path) -> None:
    """A byte-level tokenizer with fewer tokens than the models have."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {piece: i for i, piece in enumerate(["<s>", "</s>", "<pad>", *alphabet])}
    pieces = Tokenizer(models.BPE(vocab, []))
    pieces.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    pieces.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=pieces, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    fast.save_pretrained(folder)


def ids(tokens: int = 24, batch: int = 2) -> torch.Tensor:
    """Token ids (B, T)."""
    return torch.randint(3, VOCAB, (batch, tokens), generator=torch.Generator().manual_seed(1))
