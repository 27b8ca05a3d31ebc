"""What experts weigh, write and become: loads and outputs of a model's experts, how near two are, merging and crossing.

E experts, H hidden units, W weights of one unit, D model dim, B batch, T tokens
"""

from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from morphogen.blueprint.schema import Blueprint
from morphogen.growth.morphogenesis import Pair, mixtures
from morphogen.inherit.splice import StateDict
from morphogen.network import LanguageModel
from morphogen.parts.contract.branch import Record
from morphogen.parts.ffn.moe import MoE
from morphogen.parts.ffn.moe_layer import Experts
from morphogen.parts.ffn.stack import STACKED

#: Which unit of the second expert goes with each of the first.
Order = NDArray[np.int64]


def layers(model: LanguageModel) -> dict[str, Experts]:
    """The modules of a model's mixtures, by the id of their block."""
    found = {}
    for block, module in zip(model.blueprint.blocks, model.blocks, strict=True):
        for layer in module.children():
            if isinstance(layer, Experts):
                found[block.id] = layer
    return found


def loads(model: LanguageModel, record: Record) -> dict[str, Tensor]:
    """Assignments to each expert in the passes of a record, by block id; those that an expert refused are among them,
    shared experts are not."""
    return {block: record.tallies[layer] for block, layer in layers(model).items() if layer in record.tallies}


@torch.no_grad()
def written(model: LanguageModel, ids_BT: Tensor) -> dict[str, list[float]]:
    """Mean over the tokens sent to each expert of gate weight × ‖output‖, by block id; 0 where none are sent.

    What an expert refuses it does not write. The model is run on the tokens as outside training.
    """
    sums: dict[str, tuple[Tensor, Tensor]] = {}

    def take(block: str, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(layer, Experts)
        total_E, count_E = layer.written(layer.norm(inputs[0]))
        if block in sums:  # a block of a recurrence, once again
            total_E, count_E = sums[block][0] + total_E, sums[block][1] + count_E
        sums[block] = total_E, count_E

    hooks = [layer.register_forward_pre_hook(partial(take, block)) for block, layer in layers(model).items()]
    mode = model.training
    model.eval()
    try:
        model.hidden(ids_BT)
    finally:
        model.train(mode)
        for hook in hooks:
            hook.remove()
    return {block: (total_E / count_E.clamp(min=1)).tolist() for block, (total_E, count_E) in sums.items()}


class _Place(NamedTuple):
    """Where a mixture stands among a model's tensors."""

    prefix: str
    moe: MoE

    @classmethod
    def of(cls, blueprint: Blueprint, block: str) -> "_Place":
        position = next(i for i, one in enumerate(blueprint.blocks) if one.id == block)
        return cls(f"blocks.{position}.ffn.", mixtures(blueprint)[block])

    def stacks(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The stacked matrices, (E, H, D) each."""
        names = [self.prefix + name for name in STACKED]
        return {name: tensors[name] for name in names if name in tensors}

    def units(self, state: Mapping[str, Tensor], expert: int) -> Tensor:
        """An expert's weights unit by unit, (H, W): what a unit reads, and what it writes."""
        rows = [stack_EHD[expert].detach().double() for stack_EHD in self.stacks(state).values()]
        return torch.cat(rows, 1)


def match(state: Mapping[str, Tensor], blueprint: Blueprint, block: str, i: int, j: int) -> tuple[float, Order]:
    """How near two experts of a mixture are, and which of j's hidden units goes with each of i's.

    The cosine of all their weights, (Σ_h u_h · v_π(h)) / (‖u‖·‖v‖), with u_h what unit h of i reads and writes (its
    rows of up, gate and down) and π the order of j's units for which it is greatest: an expert is the same whatever the
    order of its units. i and j are numbers in the stack.
    """
    place = _Place.of(blueprint, block)
    u_HW, v_HW = place.units(state, i), place.units(state, j)
    _, order = linear_sum_assignment((u_HW @ v_HW.t()).cpu().numpy(), maximize=True)
    norms = torch.linalg.vector_norm(u_HW) * torch.linalg.vector_norm(v_HW)
    inner = (u_HW * v_HW[torch.from_numpy(order)]).sum()
    return float(inner / norms) if norms > 0.0 else 0.0, order


def nearest(state: Mapping[str, Tensor], blueprint: Blueprint, block: str, expert: int) -> int:
    """The expert of the stack that is nearest to another one."""
    stacked = mixtures(blueprint)[block].stacked
    others = [e for e in range(stacked) if e != expert]
    return max(others, key=lambda e: match(state, blueprint, block, expert, e)[0])


def nearest_pair(state: Mapping[str, Tensor], blueprint: Blueprint, block: str) -> Pair:
    """The two experts of the stack that are nearest to each other."""
    stacked = mixtures(blueprint)[block].stacked
    pairs = [(i, j) for i in range(stacked) for j in range(i + 1, stacked)]
    return max(pairs, key=lambda pair: match(state, blueprint, block, *pair)[0])


def blended(
    tensors: Mapping[str, Tensor], blueprint: Blueprint, block: str, pair: Pair, share: float, order: Order
) -> StateDict:
    """The stacks with expert i at (1 − share)·i + share·j, by name; for pair (i, j).

    tensors: weights, or moments of one kind, in which case those that are there. order: which of j's units goes with
    each of i's.
    """
    i, j = pair
    out = {}
    for name, stack_EHD in _Place.of(blueprint, block).stacks(tensors).items():
        if stack_EHD.dim() == 3 and stack_EHD.is_floating_point():  # a step count, or which entries are young, has none
            blend = out[name] = stack_EHD.detach().clone()
            blend[i] = torch.lerp(blend[i], blend[j][torch.from_numpy(order).to(blend.device)], share)
    return out


def merged(
    tensors: Mapping[str, Tensor], blueprint: Blueprint, block: str, pair: Pair, share: float, order: Order
) -> StateDict:
    """`blended`, and the router between the two: what expert i is to be when it takes the place of j too.

    The router's rows are averaged where each of the two has a place of its own; where twins merge their place stays as
    it is, and so does one that is shared with a third.
    """
    i, j = pair
    place = _Place.of(blueprint, block)
    moe, out = place.moe, blended(tensors, blueprint, block, pair, share, order)
    alone = i < moe.own_places and j < moe.own_places and not {i, j} & set(moe.twins)
    for name in [place.prefix + "router.weight", place.prefix + "router.bias"] if alone else []:
        if name in tensors and tensors[name].dim() > 0 and tensors[name].is_floating_point():
            rows = out[name] = tensors[name].detach().clone()
            rows[i] = torch.lerp(rows[i], rows[j], share)
    return out
