"""Crossover: blocks are homologous when they have the same gene id, wherever they stand.

Every block of the child comes whole from one parent; embedding, recurrences, norm and head come from the first. A
child has blocks of both parents, no gene twice, and an architecture that is neither parent's.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations_with_replacement
from typing import NamedTuple

import numpy as np

from morphogen.blueprint.diff import changes, digest
from morphogen.blueprint.schema import Block, Blueprint
from morphogen.candidate import Edit
from morphogen.variation.operator import Proposal

#: A child's blocks, each with the number of the parent it comes from.
Mosaic = list[tuple[Block, int]]


class Cut(NamedTuple):
    """Where the parents are cut: the child is `first[:head]`, then `second[start:stop]`, then `first[tail:]`."""

    head: int
    start: int
    stop: int
    tail: int


def one_point(first: Blueprint, second: Blueprint, rng: np.random.Generator) -> Proposal | None:
    """The first parent's blocks up to a shared gene, then the second's; None where no cut gives a new architecture."""
    at, there = _places(first), _places(second)
    stop, tail = len(second.blocks), len(first.blocks)
    # a cut is before the shared gene or after it
    cuts = [Cut(at[gene] + past, there[gene] + past, stop, tail) for gene in at if gene in there for past in (0, 1)]
    return _first_new("crossover_one_point", first, second, cuts, rng)


def aligned_span(first: Blueprint, second: Blueprint, rng: np.random.Generator) -> Proposal | None:
    """The first parent with the stretch from one shared gene to another, both included, taken from the second.

    The two may be the same gene. None where no stretch gives a new architecture.
    """
    at, there = _places(first), _places(second)
    shared = [gene for gene in at if gene in there]
    pairs = [(a, b) for a, b in combinations_with_replacement(shared, 2) if there[a] <= there[b]]
    cuts = [Cut(at[a], there[a], there[b] + 1, at[b] + 1) for a, b in pairs]
    return _first_new("crossover_aligned_span", first, second, cuts, rng)


Crossover = Callable[[Blueprint, Blueprint, np.random.Generator], Proposal | None]

#: Name of the edit -> how it is made.
CROSSOVERS: Mapping[str, Crossover] = {"crossover_one_point": one_point, "crossover_aligned_span": aligned_span}


def crossover(first: Blueprint, second: Blueprint, rng: np.random.Generator) -> Proposal | None:
    """A child by one of the crossovers, chosen evenly; by the other where that one has none to give; else None."""
    makers = list(CROSSOVERS.values())
    made = (makers[i](first, second, rng) for i in rng.permutation(len(makers)))
    return next((proposal for proposal in made if proposal is not None), None)


def _places(blueprint: Blueprint) -> dict[str, int]:
    return {block.id: i for i, block in enumerate(blueprint.blocks)}


def _mosaic(first: Blueprint, second: Blueprint, cut: Cut) -> Mosaic:
    """The child's blocks; a gene that the first parent's share holds is left out of the second's."""
    head, middle, tail = first.blocks[: cut.head], second.blocks[cut.start : cut.stop], first.blocks[cut.tail :]
    own = {block.id for block in (*head, *tail)}
    return [
        *((block, 0) for block in head),
        *((block, 1) for block in middle if block.id not in own),
        *((block, 0) for block in tail),
    ]


def _first_new(
    name: str, first: Blueprint, second: Blueprint, cuts: Sequence[Cut], rng: np.random.Generator
) -> Proposal | None:
    """The child of the first of `cuts`, in random order, that has blocks of both parents and is like neither."""
    parents = {digest(first), digest(second)}
    for i in rng.permutation(len(cuts)):
        mosaic = _mosaic(first, second, cuts[i])
        if {source for _, source in mosaic} != {0, 1}:
            continue
        child = first.with_blocks(block for block, _ in mosaic)
        if child is None or digest(child) in parents:
            continue
        sources = {block.id: source for block, source in mosaic}
        edit = Edit(operator=name, target="model", preserves=False, changes=changes(first, child), sources=sources)
        return Proposal(child, (edit,))
    return None
