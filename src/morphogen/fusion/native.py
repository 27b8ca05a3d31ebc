"""From a blueprint to a config of another framework, where one of its architectures computes the same."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from morphogen.blueprint.diff import canonical
from morphogen.blueprint.effective import effective
from morphogen.blueprint.schema import Blueprint
from morphogen.errors import InputError
from morphogen.fusion.describe import Config, read_decoder
from morphogen.fusion.describe_ssm import SSMS, write_ssm
from morphogen.fusion.dialects import DIALECTS, GATE, Dialect
from morphogen.fusion.taking import put
from morphogen.parts.attention.attention import Attention
from morphogen.parts.ffn.mlp import GATED, MLP

#: Tokens of sequences that are as long as any.
ENDLESS = 2**24


def write_decoder(blueprint: Blueprint, dialect: Dialect, eps: float) -> dict[str, Any] | None:
    """The fields of a config that `read_decoder` makes this blueprint of, if any; whether it does is to be tried."""
    first = blueprint.blocks[0]
    if not isinstance(first.attn, Attention) or not isinstance(first.ffn, MLP):
        return None
    attn, ffn, gated = first.attn, first.ffn, first.ffn.activation in GATED
    if gated != (dialect.gate is not None):
        return None
    plain = next((name for name, ours in GATE.items() if ours == ffn.activation), ffn.activation)
    fields: dict[str, Any] = {
        "vocab_size": blueprint.context().vocab,
        dialect.dim_key: blueprint.emb.dim,
        dialect.layers_key: len(blueprint.blocks),
        dialect.heads_key: attn.heads,
        dialect.hidden_key: ffn.hidden,
        dialect.activation_key: {"gelu_tanh": "gelu_pytorch_tanh"}.get(plain, plain),
        "tie_word_embeddings": blueprint.head.tie_embeddings,
    }
    optional: list[tuple[str | None, Any]] = [
        (dialect.kv_heads_key, attn.kv_heads),
        (dialect.head_dim_key, attn.head_dim),
        (dialect.eps_key, eps),
        (dialect.positions_key, blueprint.emb.positions),
        (dialect.attn_bias_key, attn.bias != "none"),
        (dialect.mlp_bias_key, ffn.bias),
        (dialect.parallel_key, first.parallel),
    ]
    fields |= {key: value for key, value in optional if key is not None}
    values = {"attn.dropout": attn.dropout, "emb.dropout": blueprint.emb.dropout}
    fields |= {theirs: values[ours] for theirs, ours in dialect.dropout_keys.items()}
    fields |= {name: allowed[0] for name, allowed in dialect.fixed.items()}
    if dialect.rope:
        fields["rope_parameters"] = _rope_written(attn)
    return fields | _windows_written(blueprint, dialect)


def _rope_written(attn: Attention) -> dict[str, Any]:
    found: dict[str, Any] = {"rope_type": "default", "rope_theta": attn.rope_theta}
    if attn.rope == "partial":
        found["partial_rotary_factor"] = attn.rotated_dims / attn.head_dim
    elif attn.rope == "yarn":
        found |= {"rope_type": "yarn", "factor": attn.rope_scale, "original_max_position_embeddings": attn.rope_context}
    elif attn.rope_scale != 1.0:
        found |= {"rope_type": "linear", "factor": attn.rope_scale}
    return found


def _windows_written(blueprint: Blueprint, dialect: Dialect) -> dict[str, Any]:
    parts = [block.attn for block in blueprint.blocks if isinstance(block.attn, Attention)]
    slides = [part.sparsity == "sliding" for part in parts]
    window = next((part.sliding_window + 1 for part in parts if part.sparsity == "sliding"), None)
    if dialect.sliding == "none":
        return {}
    if dialect.sliding == "all":
        return {"sliding_window": window}
    types = ["sliding_attention" if slide else "full_attention" for slide in slides]
    return {"layer_types": types, "sliding_window": window, "use_sliding_window": any(slides)}


def same(a: Blueprint, b: Blueprint) -> bool:
    """Whether two blueprints say the same of what is computed outside training."""
    return canonical(_computed(a)) == canonical(_computed(b))


def _computed(blueprint: Blueprint) -> Blueprint:
    """The plainest that says the same, without what only training reads."""
    plain = effective(blueprint, ENDLESS)
    blocks = [
        block.model_copy(update={"attn": block.attn.model_copy(update={"dropout": 0.0})})
        if isinstance(block.attn, Attention)
        else block
        for block in plain.blocks
    ]
    emb = plain.emb.model_copy(update={"init_std": None, "dropout": 0.0})
    return plain.model_copy(update={"blocks": tuple(blocks), "emb": emb, "growth": ()})


class Native(NamedTuple):
    """A model of another framework's own class: its type, its config's fields, its tensors."""

    kind: str
    fields: dict[str, Any]
    tensors: dict[str, Tensor]


def native(blueprint: Blueprint, state: Mapping[str, Tensor]) -> Native | None:
    """The model in the first architecture that computes the same; None where there is none.

    A config is proposed for each, read as an import would read it, and taken where that gives this blueprint and gives
    back these weights.
    """
    if any(block.attn is None and block.ssm is None for block in blueprint.blocks):
        return None
    eps = float(f"{float(state['norm.eps']):.7g}")  # 1e-5 in fp32 is not 1e-5
    for kind in (*DIALECTS, *SSMS):
        fields = write_ssm(blueprint, kind, eps) if kind in SSMS else write_decoder(blueprint, DIALECTS[kind], eps)
        if fields is None:
            continue
        try:
            layout = SSMS[kind](Config({"model_type": kind, **fields})) if kind in SSMS else None
            layout = layout or read_decoder(Config({"model_type": kind, **fields}), DIALECTS[kind])
        except InputError:
            continue
        if not same(layout.blueprint, blueprint) or layout.tensors.keys() != state.keys():
            continue
        tensors, lost = put(layout.tensors, state)
        if lost is None:
            return Native(kind, fields, tensors)
    return None
