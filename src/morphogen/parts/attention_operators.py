"""Operators on softmax attention: its heads and how they share keys and values, positions, scores, gates."""

import numpy as np

from morphogen.parts.attention import Attention
from morphogen.parts.base import Context, operator, pick
from morphogen.parts.heads import wider_heads


@operator(Attention, preserves=True)
def add_heads(part: Attention, ctx: Context, rng: np.random.Generator) -> Attention | None:
    """More kv heads, each with its query heads; the new ones write zero."""
    if part.kind == "MQA":
        return None
    return part.evolve(heads=part.heads + part.kv_groups * int(rng.integers(1, max(2, part.kv_heads + 1))))


@operator(Attention, preserves=False)
def remove_heads(part: Attention, ctx: Context, rng: np.random.Generator) -> Attention | None:
    """Fewer kv heads with their query heads; those of largest norm stay."""
    if part.kind == "MQA" or part.kv_heads < 2:
        return None
    return part.evolve(heads=part.kv_groups * int(rng.integers(1, part.kv_heads)))


@operator(Attention, preserves=True)
def add_query_heads(part: Attention, ctx: Context, rng: np.random.Generator) -> Attention | None:
    """Double the query heads per kv head; the new ones write zero. Ref: arXiv 2305.13245."""
    kind = "GQA" if part.kind == "MHA" else part.kind
    return part.evolve(kind=kind, heads=2 * part.heads, kv_groups=2 * part.kv_groups)


@operator(Attention, preserves=True)
def split_kv(part: Attention, ctx: Context, rng: np.random.Generator) -> Attention | None:
    """Twice the kv heads, each a copy, for the same query heads."""
    if part.kv_groups % 2:
        return None
    return part.evolve(kind="GQA", kv_groups=part.kv_groups // 2)


@operator(Attention, preserves=False)
def make_gqa(part: Attention, ctx: Context, rng: np.random.Generator) -> Attention | None:
    """Half the kv heads: neighbours merge into their mean. Ref: arXiv 2305.13245."""
    if part.kv_heads % 2:
        return None
    groups = 2 * part.kv_groups
    return part.evolve(kind="MQA" if groups == part.heads and part.kind == "MQA" else "GQA", kv_groups=groups)


@operator(Attention, preserves=lambda part, ctx: part.rope == "none")
def widen_head_dim(part: Attention, ctx: Context, rng: np.random.Generator) -> Attention | None:
    """Twice the head dim, queries rescaled; under RoPE the frequencies change, so exact only without."""
    return wider_heads(part)


@operator(Attention, preserves=False)
def narrow_head_dim(part: Attention, ctx: Context, rng: np.random.Generator) -> Attention | None:
    """Half the head dim; the channels of largest norm stay."""
    return part.evolve(head_dim=part.head_dim // 2) if part.head_dim % 4 == 0 and part.head_dim > 8 else None


@operator(Attention, preserves=False)
def tune_rope(part: Attention, ctx: Context, rng: np.random.Generator) -> Attention | None:
    """Another RoPE base, from 1e3 to 1e6."""
    if part.rope == "none":
        return None
    return part.evolve(rope_theta=pick(rng, [t for t in (1e3, 1e4, 1e5, 1e6) if t != part.rope_theta]))


@operator(Attention, preserves=False)
def change_rope(part: Attention, ctx: Context, rng: np.random.Generator) -> Attention | None:
    """Another position encoding: none, standard or partial RoPE."""
    rope = pick(rng, [r for r in ("none", "standard", "partial") if r != part.rope])
    return part.evolve(rope=rope, rope_factor=None)


@operator(Attention, preserves=False)
def toggle_alibi(part: Attention, ctx: Context, rng: np.random.Generator) -> Attention | None:
    """Linear position biases on or off. Ref: arXiv 2108.12409."""
    return part.evolve(alibi=not part.alibi)


@operator(Attention, preserves=False)
def toggle_qk_norm(part: Attention, ctx: Context, rng: np.random.Generator) -> Attention | None:
    """Another normalisation of queries and keys: none, rms or layer."""
    return part.evolve(qk_norm=pick(rng, [n for n in ("none", "rms", "layer") if n != part.qk_norm]))


@operator(Attention, preserves=False)
def tune_softcap(part: Attention, ctx: Context, rng: np.random.Generator) -> Attention | None:
    """Soft limit of the attention logits: none, 20 or 50."""
    return part.evolve(softcap=pick(rng, [c for c in (None, 20.0, 50.0) if c != part.softcap]))


@operator(Attention, preserves=lambda part, ctx: part.gating_pos == "none")
def tune_attn_gating(part: Attention, ctx: Context, rng: np.random.Generator) -> Attention | None:
    """A gate on the output or the values; a new one starts open. Taking one away, or another kind, is lossy."""
    if part.gating_pos == "none":
        return part.evolve(gating_pos=pick(rng, ["output", "value"]), gating_op=pick(rng, ["dense", "diagonal"]))
    return part.evolve(gating_pos="none")
