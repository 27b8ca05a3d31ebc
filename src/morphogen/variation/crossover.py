"""Crossover: blocks are homologous when they have the same gene id, wherever they stand.

Every block of the child comes whole from one parent; embedding, recurrences, norm, head and growth rules come from the
first. Where blocks are taken out of the midst of the second, so are its rules of other ids, as far as they fit the
child. A child has blocks of both parents, no gene twice, and an architecture that is neither parent's.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations_with_replacement
from typing import NamedTuple

import numpy as np

from morphogen.blueprint.diff import changes, digest
from morphogen.blueprint.schema import Block, Blueprint
from morphogen.candidate import Edit
from morphogen.experiment import Crossing
from morphogen.variation.growth import added_rules
from morphogen.variation.merging import MERGES, Crossover
from morphogen.variation.operator import Proposal

#: A child's blocks, each with the number of the parent it comes from.
Mosaic = list[tuple[Block, int]]


#: What an edit calls the crossing that takes no rules of the second parent.
ONE_POINT = "crossover_one_point"
#: Tosses of a coin for every gene before a pair counts as having no new child.
TOSSES = 16


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
    return _first_new(ONE_POINT, first, second, _cut(first, second, cuts, rng))


def aligned_span(first: Blueprint, second: Blueprint, rng: np.random.Generator) -> Proposal | None:
    """The first parent with the stretch from one shared gene to another, both included, taken from the second.

    The two may be the same gene. None where no stretch gives a new architecture.
    """
    at, there = _places(first), _places(second)
    shared = [gene for gene in at if gene in there]
    pairs = [(a, b) for a, b in combinations_with_replacement(shared, 2) if there[a] <= there[b]]
    cuts = [Cut(at[a], there[a], there[b] + 1, at[b] + 1) for a, b in pairs]
    return _first_new("crossover_aligned_span", first, second, _cut(first, second, cuts, rng))


def uniform(first: Blueprint, second: Blueprint, rng: np.random.Generator) -> Proposal | None:
    """Every gene from either parent with even chances; what that parent has not, the child has not.

    Shared genes stand where the first parent has them, the second's own after what they follow there. None where the
    parents share no gene or no toss gives a new architecture.
    """
    if not _places(first).keys() & _places(second).keys():
        return None
    return _first_new("crossover_uniform", first, second, (_tossed(first, second, rng) for _ in range(TOSSES)))


#: How a child is made, by its name in `evolution.crossover`; in the edit it is `crossover_<name>`.
CROSSOVERS: Mapping[Crossing, Crossover] = {"one_point": one_point, "aligned_span": aligned_span, "uniform": uniform}


def crossover(
    first: Blueprint, second: Blueprint, rng: np.random.Generator, weights: Mapping[Crossing, float] | None = None
) -> Proposal | None:
    """A child by one of the crossovers or merges, chosen by weight (without any: evenly by one of the crossovers); by
    another where that one has none to give; else None. Those of weight 0 or without one are not used.
    """
    weights = dict.fromkeys(CROSSOVERS, 1.0) if weights is None else weights
    ways = {**CROSSOVERS, **MERGES}
    names = [name for name in ways if weights.get(name, 0.0) > 0]
    weight = np.array([weights[name] for name in names])
    order = rng.choice(len(names), size=len(names), replace=False, p=weight / weight.sum())
    made = (ways[names[i]](first, second, rng) for i in order)
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


def _cut(first: Blueprint, second: Blueprint, cuts: Sequence[Cut], rng: np.random.Generator) -> Iterator[Mosaic]:
    """What `cuts` give, in random order."""
    return (_mosaic(first, second, cuts[i]) for i in rng.permutation(len(cuts)))


def _tossed(first: Blueprint, second: Blueprint, rng: np.random.Generator) -> Mosaic:
    """Every gene as the parent has it that a coin names."""
    theirs, places = {block.id: block for block in second.blocks}, _places(first)
    genes = [*places, *(gene for gene in theirs if gene not in places)]
    heads = dict(zip(genes, (rng.random(len(genes)) < 0.5).tolist(), strict=True))
    child: Mosaic = []
    for block in first.blocks:
        if not heads[block.id]:
            child.append((block, 0))
        elif block.id in theirs:
            child.append((theirs[block.id], 1))
    at = 0
    for block in second.blocks:
        standing = [gene.id for gene, _ in child]
        if block.id in standing:
            at = standing.index(block.id) + 1
        elif block.id not in places and heads[block.id]:
            child.insert(at, (block, 1))
            at += 1
    return child


def _first_new(name: str, first: Blueprint, second: Blueprint, mosaics: Iterable[Mosaic]) -> Proposal | None:
    """The child of the first of `mosaics` that has blocks of both parents and is like neither."""
    parents = {digest(first), digest(second)}
    for mosaic in mosaics:
        if {source for _, source in mosaic} != {0, 1}:
            continue
        child = first.with_blocks(block for block, _ in mosaic)
        if child is not None and second.growth and name != ONE_POINT:
            child = added_rules(child, second)
        if child is None or digest(child) in parents:
            continue
        sources = {block.id: source for block, source in mosaic}
        edit = Edit(operator=name, target="model", preserves=False, changes=changes(first, child), sources=sources)
        return Proposal(child, (edit,))
    return None
