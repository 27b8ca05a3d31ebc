"""Making children by operators: one edit, several in a row, and what operators there are.

Operators are written on a part, a block, a whole blueprint, or how it is trained; here all of them act on a blueprint.
"""

from collections.abc import Mapping
from typing import NamedTuple, TypedDict

import numpy as np

from morphogen.arguments import expected, whole
from morphogen.blueprint.schema import EXPERIMENTS, Blueprint
from morphogen.candidate import Edit
from morphogen.errors import InputError, OperatorError
from morphogen.parts.contract.operator import ALIASES, OPERATORS, Level, load_operators, not_found
from morphogen.variation.act import PLAIN, Surroundings, apply_operator, targets, trained
from morphogen.variation.compound import by_weight
from morphogen.variation.foreign import donor_weights
from morphogen.variation.growth import rule_weights

__all__ = ["OperatorInfo", "Proposal", "apply_operator", "describe_operators", "edit", "mutate", "targets"]


class Proposal(NamedTuple):
    """A child and the edits that lead to it from its parents, in order."""

    child: Blueprint
    edits: tuple[Edit, ...]


class OperatorInfo(TypedDict):
    """One operator as users see it. preserves: True exact, False lossy, None where it depends on the target or draw.

    weight: how often it is drawn in a search from the blueprint, unless an experiment says otherwise. applies: whether
    it can change the blueprint at hand.
    """

    name: str
    summary: str
    level: Level
    preserves: bool | None
    weight: float
    applies: bool


def edit(blueprint: Blueprint, name: str, seed: int) -> tuple[Blueprint, Edit]:
    """Applies one operator, wherever it applies first by the seed.

    Args:
        blueprint: The parent.
        name: Of the operator, as `operators` lists it.
        seed: Of every choice that is made.

    Returns:
        The child, and the edit that made it. A change of training stands in the edit alone (`train.<field>`), the child
        being as its parent.

    Raises:
        OperatorError: There is no such operator, or it applies nowhere.
        InputError: The blueprint is none, or the seed no whole number of at least 0.
    """
    expected("blueprint", blueprint, Blueprint, EXPERIMENTS)
    made = apply_operator(blueprint, name, np.random.default_rng(whole("seed", seed)))
    if made is None:
        raise OperatorError(f"operator {name} does not apply anywhere in blueprint {blueprint.name!r}")
    return made


def check_weights(weights: Mapping[str, float]) -> None:
    """InputError for the name of no operator, with the nearest one, one named twice (by an alias), and for a weight
    that is negative or not finite."""
    load_operators()
    for name, weight in weights.items():
        own = ALIASES.get(name, name)
        if own not in OPERATORS:
            raise InputError(not_found(f"evolution.mutation_weights.{name}", name))
        if own != name and own in weights:
            raise InputError(f"evolution.mutation_weights: {name} is another name of {own}, which has a weight too")
        if not 0.0 <= weight < float("inf"):
            raise InputError(f"evolution.mutation_weights.{name}: got {weight}, expected a finite number of at least 0")


def operator_weights(weights: Mapping[str, float]) -> dict[str, float]:
    """The weight of every operator in order of name, as declared unless given; those of weight 0 are left out.

    InputError as `check_weights`, or when nothing is left.
    """
    check_weights(weights)
    given = {ALIASES.get(name, name): weight for name, weight in weights.items()}
    usable = {name: weight for name, op in sorted(OPERATORS.items()) if (weight := given.get(name, op.weight)) > 0}
    if not usable:
        raise InputError("evolution.mutation_weights: all are 0; for a run without edits set mutation_steps to 0")
    return usable


def mutate(
    blueprint: Blueprint,
    rng: np.random.Generator,
    steps: int | tuple[int, int],
    weights: Mapping[str, float],
    around: Surroundings = PLAIN,
) -> Proposal:
    """A child by 1 to `steps` edits, or as many as a range allows, evenly; each operator is drawn by weight among those
    that apply. Compound operators draw by the same weights.

    No architecture on the way, the parent's included, comes twice. There are fewer edits than drawn where nothing more
    applies. OperatorError when nothing applies at all, InputError as `operator_weights`.
    """
    least, most = (1, steps) if isinstance(steps, int) else steps
    if not 1 <= least <= most:
        raise InputError(f"evolution.mutation_steps: got {steps}, expected at least 1 to mutate")
    usable = operator_weights(weights)
    around = around._replace(weights={name: usable.get(name, 0.0) for name in OPERATORS})
    child, edits, seen = blueprint, list[Edit](), {around.key(blueprint)}
    for _ in range(int(rng.integers(least, most + 1))):
        made = _one_edit(child, rng, usable, seen, around)
        if made is None:
            break
        child, around = made[0], around._replace(train=trained(around.train, (made[1],)))
        edits.append(made[1])
        seen.add(around.key(child))
    if not edits:
        raise OperatorError(f"no operator of positive weight applies to blueprint {blueprint.name!r}")
    return Proposal(child, tuple(edits))


def _one_edit(
    blueprint: Blueprint, rng: np.random.Generator, usable: Mapping[str, float], seen: set[str], around: Surroundings
) -> tuple[Blueprint, Edit] | None:
    """One edit that leads to a candidate not in `seen`; operators are tried in an order drawn by weight."""
    for name in by_weight(usable, rng):
        made = apply_operator(blueprint, name, rng, around)
        if made is not None and around._replace(train=trained(around.train, (made[1],))).key(made[0]) not in seen:
            return made
    return None


def describe_operators(blueprint: Blueprint, around: Surroundings = PLAIN) -> list[OperatorInfo]:
    """Lists every registered operator.

    Args:
        blueprint: Of which it is asked whether each applies.
        around: What surrounds it in a search; by default nothing does.

    Returns:
        One entry an operator, in order of name: what it does, whether it preserves the function, whether it applies.

    Raises:
        InputError: The blueprint is none.
    """
    expected("blueprint", blueprint, Blueprint, EXPERIMENTS)
    load_operators()
    wanted = {**rule_weights(blueprint, {}), **donor_weights(blueprint, around.donors, {})}
    return [
        OperatorInfo(
            name=name,
            summary=op.summary,
            level=op.level,
            preserves=op.declared,
            weight=wanted.get(name, op.weight),
            applies=apply_operator(blueprint, name, np.random.default_rng(0), around) is not None,
        )
        for name, op in sorted(OPERATORS.items())
    ]
