"""Actions on experts: which ones they are about, and what the weights of those that merge or cross become first."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from morphogen.blueprint.growth import CrossExperts, GrowthAction, MergeExperts, PruneExperts, SplitExperts
from morphogen.blueprint.schema import Blueprint
from morphogen.blueprint.triggers import ExpertUsageTrigger, Trigger
from morphogen.growth import blending
from morphogen.growth.morphogenesis import Experts, mixtures
from morphogen.inherit.splice import StateDict
from morphogen.network import LanguageModel
from morphogen.variation.making import Chosen


@dataclass(frozen=True)
class Situation:
    """What experts are chosen by. steps: behind the weights. ids_BT: text on which it is measured what they write."""

    model: LanguageModel
    experts: Experts
    steps: int
    ids_BT: Tensor

    @property
    def blueprint(self) -> Blueprint:
        """The architecture as it is now."""
        return self.model.blueprint

    def state(self) -> StateDict:
        """The weights."""
        return {name: tensor.detach() for name, tensor in self.model.state_dict().items()}

    def written(self) -> dict[str, list[float]]:
        """What each expert writes."""
        return blending.written(self.model, self.ids_BT)


def _split(action: SplitExperts, when: Trigger, on: Situation) -> Chosen:
    return on.experts.to_split(when, action, on.blueprint, on.steps)


def _prune(action: PruneExperts, when: Trigger, on: Situation) -> Chosen:
    return on.experts.to_prune(when, action, on.blueprint, on.steps, on.written)


def _merge(action: MergeExperts, when: Trigger, on: Situation) -> Chosen:
    state = on.state()

    def nearest(block: str, expert: int | None) -> tuple[int, int]:
        if expert is None:
            return blending.nearest_pair(state, on.blueprint, block)
        return expert, blending.nearest(state, on.blueprint, block, expert)

    return on.experts.to_merge(when, action, on.blueprint, on.steps, nearest)


def _cross(action: CrossExperts, when: Trigger, on: Situation) -> Chosen:
    return on.experts.to_cross(when, action, on.blueprint, on.steps, on.written)


_CHOOSERS: Mapping[type, Callable[[Any, Trigger, Situation], Chosen]] = {
    SplitExperts: _split,
    PruneExperts: _prune,
    MergeExperts: _merge,
    CrossExperts: _cross,
}


def choose(action: GrowthAction, when: Trigger, on: Situation) -> Chosen | None:
    """The experts that an action is about now, by block; None for one that is about none in particular."""
    chooser = _CHOOSERS.get(type(action))
    return None if chooser is None else chooser(action, when, on)


def beyond(trigger: ExpertUsageTrigger, action: GrowthAction, when: Trigger, on: Situation) -> Chosen:
    """The experts that an `expert_usage` trigger fires for: those that its rule's action would act on; for other
    actions all that are used more than they should be."""
    chosen = choose(action, when, on)
    return on.experts.to_split(trigger, SplitExperts(), on.blueprint, on.steps) if chosen is None else chosen


def allowed(action: GrowthAction) -> float:
    """What an action may cost on a held batch, in nats, before it is taken back."""
    return action.loss_budget if isinstance(action, CrossExperts) else math.inf


def recast(
    action: GrowthAction, chosen: Chosen, on: Situation, tensors: Mapping[str, StateDict]
) -> dict[str, StateDict]:
    """Weights and moments before the action, with experts merged or crossed as it wants; others as they are.

    tensors: kind -> parameter -> tensor, the weights under "".
    """
    made = {kind: dict(of) for kind, of in tensors.items()}
    for block, i, j, share in _pairs(action, chosen, on):
        _, order = blending.match(made[""], on.blueprint, block, i, j)
        join = blending.blended if isinstance(action, CrossExperts) else blending.merged
        for of in made.values():
            blend = {name: x for name, x in of.items() if x.dtype != torch.bool}
            of |= join(blend, on.blueprint, block, (i, j), share, order)
    return made


def _pairs(action: GrowthAction, chosen: Chosen, on: Situation) -> list[tuple[str, int, int, float]]:
    """Who becomes a blend with whom: (block, the expert that stays, the other, the other's share)."""
    if isinstance(action, CrossExperts):
        return [(block, least, fittest, action.blend) for block, (least, fittest) in chosen.items()]
    if isinstance(action, MergeExperts):
        return [(block, i, j, _share(on, block, i, j)) for block, (i, j) in chosen.items()]
    if isinstance(action, PruneExperts) and action.chooser == "merge":
        state = on.state()
        found = []
        for block, going in chosen.items():
            staying = [e for e in range(mixtures(on.blueprint)[block].stacked) if e not in going]
            for j in going if staying else ():
                near = {i: blending.match(state, on.blueprint, block, i, j)[0] for i in staying}
                i = max(staying, key=near.__getitem__)
                found.append((block, i, j, _share(on, block, i, j)))
        return found
    return []


def _share(on: Situation, block: str, i: int, j: int) -> float:
    """How much of a merged expert is the second's, by usage."""
    usage = on.experts.usage(block)
    both = usage[i] + usage[j]
    return usage[j] / both if both > 0.0 else 0.5
