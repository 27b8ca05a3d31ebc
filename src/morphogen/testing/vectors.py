"""Real vectors as genomes: the same search on problems whose best fronts are known, for rules of selection to be tried.

Children come of simulated binary crossover (Deb and Agrawal 1995) and polynomial mutation (Deb and Goyal 1996), both
kept within bounds as in Deb's NSGA-II code, at its usual settings. Legend: v variables.
"""

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np

from morphogen.candidate import Candidate, Edit, Report, Status
from morphogen.experiment import Evolution
from morphogen.search.machine import Search
from morphogen.search.space import Bred
from morphogen.selection.objectives import Floats

#: Chance of a variable to take part in a crossover, and of the two children's values to be swapped there.
CROSSED, SWAPPED = 0.5, 0.5
#: Chance that the child of a crossover is mutated too.
MUTATED = 0.9


class Vectors:
    """Vectors between bounds `low_v` and `high_v`; `founders` are drawn evenly.

    crossover_eta, mutation_eta: the larger, the closer children are to their parents.
    """

    def __init__(
        self, low_v: Floats, high_v: Floats, founders: int, crossover_eta: float = 15.0, mutation_eta: float = 20.0
    ) -> None:
        self._low_v, self._high_v, self._founders = low_v, high_v, founders
        self._crossover_eta, self._mutation_eta = crossover_eta, mutation_eta

    def founders(self, rng: np.random.Generator) -> tuple[Floats, ...]:
        """Vectors drawn evenly between the bounds."""
        return tuple(rng.uniform(self._low_v, self._high_v) for _ in range(self._founders))

    def record(self, genome: Floats) -> dict[str, Any]:
        """In place of a blueprint, as `x`."""
        return {"blueprint": {"x": genome.tolist()}}

    def load(self, candidate: Candidate) -> Floats:
        """From a record, bit for bit."""
        return np.array(candidate.blueprint["x"], dtype=np.float64)

    def digest(self, genome: Floats) -> str:
        """Equal for vectors that are equal bit for bit."""
        return hashlib.sha256(genome.tobytes()).hexdigest()

    def key(self, genome: Floats) -> str:
        """Its digest."""
        return self.digest(genome)

    def costs(self, genome: Floats) -> dict[str, float]:
        """A vector has none."""
        return {}

    def traits(self, genome: Floats) -> Floats:
        """The vector in units of its bounds."""
        return (genome - self._low_v) / (self._high_v - self._low_v)

    def distance(self, first: Floats, second: Floats) -> float:
        """Euclidean."""
        return float(np.linalg.norm(first - second))

    def features(self, genome: Floats) -> dict[str, float]:
        """Its variables, by number."""
        return {f"x{i}": value for i, value in enumerate(genome.tolist())}

    def after(self, newborn: Sequence[Candidate], survivors: Collection[str]) -> "Vectors":
        """The same: there is nothing to learn."""
        return self

    def mutate(self, genome: Floats, rng: np.random.Generator) -> Bred[Floats] | None:
        """Polynomial mutation of each variable with chance 1/v; None where nothing changed."""
        child_v = self._polynomial(genome, rng)
        return None if np.array_equal(child_v, genome) else (child_v, (_edit("polynomial"),))

    def crossover(self, first: Floats, second: Floats, rng: np.random.Generator) -> Bred[Floats] | None:
        """One child of simulated binary crossover, mutated as a rule."""
        child_v = self._binary(first, second, rng)
        if rng.random() < MUTATED:
            child_v = self._polynomial(child_v, rng)
        return child_v, (_edit("sbx"),)

    def _binary(self, first_v: Floats, second_v: Floats, rng: np.random.Generator) -> Floats:
        power, size = self._crossover_eta + 1.0, len(first_v)
        small_v, large_v = np.minimum(first_v, second_v), np.maximum(first_v, second_v)
        gap_v = large_v - small_v
        taken_v = (rng.random(size) < CROSSED) & (gap_v > 1e-14)
        gap_v = np.where(taken_v, gap_v, 1.0)
        draw_v, swap_v = rng.random(size), rng.random(size) < SWAPPED
        swap_v ^= first_v > second_v  # the child stands at the first parent's end unless swapped
        room_v = np.where(swap_v, self._high_v - large_v, small_v - self._low_v)
        alpha_v = 2.0 - (1.0 + 2.0 * room_v / gap_v) ** -power
        inner_v = draw_v <= 1.0 / alpha_v
        spread_v = np.where(inner_v, draw_v * alpha_v, 1.0 / (2.0 - draw_v * alpha_v)) ** (1.0 / power)
        middle_v, reach_v = 0.5 * (small_v + large_v), 0.5 * spread_v * gap_v
        child_v = np.where(taken_v, np.where(swap_v, middle_v + reach_v, middle_v - reach_v), first_v)
        return np.clip(child_v, self._low_v, self._high_v)

    def _polynomial(self, genome_v: Floats, rng: np.random.Generator) -> Floats:
        power, size = self._mutation_eta + 1.0, len(genome_v)
        taken_v, draw_v = rng.random(size) < min(0.5, 1.0 / size), rng.random(size)
        width_v = self._high_v - self._low_v
        down_v = draw_v < 0.5
        far_v = 1.0 - np.where(down_v, genome_v - self._low_v, self._high_v - genome_v) / width_v
        share_v = np.where(down_v, 2.0 * draw_v, 2.0 * (1.0 - draw_v))
        step_v = 1.0 - (share_v + (1.0 - share_v) * far_v**power) ** (1.0 / power)
        child_v = genome_v + np.where(taken_v, np.where(down_v, -step_v, step_v), 0.0) * width_v
        return np.clip(child_v, self._low_v, self._high_v)


def _edit(operator: str) -> Edit:
    return Edit(operator=operator, target="vector", preserves=False)


def searched(
    evolution: Evolution, space: Vectors, measure: Callable[[Floats], Mapping[str, float]], seed: int
) -> Search[Floats, Floats]:
    """Carries out a whole search over vectors, which have no training to go on with.

    Args:
        evolution: How to search; what concerns training has no part in it.
        space: The vectors.
        measure: The figures of one vector, by name.
        seed: Of the search.

    Returns:
        The search, all its generations closed.
    """
    search = Search(evolution.model_copy(update={"survivors": "rest"}), space, seed=seed)
    while not search.done:
        search.ask()
        for candidate in search.pending():
            metrics = dict(measure(space.load(candidate)))
            search.tell(Report(id=candidate.id, status=Status.TRAINED, metrics=metrics))
        search.close_generation()
    return search
