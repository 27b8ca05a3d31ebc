"""Crossings that merge weights: the child has the first parent's architecture and what both have learnt.

`inherit.merging` has the methods. Blocks are homologous as in every crossover, by gene id.
"""

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np

from morphogen.blueprint.diff import changes
from morphogen.blueprint.schema import Blueprint
from morphogen.blueprint.stacked import stacked
from morphogen.candidate import Edit, Merging
from morphogen.errors import InputError
from morphogen.experiment import Crossing
from morphogen.variation.operator import Proposal

Crossover = Callable[[Blueprint, Blueprint, np.random.Generator], Proposal | None]

#: The second parent's share in an average.
SHARE = (0.25, 0.75)
#: What a task vector is multiplied by, and the share of its entries that is kept.
SCALE, DENSITY = (0.5, 1.0), (0.3, 0.9)
#: Of `della`: how far the chance to be dropped ranges.
EPSILON = 0.2


def averaged(method: str, first: Blueprint, second: Blueprint, rng: np.random.Generator) -> Proposal | None:
    """Between the parents' weights, at a share that is drawn; None where they have no gene in common."""
    share = float(rng.uniform(*SHARE))
    return _merged(Merging(method=method, weights=(1.0 - share, share)), first, second)


def added(method: str, first: Blueprint, second: Blueprint, rng: np.random.Generator) -> Proposal | None:
    """What both have learnt since the run's beginning, added to it by shares that are drawn; None where they have no
    gene in common."""
    weights = (float(rng.uniform(*SCALE)), float(rng.uniform(*SCALE)))
    density = 1.0 if method == "task_arithmetic" else float(rng.uniform(*DENSITY))
    epsilon = EPSILON if method == "della" else 0.0
    seed = int(rng.integers(2**31)) if method in ("dare_ties", "della") else 0
    how = Merging(method=method, weights=weights, density=density, epsilon=epsilon, seed=seed)
    return _merged(how, first, second)


def passthrough(first: Blueprint, second: Blueprint, rng: np.random.Generator) -> Proposal | None:
    """The blocks of the first parent and then those of the second, under new ids where the first has theirs; None where
    widths or norms differ, or one has recurrences."""
    ids = [block.id for block in first.blocks]
    for block in second.blocks:
        taken = {*ids, *(each.id for each in second.blocks)}
        fresh = (name for _ in range(10**9) if (name := first.fresh_id(rng)) not in taken)
        ids.append(next(fresh) if block.id in ids else block.id)
    try:
        child = stacked([first, second], ids).blueprint
    except InputError:
        return None
    how = Merging(method="passthrough", weights=(1.0, 1.0))
    return Proposal(child, (_edit(how, first, child),))


def _merged(how: Merging, first: Blueprint, second: Blueprint) -> Proposal | None:
    return Proposal(first, (_edit(how, first, first),)) if _kinds(first) & _kinds(second) else None


def _kinds(blueprint: Blueprint) -> set[tuple[str, str, str]]:
    """Gene, slot and kind of every part: what two parents need one of in common."""
    return {(block.id, slot, part.label) for block in blueprint.blocks for slot, _, part in block.parts()}


def _edit(how: Merging, first: Blueprint, child: Blueprint) -> Edit:
    return Edit(
        operator=f"merge_{how.method}", target="model", preserves=False, changes=changes(first, child), merging=how
    )


#: How weights are merged, by its name in `evolution.crossover` and in the edit.
MERGES: Mapping[Crossing, Crossover] = {
    "merge_linear": partial(averaged, "linear"),
    "merge_slerp": partial(averaged, "slerp"),
    "merge_task_arithmetic": partial(added, "task_arithmetic"),
    "merge_ties": partial(added, "ties"),
    "merge_dare_ties": partial(added, "dare_ties"),
    "merge_della": partial(added, "della"),
    "merge_passthrough": passthrough,
}
