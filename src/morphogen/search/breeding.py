"""A child of those that may breed: a crossover, edits of a parent, a copy, or a walk from a founder."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic

import numpy as np

from morphogen.candidate import Edit
from morphogen.experiment import Evolution
from morphogen.search.space import Bred, G, Space, T
from morphogen.selection.parents import Pool, select_parent

#: Proposals drawn for one place in a generation before the generation stays smaller.
TRIES = 50


@dataclass(frozen=True)
class Breeding(Generic[G, T]):
    """How one generation comes from the last.

    survivors: ids, best first, in the baseline without selection the founders'. pool: the same with what parents are
    selected by. genome: that of an id. generation: the number of the new one.
    """

    evolution: Evolution
    space: Space[G, T]
    survivors: tuple[str, ...]
    pool: Pool
    genome: Callable[[str], G]
    generation: int

    def propose(
        self, rng: np.random.Generator, is_new: Callable[[str], bool]
    ) -> tuple[Bred[G], tuple[str, ...]] | None:
        """A child whose key `is_new` (in the control any copy), and its parents; None when `TRIES` draws found
        none."""
        for _ in range(TRIES):
            drawn = self._draw(rng)
            if drawn is not None and (self._by_weights(drawn[0]) or is_new(self.space.key(drawn[0][0]))):
                return drawn
        return None

    def _by_weights(self, made: Bred[G]) -> bool:
        """Whether a child may be a copy of its parent: every one of the control, and one with weights of two."""
        return not self.evolution.edits or any(edit.merging is not None for edit in made[1])

    def _draw(self, rng: np.random.Generator) -> tuple[Bred[G], tuple[str, ...]] | None:
        """One crossover or mutation of selected parents, or a copy of one in the control; None where it fails."""
        evolution, pool = self.evolution, self.pool
        if evolution.baseline == "random":
            return self._walk(rng)
        row = select_parent(evolution.parent_selection, pool, rng)
        first = pool.ids[row]
        parent = self.genome(first)
        if not evolution.edits:
            return (parent, ()), (first,)
        if rng.random() < evolution.crossover_prob and len(pool) > 1:
            second = pool.ids[select_parent(evolution.parent_selection, pool, rng)]
            if second == first:
                others = pool.without(row)
                second = others.ids[select_parent(evolution.parent_selection, others, rng)]
            crossed = self.space.crossover(parent, self.genome(second), rng)
            if crossed is not None:
                return crossed, (first, second)
        mutated = self.space.mutate(parent, rng)
        return None if mutated is None else (mutated, (first,))

    def _walk(self, rng: np.random.Generator) -> tuple[Bred[G], tuple[str, ...]] | None:
        """A random walk of edits from a founder, as long as a lineage may be by now: the baseline without selection."""
        founder = str(rng.choice(self.survivors))
        genome, edits = self.genome(founder), list[Edit]()
        for _ in range(int(rng.integers(1, self.generation + 1))):
            mutated = self.space.mutate(genome, rng)
            if mutated is None:
                break
            genome = mutated[0]
            edits += mutated[1]
        return ((genome, tuple(edits)), (founder,)) if edits else None
