"""What is searched: the engine knows genomes only through a `Space`. Architectures are one, vectors another."""

import hashlib
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np

from morphogen.blueprint.diff import Traits, digest, trait_distance, traits
from morphogen.blueprint.schema import Blueprint
from morphogen.candidate import Candidate, Edit
from morphogen.cost import costs
from morphogen.errors import OperatorError
from morphogen.experiment import Experiment, Train
from morphogen.variation.act import identity, trained
from morphogen.variation.crossover import crossover
from morphogen.variation.operator import Proposal
from morphogen.variation.policy import Policy

G = TypeVar("G")
T = TypeVar("T")

#: A child and the edits that lead to it from its parents, in order.
Bred = tuple[G, tuple[Edit, ...]]


class Space(Protocol[G, T]):
    """Genomes of one kind: how they begin, vary, and are told apart. All but `learn` only read.

    G: a genome. T: its traits, what distances are computed from.
    """

    def founders(self, rng: np.random.Generator) -> tuple[G, ...]:
        """The genomes of generation 0."""

    def dump(self, genome: G) -> dict[str, Any]:
        """As fields of its candidate, plain JSON data."""

    def load(self, candidate: Candidate) -> G:
        """What `dump` wrote."""

    def digest(self, genome: G) -> str:
        """Hexadecimal; equal only for genomes that are the same to the search."""

    def costs(self, genome: G) -> dict[str, float]:
        """What follows from the genome alone, by name."""

    def mutate(self, genome: G, rng: np.random.Generator) -> Bred[G] | None:
        """A child by edits; None where none applies."""

    def crossover(self, first: G, second: G, rng: np.random.Generator) -> Bred[G] | None:
        """A child of two; None where they cannot be crossed."""

    def learn(self, newborn: Sequence[Candidate], survivors: Collection[str]) -> None:
        """Take in which candidates of a closed generation survived: later children may depend on it."""

    def traits(self, genome: G) -> T:
        """The genome taken apart for `distance`."""

    def distance(self, first: T, second: T) -> float:
        """How unlike two genomes are; 0 for equal ones."""


class Individual(NamedTuple):
    """An architecture and how it is trained, which edits may change too."""

    blueprint: Blueprint
    train: Train


class Architectures:
    """Blueprints, beginning from the experiment's own. Costs are at its sequence length."""

    def __init__(self, experiment: Experiment) -> None:
        """InputError for operators, weights or templates that cannot be used."""
        self._experiment = experiment
        self.policy = Policy.of(experiment.evolution)

    def founders(self, rng: np.random.Generator) -> tuple[Individual, ...]:
        """The experiment's model alone."""
        return (Individual(self._experiment.model, self._experiment.train),)

    def dump(self, genome: Individual) -> dict[str, Any]:
        """The blueprint, and the fields of `train` that differ from the experiment's."""
        usual = dict(self._experiment.train)
        train = {name: value for name, value in genome.train if value != usual[name]}
        return {"blueprint": genome.blueprint.to_json(), "train": train}

    def load(self, candidate: Candidate) -> Individual:
        """What `dump` wrote."""
        train = self._experiment.with_train(candidate.train).train
        return Individual(Blueprint.model_validate(candidate.blueprint), train)

    def digest(self, genome: Individual) -> str:
        """The architecture's, where training is the experiment's own; else another."""
        plain = digest(genome.blueprint)
        if genome.train == self._experiment.train:
            return plain
        return hashlib.sha256(identity(genome.blueprint, genome.train).encode()).hexdigest()

    def costs(self, genome: Individual) -> dict[str, float]:
        """Every cost by name."""
        return costs(genome.blueprint, self._experiment.data.seq_len)

    def mutate(self, genome: Individual, rng: np.random.Generator) -> Bred[Individual] | None:
        """A child by operators and what the structural gates find missing; None where no operator applies."""
        try:
            made = self.policy.mutated(self._experiment.evolution, genome.blueprint, genome.train, rng)
        except OperatorError:
            return None
        return self._repaired(made, genome.train, rng)

    def crossover(self, first: Individual, second: Individual, rng: np.random.Generator) -> Bred[Individual] | None:
        """A child that takes every block from one of the two, and is trained as the first."""
        made = crossover(first.blueprint, second.blueprint, rng, self._experiment.evolution.crossover)
        return None if made is None else self._repaired(made, first.train, rng)

    def _repaired(self, made: Proposal, train: Train, rng: np.random.Generator) -> Bred[Individual]:
        child, edits = self.policy.repaired(self._experiment.evolution, made, train, rng)
        return Individual(child, trained(train, edits)), edits

    def learn(self, newborn: Sequence[Candidate], survivors: Collection[str]) -> None:
        """Credit to operators, and templates whose children survived."""
        self.policy = self.policy.after(self._experiment.evolution, newborn, survivors)

    def traits(self, genome: Individual) -> Traits:
        """Blocks and the rest as sets of fields."""
        return traits(genome.blueprint)

    def distance(self, first: Traits, second: Traits) -> float:
        """Edit distance over blocks."""
        return trait_distance(first, second)
