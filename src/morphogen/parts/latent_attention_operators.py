"""Operators on attention through a latent: into and out of it, its heads, its latent, its rotated channels."""

from typing import Any

import numpy as np

from morphogen.parts.attention import Attention
from morphogen.parts.base import Context, block_operator, operator, pick
from morphogen.parts.heads import fewer_heads, more_heads, wider_heads
from morphogen.parts.latent_attention import LatentAttention
from morphogen.parts.selector import Selective

#: Latent dims that operators give are multiples of this.
MULTIPLE = 8


@operator(LatentAttention, preserves=True)
def add_mla_heads(part: LatentAttention, ctx: Context, rng: np.random.Generator) -> LatentAttention | None:
    """More heads; the new ones write zero."""
    return more_heads(part, rng)


@operator(LatentAttention, preserves=False)
def remove_mla_heads(part: LatentAttention, ctx: Context, rng: np.random.Generator) -> LatentAttention | None:
    """Fewer heads; those of largest norm stay."""
    return fewer_heads(part, rng)


@operator(LatentAttention, preserves=True)
def widen_mla_latent(part: LatentAttention, ctx: Context, rng: np.random.Generator) -> LatentAttention | None:
    """A larger latent; its new channels start at zero, and the norm makes up for them."""
    return part.evolve(kv_latent_dim=part.kv_latent_dim + max(MULTIPLE, part.kv_latent_dim // 2))


@operator(LatentAttention, preserves=False)
def narrow_mla_latent(part: LatentAttention, ctx: Context, rng: np.random.Generator) -> LatentAttention | None:
    """A smaller latent; its channels of largest norm stay."""
    return part.evolve(kv_latent_dim=max(MULTIPLE, part.kv_latent_dim * 2 // 3)) if part.kv_latent_dim > 8 else None


@operator(LatentAttention, preserves=True)
def widen_mla_head_dim(part: LatentAttention, ctx: Context, rng: np.random.Generator) -> LatentAttention | None:
    """Twice the unrotated channels and values of a head, queries rescaled; the new ones add nothing."""
    return wider_heads(part)


@operator(LatentAttention, preserves=False)
def narrow_mla_head_dim(part: LatentAttention, ctx: Context, rng: np.random.Generator) -> LatentAttention | None:
    """Half the unrotated channels and values of a head; those of largest norm stay."""
    return part.evolve(head_dim=part.head_dim // 2) if part.head_dim >= 8 else None


@operator(LatentAttention, preserves=lambda part, ctx: part.selector == "none")
def add_mla_rope(part: LatentAttention, ctx: Context, rng: np.random.Generator) -> LatentAttention | None:
    """A rotated head, where there is none; its key starts at zero. A selector is rotated too, which is lossy."""
    return part.evolve(rope_head_dim=pick(rng, [8, 16, 32])) if part.rope_head_dim == 0 else None


@operator(LatentAttention, preserves=False)
def tune_mla_rope(part: LatentAttention, ctx: Context, rng: np.random.Generator) -> LatentAttention | None:
    """Another RoPE base from 1e3 to 1e6, or half, twice or none of the rotated channels."""
    if part.rope_head_dim == 0:
        return None
    if rng.random() < 0.5:
        return part.evolve(rope_theta=pick(rng, [t for t in (1e3, 1e4, 1e5, 1e6) if t != part.rope_theta]))
    return part.evolve(rope_head_dim=pick(rng, [0, part.rope_head_dim // 4 * 2, 2 * part.rope_head_dim]))


@block_operator(preserves=False)
def toggle_mla_attention(block: Any, ctx: Context, rng: np.random.Generator) -> Any:
    """Attention through a latent by SVD of its keys and values, or back by multiplying out."""
    part = block.attn
    if isinstance(part, LatentAttention):
        return block.evolve(attn=_plain(part))
    return block.evolve(attn=_latent(part, rng)) if isinstance(part, Attention) else None


def _latent(part: Attention, rng: np.random.Generator) -> LatentAttention:
    """A quarter or half as many entries a token as keys and values have, half of head_dim rotated if any was."""
    entries = 2 * part.kv_heads * part.head_dim
    return LatentAttention(
        **_shared(part),
        heads=part.heads,
        head_dim=part.head_dim,
        kv_latent_dim=max(MULTIPLE, entries // int(rng.choice([2, 4]))),
        rope_head_dim=0 if part.rope == "none" else max(2, part.head_dim // 4 * 2),
        rope_theta=part.rope_theta,
        dropout=part.dropout,
    )


def _plain(part: LatentAttention) -> Attention:
    """MHA whose heads are as wide as rotated and unrotated channels together."""
    width = part.head_dim + part.rope_head_dim
    return Attention(
        **_shared(part),
        kind="MHA",
        heads=part.heads,
        head_dim=width,
        rope="partial" if part.rope_head_dim else "none",
        rope_factor=(part.rope_head_dim + 0.5) / width if part.rope_head_dim else None,  # rounded down to pairs
        rope_theta=part.rope_theta,
        dropout=part.dropout,
    )


def _shared(part: Selective) -> dict[str, Any]:
    """Sparsity and selector."""
    return {name: value for name, value in part if name in Selective.model_fields and name != "kv_policy"}
