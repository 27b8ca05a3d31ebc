"""What is searched: the engine knows genomes only through a `Space`. Architectures are one, vectors another."""

from collections.abc import Collection, Sequence
from typing import Any, Generic, NamedTuple, Protocol, Self, TypeVar

import numpy as np

from morphogen.blueprint.diff import Traits, digest, trait_distance, traits
from morphogen.blueprint.encoding import encoded, leaves
from morphogen.blueprint.record import recorded
from morphogen.blueprint.schema import Blueprint
from morphogen.candidate import Candidate, Edit
from morphogen.cost import Step, costs
from morphogen.errors import OperatorError
from morphogen.experiment import Experiment, Train
from morphogen.variation.act import Surroundings, trained
from morphogen.variation.crossover import crossover
from morphogen.variation.operator import Proposal
from morphogen.variation.policy import Policy

G = TypeVar("G")
T = TypeVar("T")

#: A child and the edits that lead to it from its parents, in order.
Bred = tuple[G, tuple[Edit, ...]]


class Placed(NamedTuple, Generic[G]):
    """A child from outside that has a place in a generation, its parents, and who proposed it."""

    bred: Bred[G]
    parents: tuple[str, ...]
    proposer: str


class Space(Protocol[G, T]):
    """Genomes of one kind: how they begin, vary, and are told apart. Immutable, its methods pure.

    G: a genome. T: its traits, what distances are computed from.
    """

    def founders(self, rng: np.random.Generator) -> tuple[G, ...]:
        """The genomes of generation 0."""

    def record(self, genome: G) -> dict[str, Any]:
        """The fields of a `Candidate` that hold the genome."""

    def load(self, candidate: Candidate) -> G:
        """The genome that a candidate's record holds."""

    def digest(self, genome: G) -> str:
        """Hexadecimal; ids show its beginning."""

    def key(self, genome: G) -> str:
        """Equal only for genomes that are the same to the search."""

    def costs(self, genome: G) -> dict[str, float]:
        """What follows from the genome alone, by name."""

    def mutate(self, genome: G, rng: np.random.Generator) -> Bred[G] | None:
        """A child by edits; None where none applies."""

    def crossover(self, first: G, second: G, rng: np.random.Generator) -> Bred[G] | None:
        """A child of two; None where they cannot be crossed."""

    def traits(self, genome: G) -> T:
        """The genome taken apart for `distance`."""

    def distance(self, first: T, second: T) -> float:
        """How unlike two genomes are; 0 for equal ones."""

    def features(self, genome: G) -> dict[str, float]:
        """The genome as named numbers, for a model to learn from; a name that is missing counts as 0."""

    def after(self, newborn: Sequence[Candidate], survivors: Collection[str]) -> Self:
        """The space with what a closed generation has taught it of how to vary."""


class Design(NamedTuple):
    """An architecture and how it is trained."""

    blueprint: Blueprint
    train: Train


class Architectures:
    """Designs, beginning from the experiment's own. Costs are at its sequence length; `policy` says how to vary."""

    def __init__(self, experiment: Experiment, policy: Policy | None = None) -> None:
        """InputError for operators and templates that cannot be used."""
        self._experiment = experiment
        seq_len, root = experiment.data.seq_len, experiment.model
        self.policy = Policy.of(experiment.evolution, seq_len, root) if policy is None else policy

    def founders(self, rng: np.random.Generator) -> tuple[Design, ...]:
        """The experiment's model alone."""
        return (Design(self._experiment.model, self._experiment.train),)

    def record(self, genome: Design) -> dict[str, Any]:
        """The blueprint, and the settings of training that edits have changed."""
        usual = dict(self._experiment.train)
        changed = {name: value for name, value in genome.train if value != usual[name]}
        return {"blueprint": genome.blueprint.to_json(), "train": changed}

    def load(self, candidate: Candidate) -> Design:
        """From a record. InputError where its blueprint cannot be read, as when it needs a plug-in that is gone."""
        train = self._experiment.with_train(candidate.train).train
        return Design(recorded(Blueprint, candidate.blueprint, f"the blueprint of candidate {candidate.id}"), train)

    def digest(self, genome: Design) -> str:
        """Equal digests mean the same architecture."""
        return digest(genome.blueprint)

    def key(self, genome: Design) -> str:
        """Equal for architectures that sequences of the run's length cannot tell apart, trained alike."""
        return Surroundings(genome.train, seq_len=self._experiment.data.seq_len).key(genome.blueprint)

    def costs(self, genome: Design) -> dict[str, float]:
        """Every cost by name."""
        data = self._experiment.data
        return costs(genome.blueprint, data.seq_len, Step.of(genome.train, data.batch_size))

    def mutate(self, genome: Design, rng: np.random.Generator) -> Bred[Design] | None:
        """A child by operators, with repairs; None where no operator applies."""
        try:
            made = self.policy.mutated(self._experiment.evolution, *genome, rng)
        except OperatorError:
            return None
        return self._repaired(made, genome.train, rng)

    def crossover(self, first: Design, second: Design, rng: np.random.Generator) -> Bred[Design] | None:
        """A child that takes every block from one of the two and is trained as the first, with repairs."""
        made = crossover(first.blueprint, second.blueprint, rng, self._experiment.evolution.crossover)
        return None if made is None else self._repaired(made, first.train, rng)

    def _repaired(self, made: Proposal, train: Train, rng: np.random.Generator) -> Bred[Design]:
        child, edits = self.policy.repaired(self._experiment.evolution, made, train, rng)
        return Design(child, trained(train, edits)), edits

    def traits(self, genome: Design) -> Traits:
        """Blocks and the rest as sets of fields."""
        return traits(genome.blueprint)

    def distance(self, first: Traits, second: Traits) -> float:
        """Edit distance over blocks."""
        return trait_distance(first, second)

    def features(self, genome: Design) -> dict[str, float]:
        """What stands where in the blueprint, and the settings of training."""
        return {**encoded(genome.blueprint), **dict(leaves("train", genome.train.model_dump(mode="json")))}

    def after(self, newborn: Sequence[Candidate], survivors: Collection[str]) -> "Architectures":
        """With what the policy learns from who survived."""
        return Architectures(self._experiment, self.policy.after(self._experiment.evolution, newborn, survivors))
