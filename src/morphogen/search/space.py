"""What is searched: the engine knows genomes only through a `Space`. Architectures are one, vectors another."""

from collections.abc import Mapping
from typing import Any, Protocol, TypeVar

import numpy as np

from morphogen.blueprint.diff import Traits, digest, trait_distance, traits
from morphogen.blueprint.schema import Blueprint
from morphogen.candidate import Edit
from morphogen.cost import costs
from morphogen.errors import OperatorError
from morphogen.experiment import Experiment
from morphogen.variation.crossover import crossover
from morphogen.variation.operator import mutate

G = TypeVar("G")
T = TypeVar("T")

#: A child and the edits that lead to it from its parents, in order.
Bred = tuple[G, tuple[Edit, ...]]


class Space(Protocol[G, T]):
    """Genomes of one kind: how they begin, vary, and are told apart. Pure functions of their arguments.

    G: a genome. T: its traits, what distances are computed from.
    """

    def founders(self, rng: np.random.Generator) -> tuple[G, ...]:
        """The genomes of generation 0."""

    def dump(self, genome: G) -> dict[str, Any]:
        """As plain JSON data."""

    def load(self, data: Mapping[str, Any]) -> G:
        """From plain JSON data."""

    def digest(self, genome: G) -> str:
        """Hexadecimal; equal only for genomes that are the same to the search."""

    def costs(self, genome: G) -> dict[str, float]:
        """What follows from the genome alone, by name."""

    def mutate(self, genome: G, rng: np.random.Generator, steps: int, weights: Mapping[str, float]) -> Bred[G] | None:
        """A child by 1 to `steps` edits, operators drawn by weight; None where none applies."""

    def crossover(self, first: G, second: G, rng: np.random.Generator) -> Bred[G] | None:
        """A child of two; None where they cannot be crossed."""

    def traits(self, genome: G) -> T:
        """The genome taken apart for `distance`."""

    def distance(self, first: T, second: T) -> float:
        """How unlike two genomes are; 0 for equal ones."""


class Architectures:
    """Blueprints, beginning from the experiment's own. Costs are at its sequence length."""

    def __init__(self, experiment: Experiment) -> None:
        self._root = experiment.model
        self._seq_len = experiment.data.seq_len

    def founders(self, rng: np.random.Generator) -> tuple[Blueprint, ...]:
        """The experiment's model alone."""
        return (self._root,)

    def dump(self, genome: Blueprint) -> dict[str, Any]:
        """As JSON."""
        return genome.to_json()

    def load(self, data: Mapping[str, Any]) -> Blueprint:
        """From JSON."""
        return Blueprint.model_validate(data)

    def digest(self, genome: Blueprint) -> str:
        """Equal digests mean the same architecture."""
        return digest(genome)

    def costs(self, genome: Blueprint) -> dict[str, float]:
        """Every cost by name."""
        return costs(genome, self._seq_len)

    def mutate(
        self, genome: Blueprint, rng: np.random.Generator, steps: int, weights: Mapping[str, float]
    ) -> Bred[Blueprint] | None:
        """A child by operators; None where none of positive weight applies."""
        try:
            return mutate(genome, rng, steps, weights)
        except OperatorError:
            return None

    def crossover(self, first: Blueprint, second: Blueprint, rng: np.random.Generator) -> Bred[Blueprint] | None:
        """A child that takes every block from one of the two."""
        return crossover(first, second, rng)

    def traits(self, genome: Blueprint) -> Traits:
        """Blocks and the rest as sets of fields."""
        return traits(genome)

    def distance(self, first: Traits, second: Traits) -> float:
        """Edit distance over blocks."""
        return trait_distance(first, second)
