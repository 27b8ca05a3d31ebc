"""What a run has learned about how to make children, and children made by it.

A policy is data: a function of the experiment and of which children survived, and so of the ledger's events.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple, Self

import numpy as np

from morphogen.blueprint.schema import Blueprint
from morphogen.blueprint.templates import Template
from morphogen.candidate import Candidate, Edit
from morphogen.cost import structure
from morphogen.errors import RunError
from morphogen.experiment import Evolution, Train
from morphogen.parts.contract.operator import OPERATORS
from morphogen.variation.act import Surroundings, apply_operator, trained
from morphogen.variation.foreign import donor_weights
from morphogen.variation.growth import rule_weights
from morphogen.variation.operator import Proposal, check_weights, mutate, operator_weights
from morphogen.variation.template import check_templates

#: A run remembers at most so many templates besides those it was given; the oldest go.
LEARNED_TEMPLATES = 32
#: Applications of one operator that are tried to mend one gate: some may act where it does not help.
TRIES = 4

#: Structural gate -> the operators that may bring a blueprint nearer to it.
REPAIRS: Mapping[str, tuple[str, ...]] = {
    "layers": ("duplicate_block", "insert_block"),
    "recurrences": ("add_recurrence", "add_additional_recurrence"),
    "moe_blocks": ("dense_to_moe", "insert_moe", "duplicate_block"),
    "selector_blocks": ("toggle_selector", "duplicate_block"),
    "memory_blocks": (
        *("insert_retro_module", "insert_assoc_memory", "insert_memory_tokens", "insert_chunk_memory"),
        "duplicate_block",
    ),
}


class Policy(NamedTuple):
    """weights: of the operators that are drawn, all above 0. given, learned: templates of the experiment, and new ones
    whose children survived. seq_len: tokens of a sequence, at which an edit must make a difference; None: anywhere."""

    weights: Mapping[str, float]
    given: tuple[Template, ...]
    learned: tuple[Template, ...] = ()
    seq_len: int | None = None

    @classmethod
    def of(cls, evolution: Evolution, seq_len: int | None = None, root: Blueprint | None = None) -> Self:
        """What an experiment starts with; operators on growth rules are drawn where `root` has rules. InputError for
        weights and templates that cannot be used."""
        if isinstance(evolution.templates, str):
            raise RunError(f"evolution.templates: {evolution.templates} has not been read yet")
        check_templates(evolution.templates)
        check_weights(evolution.mutation_weights)
        if not evolution.edits:
            return cls({}, evolution.templates, seq_len=seq_len)
        given = evolution.mutation_weights
        rules = {} if root is None else rule_weights(root, given)
        weights = operator_weights({**given, **rules, **donor_weights(root, evolution.donors, given)})
        if evolution.adaptive_mutation:
            weights = {name: _within(weight, evolution) for name, weight in weights.items()}
        return cls(weights, evolution.templates, seq_len=seq_len)

    def after(self, evolution: Evolution, newborn: Sequence[Candidate], survivors: Collection[str]) -> "Policy":
        """The policy when a generation is closed: `newborn` are all its candidates, `survivors` what goes on."""
        known = {template.name for template in (*self.given, *self.learned)}
        joined = {
            template.name: template
            for child in newborn
            if child.id in survivors
            for edit in child.edits
            if edit.template is not None
            for template in [Template.model_validate(edit.template)]
            if template.name not in known
        }
        learned = (*self.learned, *joined.values())[-LEARNED_TEMPLATES:]
        weights = self._credited(evolution, newborn, survivors) if evolution.adaptive_mutation else self.weights
        return self._replace(weights=weights, learned=learned)

    def _credited(
        self, evolution: Evolution, newborn: Sequence[Candidate], survivors: Collection[str]
    ) -> Mapping[str, float]:
        """Weights times exp(eta · (share of an operator's children that survive − share of all that do)).

        Edits that repair a gate, and crossovers, earn nothing.
        """
        lives = {
            child.id: (used, child.id in survivors)
            for child in newborn
            if (used := {edit.operator for edit in child.edits if not edit.repair} & self.weights.keys())
        }
        if not lives:
            return self.weights
        mean = sum(alive for _, alive in lives.values()) / len(lives)
        weights = dict(self.weights)
        for name in sorted(set().union(*(used for used, _ in lives.values()))):
            own = [alive for used, alive in lives.values() if name in used]
            gain = math.exp(evolution.adaptive_mutation_eta * (sum(own) / len(own) - mean))
            weights[name] = _within(weights[name] * gain, evolution)
        return weights

    def around(self, evolution: Evolution, train: Train) -> Surroundings:
        """What the edits of a candidate may depend on."""
        templates = (*self.given, *self.learned)
        novelty = evolution.template_mutation_prob
        return Surroundings(train, self.weights, templates, novelty, self.seq_len, evolution.donors)

    def mutated(self, evolution: Evolution, parent: Blueprint, train: Train, rng: np.random.Generator) -> Proposal:
        """A child by edits. OperatorError when nothing applies."""
        # 0 for the others, which might be drawn otherwise as they are declared
        weights = {**dict.fromkeys(OPERATORS, 0.0), **self.weights}
        return mutate(parent, rng, evolution.steps, weights, self.around(evolution, train))

    def repaired(self, evolution: Evolution, made: Proposal, train: Train, rng: np.random.Generator) -> Proposal:
        """The child with what the structural gates find missing, as far as operators of positive weight can add it."""
        child, edits = made.child, list(made.edits)
        if evolution.structural_gates == "reject":
            return made
        around = self.around(evolution, trained(train, edits))
        for gate, least in evolution.gates.items():
            while structure(child)[gate] < least:
                mended = self._mended(child, gate, rng, around)
                if mended is None:
                    break
                child, edits = mended[0], [*edits, mended[1]]
        return Proposal(child, tuple(edits))

    def _mended(
        self, blueprint: Blueprint, gate: str, rng: np.random.Generator, around: Surroundings
    ) -> tuple[Blueprint, Edit] | None:
        """One edit nearer to a gate and no farther from any other; None where no operator gets there."""
        before = structure(blueprint)
        usable = [name for name in REPAIRS[gate] if name in self.weights]
        for i in rng.permutation(len(usable)):
            for _ in range(TRIES):
                made = apply_operator(blueprint, usable[i], rng, around)
                if made is None:
                    break
                after = structure(made[0])
                if after[gate] > before[gate] and all(after[name] >= count for name, count in before.items()):
                    return made[0], made[1].replace(repair=True)
        return None


def _within(weight: float, evolution: Evolution) -> float:
    return min(max(weight, evolution.adaptive_mutation_min_weight), evolution.adaptive_mutation_max_weight)
