"""Blueprints that operators are tried on where drawing some for each would take longer than the trial."""

import functools
import zlib
from collections.abc import Iterator

import numpy as np
from hypothesis import given, settings

from morphogen.blueprint.schema import Blueprint
from morphogen.variation.operator import apply_operator
from strategies import VOCAB, blueprints

GROUPED = Blueprint.model_validate(
    {
        "emb": {"dim": 8, "vocab": VOCAB},
        "blocks": [{"attn": {"kind": "GQA", "heads": 4, "head_dim": 4, "kv_groups": 2}}] * 2,
    }
)
RULED = Blueprint.model_validate(
    {
        **GROUPED.to_json(),
        "growth": [
            {
                "when": {"trigger": "step", "at": at},
                "do": {"action": "widen", "target": "dim", "factor": 1.5},
                "limits": {"max_times": 3},
            }
            for at in (50, 90)
        ],
    }
)
EVERY_PART = [
    Blueprint.model_validate(
        {
            "emb": {"dim": 24, "vocab": VOCAB},
            "norm": norm,
            "head": {"tie_embeddings": tied},
            "recurrences": [{"start": 1, "end": 2, "adapter": "gated" if tied else "linear", "test_recurrences": [1]}],
            "blocks": [
                {
                    "attn": {
                        "kind": "GQA",
                        "heads": 4,
                        "head_dim": 8,
                        "kv_groups": 2,
                        "sparsity": sparsity,
                        "sw": 16,
                        "block_size": 16,
                        "block_stride": 2,
                        "global_stride": 8,
                        "dilation": 4,
                        "alibi": tied,
                    },
                    "ffn": {"kind": "dense", "hidden": 40},
                    "extras": [{"kind": "layer_scale", "init": 0.7}, {"kind": "gated"}],
                },
                {
                    "attn": {"kind": "MHA", "heads": 4, "head_dim": 16, "gating_pos": "value", "rope": "none"},
                    "ffn": {"kind": "dense", "hidden": 24, "activation": "gelu"},
                    "extras": [
                        {"kind": "retro", "memory_tokens": 4, "stride": 4, "heads": 2, "head_dim": 8},
                        {"kind": "chunk_memory", "chunk_size": 8, "stride": 4, "heads": 2, "head_dim": 8},
                        {"kind": "branch_router", "targets": ["attn", "extra", "ffn"]},
                    ],
                },
                {
                    "ffn": {"kind": "dense", "hidden": 32, "activation": "relu2"},
                    "extras": [
                        {"kind": "assoc_memory", "heads": 2, "head_dim": 8},
                        {"kind": "memory_tokens", "tokens": 8, "heads": 2, "head_dim": 8},
                        {"kind": "short_conv"},
                        {"kind": "linear_silu"},
                    ],
                },
                {"attn": {"kind": "LINEAR", "heads": 2, "head_dim": 8, "gate": "swish" if tied else "none"}},
                {"attn": {"kind": "MLA", "heads": 3, "head_dim": 8, "kv_latent_dim": 16, "rope_head_dim": 4}},
                {
                    "attn": {
                        "kind": "MHA",
                        "heads": 2,
                        "head_dim": 8,
                        "selector": "dsa",
                        "selector_topk": 16,
                        "selector_heads": 2,
                        "selector_dim": 16,
                    }
                },
                {"ssm": {"kind": "mamba2", "head_dim": 8}},
                {"ssm": {"kind": "mamba", "dt_rank": 4}},
                {"ffn": {"kind": "moe", "hidden": 24, "n_experts": 5, "k": 2, "shared": 1, "router_bias": "aux_free"}},
                {
                    "ffn": {
                        "kind": "moe",
                        "hidden": 16,
                        "n_experts": 5,
                        "k": 2,
                        "twins": [1],
                        "experts": [{"kind": "dense", "hidden": 8}],
                    }
                },
            ],
        }
    )
    for norm in ("rmsnorm", "layernorm")
    for tied in (True, False)
    for sparsity in ("none", "sliding", "block", "local_global", "dilated", "local_block")
]


#: Those that stand last.
RARE = 5


@functools.cache
def drawn() -> list[Blueprint]:
    """Blueprints of the strategy that all draw from."""
    found: list[Blueprint] = []

    @settings(max_examples=40)
    @given(blueprint=blueprints())
    def draw(blueprint: Blueprint) -> None:
        found.append(blueprint)

    draw()
    return found


def ground() -> list[Blueprint]:
    """Drawn ones, and at last those that rare operators apply to."""
    return [*drawn(), GROUPED, RULED, *EVERY_PART[:3]]


def grounds(name: str) -> Iterator[tuple[Blueprint, int]]:
    """Those of `ground` that an operator applies to, others first for every operator; a seed of each.

    The seed modulo 1000, of weights, is the blueprint's.
    """
    turn = zlib.crc32(name.encode()) % 1000  # whatever other operators there are
    order = list(enumerate(ground()))
    first = turn % (len(order) - RARE)
    for position, blueprint in [*order[first:-RARE], *order[:first], *order[-RARE:]]:
        for seed in range(1000 * turn + position, 10**7, 10**6):  # by chance an operator may find nothing
            if apply_operator(blueprint, name, np.random.default_rng(seed)) is not None:
                yield blueprint, seed
                break


@functools.cache
def first(name: str) -> tuple[Blueprint, int]:
    """What an operator is tried on first, in every test of it."""
    return next(grounds(name))
