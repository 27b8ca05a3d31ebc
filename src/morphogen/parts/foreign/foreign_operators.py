"""Operators on layers of other models: into and out of a block, which layers they are, and how they are joined.

None is drawn unless an experiment names donors, or its model has such layers (`variation.foreign`).
"""

import numpy as np

from morphogen.parts.contract.operator import BlockT, block_operator, operator, pick
from morphogen.parts.contract.part import Context
from morphogen.parts.foreign.foreign import Foreign, ForeignLayerOf

#: Ranks of what is learned beside frozen matrices: the first, and the most that doubling leads to.
FIRST_RANK, MOST_RANK = 4, 64


@block_operator(preserves=True, weight=0.0)
def insert_foreign(block: BlockT, ctx: Context, rng: np.random.Generator) -> BlockT | None:
    """One or two layers of a donor, in order, as a branch; it writes zero at first. Ref: arXiv 2305.14705."""
    if not ctx.donors or any(isinstance(extra, Foreign) for extra in block.extras):
        return None
    model = pick(rng, ctx.donors)
    assert model is not None
    there = _layers(model)
    if not there:
        return None
    at, more = int(rng.integers(len(there))), int(rng.integers(2))
    layers = there[at : at + 1 + (more and there[at + 1 : at + 2] == (there[at] + 1,))]
    new = Foreign(
        experts=tuple(ForeignLayerOf(model=model, layer=layer) for layer in layers),
        adapter="linear" if rng.random() < 0.5 else "bottleneck",
    )
    return block.evolve(extras=(*block.extras, new))


@operator(Foreign, preserves=False, weight=0.0)
def change_foreign_source(part: Foreign, ctx: Context, rng: np.random.Generator) -> Foreign | None:
    """Another layer in the place of one: of a donor, or where there is none of the same model."""
    at = int(rng.integers(len(part.experts)))
    model = pick(rng, ctx.donors or (part.experts[at].model,))
    assert model is not None
    taken = {expert.layer for expert in part.experts if expert.model == model}
    layer = pick(rng, [n for n in _layers(model) if n not in taken])
    if layer is None:
        return None
    new = ForeignLayerOf(model=model, layer=layer)
    return part.evolve(experts=(*part.experts[:at], new, *part.experts[at + 1 :]))


@operator(Foreign, preserves=False, weight=0.0)
def add_foreign_expert(part: Foreign, ctx: Context, rng: np.random.Generator) -> Foreign | None:
    """One more layer, of a donor if there is one, among those that a router chooses from or weighs.

    Without donors it is of the same models. It writes zero at first, but takes its share of the gates."""
    if part.router == "none":
        return None
    model = pick(rng, ctx.donors or tuple(dict.fromkeys(expert.model for expert in part.experts)))
    assert model is not None
    taken = {expert.layer for expert in part.experts if expert.model == model}
    layer = pick(rng, [n for n in _layers(model) if n not in taken])
    if layer is None:
        return None
    return part.evolve(experts=(*part.experts, ForeignLayerOf(model=model, layer=layer)))


@operator(Foreign, preserves=False, weight=0.0)
def drop_foreign_expert(part: Foreign, ctx: Context, rng: np.random.Generator) -> Foreign | None:
    """One layer fewer among those that a router chooses from or weighs; of two the other stays, without a router."""
    if part.router == "none" or len(part.experts) < 2:
        return None
    gone = int(rng.integers(len(part.experts)))
    left = (*part.experts[:gone], *part.experts[gone + 1 :])
    if len(left) == 1:
        return part.evolve(experts=left, router="none")
    return part.evolve(experts=left, top_k=min(part.top_k, len(left)))


@operator(Foreign, preserves=False, weight=0.0)
def change_foreign_adapter(part: Foreign, ctx: Context, rng: np.random.Generator) -> Foreign | None:
    """By a matrix or by a bottleneck, whichever it is not; or a bottleneck of half the units."""
    if part.adapter == "linear":
        return part.evolve(adapter="bottleneck")
    return part.evolve(adapter="linear") if rng.random() < 0.5 else part.evolve(bottleneck=part.bottleneck // 2)


@operator(Foreign, preserves=True, weight=0.0)
def grow_foreign_adapter(part: Foreign, ctx: Context, rng: np.random.Generator) -> Foreign | None:
    """Twice the units of a bottleneck, writing zero."""
    return part.evolve(bottleneck=2 * part.bottleneck) if part.adapter == "bottleneck" else None


@operator(Foreign, preserves=False, weight=0.0)
def change_foreign_router(part: Foreign, ctx: Context, rng: np.random.Generator) -> Foreign | None:
    """Another way to join several layers, or another setting of it.

    In order, weighed by the prefix, or chosen by each token; or how many it chooses, or how the prefix is summed up.
    """
    if len(part.experts) < 2:
        return None
    router = pick(rng, ["none", "simple", "token"])
    changes: dict[str, object] = {"router": router}
    if router == "simple":
        changes["pooling"] = pick(rng, ["mean", "max", "attention"])
    if router == "token":
        changes["top_k"] = int(rng.integers(1, len(part.experts) + 1))
    return part.evolve(**changes)


@operator(Foreign, preserves=True, weight=0.0)
def unfreeze_foreign(part: Foreign, ctx: Context, rng: np.random.Generator) -> Foreign | None:
    """Frozen layers are trained, or something of low rank beside their matrices; or twice its rank. Ref: arXiv
    2106.09685."""
    if not part.freeze:
        return None
    if part.lora:
        return part.evolve(lora=2 * part.lora) if 2 * part.lora <= MOST_RANK else None
    return part.evolve(lora=FIRST_RANK) if rng.random() < 0.5 else part.evolve(freeze=False, offload=False)


@block_operator(preserves=False, weight=0.0)
def drop_foreign(block: BlockT, ctx: Context, rng: np.random.Generator) -> BlockT | None:
    """Without the layers of other models."""
    kept = tuple(extra for extra in block.extras if not isinstance(extra, Foreign))
    return block.evolve(extras=kept) if len(kept) < len(block.extras) else None


def _layers(model: str) -> tuple[int, ...]:
    """Those of a model whose weights are there."""
    from morphogen.parts.foreign.donors.opened import donor_of

    return donor_of(model).available
