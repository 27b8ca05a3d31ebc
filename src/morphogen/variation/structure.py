"""Operators on the whole: depth, width of the residual stream, norm, head, and which branches a block has.

Those on a block are registered as block operators, the others as model operators.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np

from morphogen.blueprint.schema import Block, Blueprint
from morphogen.parts.attention.attention import Attention
from morphogen.parts.contract.operator import block_operator, model_operator, pick
from morphogen.parts.contract.part import Context, Modifier, Part
from morphogen.parts.contract.registry import PartIn
from morphogen.parts.ffn.mlp import MLP
from morphogen.parts.ffn.moe import MoE
from morphogen.parts.memory.associative_memory import insert_assoc_memory
from morphogen.parts.memory.chunk_memory import insert_chunk_memory
from morphogen.parts.memory.memory_tokens import insert_memory_tokens
from morphogen.parts.memory.retro import insert_retro_module
from morphogen.parts.mixing.custom import insert_custom_module, offered_extras
from morphogen.parts.mixing.layer_scale import insert_layer_scale
from morphogen.parts.mixing.short_conv import insert_short_conv
from morphogen.parts.ssm.mamba2 import Mamba2

#: Widths that operators give are multiples of this.
MULTIPLE = 8


def plain_attention(dim: int) -> Attention:
    """Grouped-query attention of about the residual width: heads of 32 where they fit, two query heads per kv head."""
    head_dim = next((size for size in (32, 16, 8) if dim >= 2 * size), MULTIPLE)
    heads = 2 * max(1, dim // (2 * head_dim))
    return Attention(kind="GQA", heads=heads, head_dim=head_dim, kv_groups=2)


def plain_ssm(dim: int) -> Mamba2:
    """Mamba-2 with twice as many inner channels as the residual width, in heads of 32 where they fit."""
    return Mamba2(head_dim=next((size for size in (32, 16, 8) if dim >= size), MULTIPLE))


def plain_ffn(dim: int) -> MLP:
    """A SwiGLU layer of 8/3 of the residual width, as many parameters as an ungated one of 4."""
    return MLP(hidden=max(MULTIPLE, round(dim * 8 / 3 / MULTIPLE) * MULTIPLE))


def attentions(ctx: Context) -> list[Part]:
    """What comes where attention is put in: the plain one, and every kind that is not settled."""
    return [plain_attention(ctx.dim), *PartIn("attn").newcomers(ctx)]


def state_spaces(ctx: Context) -> list[Part]:
    """Likewise for state-space layers."""
    return [plain_ssm(ctx.dim), *PartIn("ssm").newcomers(ctx)]


def feed_forwards(ctx: Context) -> list[Part]:
    """Likewise for feed-forward layers."""
    return [plain_ffn(ctx.dim), *PartIn("ffn").newcomers(ctx)]


def with_blocks(blueprint: Blueprint, blocks: Sequence[Block]) -> Blueprint | None:
    """The blueprint with other blocks, its recurrences moved with theirs; None where nothing differs."""
    return blueprint.with_blocks(blocks)


# ------------------------------------------------------------------------------------------------------- depth


@model_operator(preserves=True)
def insert_block(blueprint: Blueprint, rng: np.random.Generator) -> Blueprint | None:
    """A new block anywhere, plain or with the parts of a present one; its outputs start at zero."""
    new_id, model = blueprint.fresh_id(rng), pick(rng, blueprint.blocks)
    if model is None or rng.random() < 0.5:
        dim = blueprint.emb.dim
        block = Block(id=new_id, attn=plain_attention(dim), ffn=plain_ffn(dim))
    else:
        # without the modifiers: those may not start neutral
        extras = tuple(extra for extra in model.extras if not isinstance(extra, Modifier))
        block = model.model_copy(update={"id": new_id, "origin": None, "extras": extras})
    at = int(rng.integers(len(blueprint.blocks) + 1))
    return with_blocks(blueprint, (*blueprint.blocks[:at], block, *blueprint.blocks[at:]))


def copied(blueprint: Blueprint, span: Sequence[Block], rng: np.random.Generator) -> list[Block]:
    """Copies of `span` with ids of their own, each naming the block its weights come from."""
    copies: list[Block] = []
    taken = {block.id for block in blueprint.blocks}
    for block in span:
        new_id = next(name for _ in range(10**9) if (name := blueprint.fresh_id(rng)) not in taken)
        taken.add(new_id)
        copies.append(block.model_copy(update={"id": new_id, "origin": block.id}))
    return copies


@model_operator(preserves=True)
def duplicate_block(blueprint: Blueprint, rng: np.random.Generator) -> Blueprint | None:
    """A copy of a block right after it, its outputs at zero. Ref: arXiv 2203.06211 (growing in depth)."""
    at = int(rng.integers(len(blueprint.blocks)))
    return _duplicate(blueprint, at, at + 1, rng)


@model_operator(preserves=True)
def duplicate_block_span(blueprint: Blueprint, rng: np.random.Generator) -> Blueprint | None:
    """Copies of two to four blocks in a row right after them, their outputs at zero. Ref: arXiv 2312.15166."""
    span = _short_span(blueprint, rng)
    return None if span is None else _duplicate(blueprint, *span, rng)


def _short_span(blueprint: Blueprint, rng: np.random.Generator) -> tuple[int, int] | None:
    """Start and stop of two to four blocks in a row; None where there are fewer."""
    count = len(blueprint.blocks)
    if count < 2:
        return None
    length = int(rng.integers(2, min(4, count) + 1))
    start = int(rng.integers(count - length + 1))
    return start, start + length


def _duplicate(blueprint: Blueprint, start: int, stop: int, rng: np.random.Generator) -> Blueprint | None:
    blocks = blueprint.blocks
    return with_blocks(blueprint, (*blocks[:stop], *copied(blueprint, blocks[start:stop], rng), *blocks[stop:]))


@model_operator(preserves=False)
def delete_block(blueprint: Blueprint, rng: np.random.Generator) -> Blueprint | None:
    """One block fewer."""
    if len(blueprint.blocks) < 2:
        return None
    gone = int(rng.integers(len(blueprint.blocks)))
    return with_blocks(blueprint, (*blueprint.blocks[:gone], *blueprint.blocks[gone + 1 :]))


@model_operator(preserves=False)
def move_block(blueprint: Blueprint, rng: np.random.Generator) -> Blueprint | None:
    """One block at another depth."""
    if len(blueprint.blocks) < 2:
        return None
    blocks = list(blueprint.blocks)
    block = blocks.pop(source := int(rng.integers(len(blocks))))
    target = int(rng.integers(len(blocks)))
    blocks.insert(target if target < source else target + 1, block)
    return with_blocks(blueprint, blocks)


@model_operator(preserves=False)
def swap_blocks(blueprint: Blueprint, rng: np.random.Generator) -> Blueprint | None:
    """Two blocks trade places."""
    pairs = [
        (i, j)
        for i, j in combinations(range(len(blueprint.blocks)), 2)
        if not _alike(blueprint.blocks[i], blueprint.blocks[j])
    ]
    if (pair := pick(rng, pairs)) is None:
        return None
    blocks = list(blueprint.blocks)
    blocks[pair[0]], blocks[pair[1]] = blocks[pair[1]], blocks[pair[0]]
    return with_blocks(blueprint, blocks)


@model_operator(preserves=False)
def shuffle_block_span(blueprint: Blueprint, rng: np.random.Generator) -> Blueprint | None:
    """Two to four blocks in a row in another order."""
    place = _short_span(blueprint, rng)
    if place is None:
        return None
    start, stop = place
    span = blueprint.blocks[start:stop]
    mixed = [span[i] for i in rng.permutation(len(span))]
    if all(_alike(a, b) for a, b in zip(mixed, span, strict=True)):
        return None
    return with_blocks(blueprint, (*blueprint.blocks[:start], *mixed, *blueprint.blocks[stop:]))


def _alike(a: Block, b: Block) -> bool:
    return a.parallel == b.parallel and list(a.parts()) == list(b.parts())


@model_operator(preserves=False)
def shift_moe(blueprint: Blueprint, rng: np.random.Generator) -> Blueprint | None:
    """A mixture moves to a block with a dense layer of another depth, which comes to its place."""
    blocks = list(blueprint.blocks)
    pairs = [
        (i, source.ffn, j, target.ffn)
        for i, source in enumerate(blocks)
        for j, target in enumerate(blocks)
        if isinstance(source.ffn, MoE) and isinstance(target.ffn, MLP)
    ]
    if (pair := pick(rng, pairs)) is None:
        return None
    i, moe, j, dense = pair
    shifted = moe.evolve(hidden=dense.hidden, activation=dense.activation) or moe
    blocks[i] = blocks[i].model_copy(update={"ffn": MLP(hidden=moe.hidden, activation=moe.activation)})
    blocks[j] = blocks[j].model_copy(update={"ffn": shifted})
    return blueprint.evolve(blocks=tuple(blocks))


# ------------------------------------------------------------------------------------------- width, norm, head


@model_operator(preserves=True)
def widen_dim(blueprint: Blueprint, rng: np.random.Generator) -> Blueprint | None:
    """A wider residual stream, by an eighth, a quarter or a half; the new channels start silent."""
    dim, factor = blueprint.emb.dim, float(rng.choice([1.125, 1.25, 1.5]))
    wider = max(round(dim * factor / MULTIPLE) * MULTIPLE, (dim // MULTIPLE + 1) * MULTIPLE)
    return _with_dim(blueprint, wider)


@model_operator(preserves=False)
def narrow_dim(blueprint: Blueprint, rng: np.random.Generator) -> Blueprint | None:
    """A narrower residual stream; the channels of largest norm stay."""
    dim, factor = blueprint.emb.dim, float(rng.choice([0.75, 0.875]))
    narrower = min(round(dim * factor / MULTIPLE) * MULTIPLE, (dim - 1) // MULTIPLE * MULTIPLE)
    return _with_dim(blueprint, narrower) if narrower > 0 else None


def _with_dim(blueprint: Blueprint, dim: int) -> Blueprint | None:
    return blueprint.evolve(emb=blueprint.emb.evolve(dim=dim))


@model_operator(preserves=False)
def change_norm(blueprint: Blueprint, rng: np.random.Generator) -> Blueprint | None:
    """RMSNorm becomes LayerNorm, or the other way round."""
    return blueprint.evolve(norm="layernorm" if blueprint.norm == "rmsnorm" else "rmsnorm")


@model_operator(preserves=True)
def untie_head(blueprint: Blueprint, rng: np.random.Generator) -> Blueprint | None:
    """An output head of its own, starting as a copy of the embedding."""
    return blueprint.evolve(head=blueprint.head.evolve(tie_embeddings=False)) if blueprint.head.tie_embeddings else None


@model_operator(preserves=False)
def tie_head(blueprint: Blueprint, rng: np.random.Generator) -> Blueprint | None:
    """The embedding as the output head."""
    tied = blueprint.head.evolve(tie_embeddings=True, bias=False)
    return blueprint.evolve(head=tied) if not blueprint.head.tie_embeddings else None


# ---------------------------------------------------------------------------------------- branches of a block


@block_operator(preserves=True)
def insert_attn(block: Block, ctx: Context, rng: np.random.Generator) -> Block | None:
    """Attention in a block that has none; its output starts at zero."""
    return block.evolve(attn=pick(rng, attentions(ctx))) if block.attn is None else None


@block_operator(preserves=True)
def insert_ssm(block: Block, ctx: Context, rng: np.random.Generator) -> Block | None:
    """A state-space layer in a block that has none; its output starts at zero."""
    return block.evolve(ssm=pick(rng, state_spaces(ctx))) if block.ssm is None else None


@block_operator(preserves=True)
def insert_ffn(block: Block, ctx: Context, rng: np.random.Generator) -> Block | None:
    """A feed-forward layer in a block that has none; its output starts at zero."""
    return block.evolve(ffn=pick(rng, feed_forwards(ctx))) if block.ffn is None else None


@block_operator(preserves=False)
def remove_branch(block: Block, ctx: Context, rng: np.random.Generator) -> Block | None:
    """One of a block's several branches less, and what acted on it."""
    branches = [path for _, path, part in block.parts() if not isinstance(part, Modifier)]
    if len(branches) < 2:
        return None
    path = branches[int(rng.integers(len(branches)))]
    extras = [extra for i, extra in enumerate(block.extras) if path != f"extras.{i}"]
    parts = {name: None if name == path else part for name, part in _slots(block).items()}
    return block.evolve(**parts, extras=kept_extras(extras, parts))


@block_operator(preserves=False)
def toggle_ssm(block: Block, ctx: Context, rng: np.random.Generator) -> Block | None:
    """A state-space layer in the place of attention, or the other way round; the new one starts silent."""
    if (block.attn is None) == (block.ssm is None):
        return None
    parts = _slots(block)
    if block.ssm is None:
        parts |= {"attn": None, "ssm": pick(rng, state_spaces(ctx))}
    else:
        parts |= {"attn": pick(rng, attentions(ctx)), "ssm": None}
    return block.evolve(**parts, extras=kept_extras(block.extras, parts))


def _slots(block: Block) -> dict[str, Part | None]:
    """The parts that are not extras."""
    return {"attn": block.attn, "ssm": block.ssm, "ffn": block.ffn}


def kept_extras(extras: Sequence[Part], parts: Mapping[str, Part | None]) -> tuple[Part, ...]:
    """The extras of a block with such parts (slot -> part, None where there is none), without what acted on those that
    are gone."""
    slots = {slot for slot, part in parts.items() if part is not None}
    slots |= {"extra" for extra in extras if not isinstance(extra, Modifier)}
    return tuple(fitted for extra in extras if (fitted := _fitted(extra, slots)) is not None)


def _fitted(extra: Part, slots: set[str]) -> Part | None:
    """The extra without the targets that are gone; None when nothing is left for it to act on."""
    if not isinstance(extra, Modifier) or set(extra.acts_on()) <= slots:
        return extra
    return extra.evolve(targets=tuple(target for target in extra.acts_on() if target in slots))


@block_operator(preserves=False)
def toggle_parallel(block: Block, ctx: Context, rng: np.random.Generator) -> Block | None:
    """The branches of a block in parallel, or one after another."""
    return block.evolve(parallel=not block.parallel) if len(block.branches()) > 1 else None


# ----------------------------------------------------------------------------------------- extras of a block

#: Operators that put one extra into a block, each exact.
INSERTIONS = (
    insert_retro_module,
    insert_assoc_memory,
    insert_memory_tokens,
    insert_chunk_memory,
    insert_short_conv,
    insert_layer_scale,
)


@block_operator(preserves=True)
def add_extra_combo(block: Block, ctx: Context, rng: np.random.Generator) -> Block | None:
    """Two different extras at once: memories, a convolution, a scale, a plug-in; all start without effect."""
    child: Block | None = block
    insertions = [*INSERTIONS, *([insert_custom_module] if offered_extras(ctx) else [])]
    for i in rng.choice(len(insertions), size=2, replace=False):
        child = child and insertions[i](child, ctx, rng)
    return child


@block_operator(preserves=False)
def remove_extra(block: Block, ctx: Context, rng: np.random.Generator) -> Block | None:
    """One extra fewer, and what acted on it."""
    if not block.extras:
        return None
    gone = int(rng.integers(len(block.extras)))
    extras = block.extras[:gone] + block.extras[gone + 1 :]
    return block.evolve(extras=kept_extras(extras, _slots(block)))
