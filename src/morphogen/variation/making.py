"""What an architecture becomes by an action of growth, as plain data: by an action, within limits. No torch."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from morphogen.blueprint.growth import (
    Action,
    AddExperts,
    CrossExperts,
    Deepen,
    DropLayer,
    GrowthAction,
    GrowthLimits,
    GrowVocabulary,
    MergeExperts,
    Narrow,
    PruneExperts,
    SplitExperts,
    ToMoE,
    Widen,
)
from morphogen.blueprint.schema import Block, Blueprint
from morphogen.blueprint.tensors import parameter_count
from morphogen.cost import total
from morphogen.parts.contract.alignment import AxisMap
from morphogen.parts.contract.part import Modifier, Part
from morphogen.parts.contract.widths import times
from morphogen.parts.ffn.mlp import MLP
from morphogen.parts.ffn.moe import MoE
from morphogen.parts.ffn.sharing import Sharing
from morphogen.variation.structure import copied

#: Block id -> experts, by their numbers in the stack, that a trigger or a chooser picked.
Chosen = Mapping[str, tuple[int, ...]]
NOBODY: Chosen = MappingProxyType({})
#: Block id -> utilization.
Used = Mapping[str, float]
UNKNOWN: Used = MappingProxyType({})


class Made(NamedTuple):
    """What an action makes, and of which blocks (none: of the whole model); no blueprint: it can do nothing.

    takes: `<gene key>/<axis>` -> which of the parent's units go where, as `inherit.plan.plan` has them. stacked: ids of
    new blocks whose output projections are copied too.
    """

    blueprint: Blueprint | None
    blocks: tuple[str, ...] = ()
    takes: Mapping[str, AxisMap] = MappingProxyType({})
    stacked: tuple[str, ...] = ()


class _Situation(NamedTuple):
    """What an action acts on, and what is known there."""

    blueprint: Blueprint
    rng: np.random.Generator
    chosen: Chosen
    used: Used


def make(
    blueprint: Blueprint,
    action: GrowthAction,
    rng: np.random.Generator,
    chosen: Chosen = NOBODY,
    used: Used = UNKNOWN,
) -> Made | None:
    """What `action` makes of a blueprint; None where there is nothing to do, as where the model is at its limit.

    rng: of new blocks' ids, and of what is not `chosen` where something has to be. chosen: experts to split, to go, or
    to merge (the first of a block's two stays). used: what `drop_layer` drops the least of; a block without counts 0.
    """
    made: Made = _ACTS[type(action)](action, _Situation(blueprint, rng, chosen, used))
    same = made.blueprint == blueprint and not isinstance(action, CrossExperts)
    return None if made.blueprint is None or same else made


def within(limits: GrowthLimits, before: Blueprint, after: Blueprint, seq_len: int) -> str:
    """Which of the limits forbids that `before` becomes `after`, in words; empty where none does.

    What is beyond a limit already may shrink, or stay as it is.
    """
    sides = before.nominal, after.nominal
    measures: Sequence[tuple[str, float | None, Callable[[Blueprint], float]]] = (
        ("max_layers", limits.max_layers, lambda side: len(side.blocks)),
        ("max_dim", limits.max_dim, lambda side: side.emb.dim),
        ("max_params", limits.max_params, parameter_count),
        ("max_flops_per_token", limits.max_flops_per_token, lambda side: total(side, seq_len).flops),
    )
    for name, most, measure in measures:
        if most is not None:
            old, new = (measure(side) for side in sides)
            if new > most and new > old:
                return f"{name} is {most:,.15g}, it would have {new:,.15g}"
    return ""


# ------------------------------------------------------------------------------------------------------ widths


def _resized(action: Widen | Narrow, on: _Situation) -> Made:
    """Other widths of all parts that have them, in the blocks that are named."""
    blueprint = on.blueprint
    if action.target == "dim":
        emb = blueprint.emb.evolve(dim=times(blueprint.emb.dim, action.factor))
        return Made(None if emb is None else blueprint.evolve(emb=emb))
    ctx, target = blueprint.nominal.context(), action.target
    return _in_blocks(on, action.blocks, lambda part: part.resized(target, action.factor, ctx))


def _in_blocks(on: _Situation, ids: Sequence[str], change: Callable[[Part], Part | None]) -> Made:
    """Every part that `change` gives another for, in the blocks of these ids, or in all."""
    blocks, changed = list(on.blueprint.blocks), list[str]()
    for position, block in enumerate(blocks):
        if not ids or block.id in ids:
            other = _with_parts(block, change)
            if other is not None:
                blocks[position] = other
                changed.append(block.id)
    return Made(on.blueprint.evolve(blocks=tuple(blocks)), tuple(changed))


def _with_parts(block: Block, change: Callable[[Part], Part | None]) -> Block | None:
    """The block with other parts; None where none is another, or they do not go together."""
    slots = {name: part and (change(part) or part) for name, part in _slots(block).items()}
    return block.evolve(**slots, extras=tuple(change(extra) or extra for extra in block.extras))


def _slots(block: Block) -> dict[str, Part | None]:
    return {"attn": block.attn, "ssm": block.ssm, "ffn": block.ffn}


def _vocabulary(action: GrowVocabulary, on: _Situation) -> Made:
    """More tokens, where there are fewer."""
    emb = on.blueprint.emb
    if emb.vocab is not None and emb.vocab >= action.tokens:
        return Made(None)
    return Made(on.blueprint.evolve(emb=emb.evolve(vocab=action.tokens)))


# ------------------------------------------------------------------------------------------------------- depth


def _deepen(action: Deepen, on: _Situation) -> Made:
    """New blocks after those that they are copies of."""
    blocks, news = on.blueprint.blocks, list[Block]()
    after: dict[int, list[Block]] = {}
    for position, sources in _insertions(action, len(blocks)):
        so_far = on.blueprint.model_copy(update={"blocks": (*blocks, *news)})
        made = copied(so_far, [blocks[i] for i in sources], on.rng)
        after[position] = [_fresh(block) if action.how == "fresh" else block for block in made]
        news += after[position]
    deeper = [block for position, old in enumerate(blocks) for block in (old, *after.get(position, ()))]
    ids = tuple(block.id for block in news)
    return Made(on.blueprint.with_blocks(deeper), ids, stacked=ids if action.how == "stack" else ())


def _insertions(action: Deepen, depth: int) -> list[tuple[int, list[int]]]:
    """(position after which new blocks come, positions of those that they are copies of), from the first on.

    In the middle and at the end all come at once, copies of as many blocks before them, of those in turn where there
    are fewer; alternately, every one is a copy of the block before it.
    """
    count = action.layers
    if action.where == "alternate":
        places = [min(depth, max(1, round((i + 1) * depth / count))) - 1 for i in range(count)]
        return [(place, [place] * places.count(place)) for place in sorted(set(places))]
    last = depth - 1 if action.where == "end" else (depth + 1) // 2 - 1
    run = min(count, last + 1)
    return [(last, [last + 1 - run + i % run for i in range(count)])]


def _fresh(block: Block) -> Block:
    """A block of the same parts whose weights come from nowhere; without modifiers, which may not start neutral."""
    extras = tuple(extra for extra in block.extras if not isinstance(extra, Modifier))
    return block.model_copy(update={"origin": None, "extras": extras})


def _drop(action: DropLayer, on: _Situation) -> Made:
    """Without the blocks least used, by chance among equals; one is kept."""
    blocks = on.blueprint.blocks
    order = on.rng.permutation(len(blocks))
    by_use = sorted(order.tolist(), key=lambda position: on.used.get(blocks[position].id, 0.0))
    gone = set(by_use[: min(action.layers, len(blocks) - 1)])
    kept = [block for position, block in enumerate(blocks) if position not in gone]
    return Made(on.blueprint.with_blocks(kept), tuple(blocks[position].id for position in sorted(gone)))


# ----------------------------------------------------------------------------------------------------- experts


def _to_moe(action: ToMoE, on: _Situation) -> Made:
    """A mixture in the place of every dense layer."""

    def mixture(part: Part) -> Part | None:
        if not isinstance(part, MLP):
            return None
        return MoE(hidden=part.hidden, activation=part.activation, n_experts=action.n_experts, k=action.k)

    return _in_blocks(on, action.blocks, mixture)


def _add_experts(action: AddExperts, on: _Situation) -> Made:
    """More places, each with an expert, in every mixture that has room."""

    def larger(part: Part) -> Part | None:
        if not isinstance(part, MoE) or not part.stacked:
            return None
        room = action.count if action.max_experts is None else action.max_experts - part.n_experts
        return part.with_places(part.own_places + min(action.count, room)) if room > 0 else None

    return _in_blocks(on, action.blocks, larger)


def _split(action: SplitExperts, on: _Situation) -> Made:
    """A twin beside every chosen expert, or one of each mixture by chance, while there is room."""

    def split(moe: MoE, experts: Sequence[int]) -> Sharing:
        room = len(experts) if action.max_experts is None else action.max_experts - moe.n_experts
        sharing = moe.sharing
        for expert in experts[: max(0, room)]:
            sharing = sharing.split(expert)
        return sharing

    return _shared_otherwise(on, action.blocks, 1, split)


def _prune(action: PruneExperts | MergeExperts, on: _Situation) -> Made:
    """Without the chosen experts, or one of each mixture by chance, as far as enough are left. Of two that merge the
    first stays."""
    pair = isinstance(action, MergeExperts)

    def prune(moe: MoE, experts: Sequence[int]) -> Sharing:
        sharing, left = moe.sharing, moe.n_experts
        for expert in experts[1:] if pair else experts:
            fewer = sharing.without(expert)
            if left > action.min_experts and moe.shared_by(fewer) is not None:
                sharing, left = fewer, left - 1
        return sharing

    return _shared_otherwise(on, action.blocks, 1 + pair, prune)


def _cross(action: CrossExperts, on: _Situation) -> Made:
    """Nothing of the architecture: it is weights that become others, in the mixtures that something is chosen of."""
    blocks = tuple(block for block in on.chosen if not action.blocks or block in action.blocks)
    return Made(on.blueprint if blocks else None, blocks)


def _shared_otherwise(
    on: _Situation, ids: Sequence[str], by_chance: int, change: Callable[[MoE, Sequence[int]], Sharing]
) -> Made:
    """Mixtures whose experts have split or gone. by_chance: how many to take of each where none are chosen at all."""
    blocks, changed, takes = list(on.blueprint.blocks), list[str](), dict[str, AxisMap]()
    for position, block in enumerate(blocks):
        moe = block.ffn
        if not isinstance(moe, MoE) or (ids and block.id not in ids):
            continue
        experts = on.chosen.get(block.id, ())
        if not on.chosen:
            experts = tuple(on.rng.permutation(moe.stacked)[:by_chance].tolist())
        sharing = change(moe, experts)
        other = moe.shared_by(sharing)
        if other is not None:
            blocks[position] = block.model_copy(update={"ffn": other})
            changed.append(block.id)
            takes |= {f"{block.id}.ffn/{axis}": take for axis, take in sharing.takes().items()}
    return Made(on.blueprint.evolve(blocks=tuple(blocks)), tuple(changed), takes)


_ACTS: Mapping[type[Action], Callable[..., Made]] = {
    Widen: _resized,
    Narrow: _resized,
    GrowVocabulary: _vocabulary,
    Deepen: _deepen,
    DropLayer: _drop,
    ToMoE: _to_moe,
    AddExperts: _add_experts,
    SplitExperts: _split,
    PruneExperts: _prune,
    MergeExperts: _prune,
    CrossExperts: _cross,
}
