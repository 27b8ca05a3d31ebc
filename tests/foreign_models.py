"""Tiny models to take layers from, and blueprints with layers of them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from morphogen.blueprint.schema import Blueprint

VOCAB, DIM, OTHER = 37, 16, 24
LAYERS = 3


def llama(folder: Path, dim: int = DIM, seed: int = 0) -> Path:
    """A random model of three layers, with a head of its own."""
    import transformers

    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=dim,
        intermediate_size=20,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=128,
        tie_word_embeddings=False,
    )
    model = transformers.LlamaForCausalLM(config)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two models, `a` of the host's width and `b` of another."""
    folder = tmp_path_factory.mktemp("donors")
    llama(folder / "a")
    llama(folder / "b", OTHER)
    return folder


def blueprint(home: Path | None = None, experts: str = "a0 a2", dim: int = DIM, **fields: Any) -> Blueprint:
    """A block of attention and a dense layer; with `home` an extra of these experts, `a0` being layer 0 of `a`."""
    norm = fields.pop("norm", "rmsnorm")
    extras: list[dict[str, Any]] = []
    if home is not None:
        layers = [{"model": str(home / name[0]), "layer": int(name[1:])} for name in experts.split()]
        extras = [{"kind": "foreign", "experts": layers, **fields}]
    block = {
        "attn": {"kind": "MHA", "heads": 2, "head_dim": 8},
        "extras": extras,
        "ffn": {"kind": "dense", "hidden": 24},
    }
    return Blueprint.model_validate({"emb": {"dim": dim, "vocab": VOCAB}, "norm": norm, "blocks": [block]})


def ids_of(tokens: int = 20, batch: int = 2) -> Tensor:
    return torch.randint(0, VOCAB, (batch, tokens), generator=torch.Generator().manual_seed(1))
