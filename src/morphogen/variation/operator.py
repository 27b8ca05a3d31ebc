"""Making children by operators: where one may act, one edit, and several edits in a row.

Operators are written on a part, a block or a whole blueprint; here all of them act on a blueprint.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypedDict

import numpy as np

import morphogen.variation.recurrence
import morphogen.variation.structure  # noqa: F401  (these two register the operators on blocks and models)
from morphogen.blueprint.diff import changes, digest
from morphogen.blueprint.schema import Block, Blueprint
from morphogen.candidate import Edit
from morphogen.errors import InputError, OperatorError, unknown
from morphogen.parts.base import OPERATORS, Context, Operator, find_operator

#: Draws at one target before another is tried: an operator that applies may by chance pick what changes nothing.
DRAWS = 4


class Proposal(NamedTuple):
    """A child and the edits that lead to it from its parents, in order."""

    child: Blueprint
    edits: tuple[Edit, ...]


@dataclass(frozen=True)
class Target:
    """A place where an operator may act. `position` and `path` say which part or block; both are None for the model."""

    name: str
    position: int | None = None
    path: str | None = None


class OperatorInfo(TypedDict):
    """One operator as users see it. preserves: True exact, False lossy, None where it depends on the target.

    applies: whether it can change the blueprint at hand.
    """

    name: str
    summary: str
    level: Literal["part", "block", "model"]
    preserves: bool | None
    applies: bool


def targets(blueprint: Blueprint, op: Operator) -> tuple[Target, ...]:
    """Every place of the kind `op` is written for, in order of depth; it need not apply at all of them."""
    if op.level == "model":
        return (Target("model"),)
    if op.level == "block":
        return tuple(Target(f"blocks[{block.id}]", i) for i, block in enumerate(blueprint.blocks))
    assert op.target is not None
    return tuple(
        Target(f"blocks[{block.id}].{_bracketed(path)}", i, path)
        for i, block in enumerate(blueprint.blocks)
        for _, path, part in block.parts()
        if isinstance(part, op.target)
    )


def _bracketed(path: str) -> str:
    """`extras.0` as `extras[0]`."""
    slot, _, number = path.partition(".")
    return f"{slot}[{number}]" if number else slot


def apply_operator(blueprint: Blueprint, name: str, rng: np.random.Generator) -> tuple[Blueprint, Edit] | None:
    """The child that operator `name` makes at a random place where it applies, and the edit; None when there is none.

    The child is valid and of another architecture than `blueprint`. OperatorError for an unknown name.
    """
    op = find_operator(name)
    places = targets(blueprint, op)
    before = digest(blueprint)
    for i in rng.permutation(len(places)):
        subject = _subject(blueprint, places[i])
        for _ in range(DRAWS):
            child = _put(blueprint, places[i], op.act(*subject, rng))
            if child is not None and digest(child) != before:
                exact = op.exact(*subject)
                return child, Edit(
                    operator=name, target=places[i].name, preserves=exact, changes=changes(blueprint, child)
                )
    return None


def _context(blueprint: Blueprint) -> Context:
    """What operators may know of the model; a vocabulary that is not known yet counts as one token."""
    return (blueprint if blueprint.emb.vocab is not None else blueprint.with_vocab(1)).context()


def _subject(blueprint: Blueprint, target: Target) -> tuple[Any, ...]:
    """What the operator is called on, less the generator."""
    if target.position is None:
        return (blueprint,)
    block = blueprint.blocks[target.position]
    if target.path is None:
        return block, _context(blueprint)
    return next(part for _, path, part in block.parts() if path == target.path), _context(blueprint)


def _put(blueprint: Blueprint, target: Target, made: Any) -> Blueprint | None:
    """The blueprint with what an operator made in its place; None where it made nothing or that is not valid there."""
    if made is None or target.position is None:
        return made  # type: ignore[no-any-return]
    block: Block | None = made
    if target.path is not None:
        block = _with_part(blueprint.blocks[target.position], target.path, made)
    if block is None:
        return None
    blocks = list(blueprint.blocks)
    blocks[target.position] = block
    return blueprint.evolve(blocks=tuple(blocks))


def _with_part(block: Block, path: str, part: Any) -> Block | None:
    slot, _, number = path.partition(".")
    if not number:
        return block.evolve(**{slot: part})
    extras = list(block.extras)
    extras[int(number)] = part
    return block.evolve(extras=tuple(extras))


def edit(blueprint: Blueprint, name: str, seed: int) -> tuple[Blueprint, Edit]:
    """The child of one named operator. OperatorError when the operator does not exist or applies nowhere."""
    made = apply_operator(blueprint, name, np.random.default_rng(seed))
    if made is None:
        raise OperatorError(f"operator {name} does not apply anywhere in blueprint {blueprint.name!r}")
    return made


def check_weights(weights: Mapping[str, float]) -> None:
    """InputError for the name of no operator, with the nearest one, and for a weight that is negative or not finite."""
    for name, weight in weights.items():
        if name not in OPERATORS:
            raise InputError(unknown("evolution.mutation_weights", name, OPERATORS))
        if not 0.0 <= weight < float("inf"):
            raise InputError(f"evolution.mutation_weights.{name}: got {weight}, expected a finite number of at least 0")


def operator_weights(weights: Mapping[str, float]) -> dict[str, float]:
    """The weight of every operator in order of name, 1 unless given; those of weight 0 are left out.

    InputError as `check_weights`, or when nothing is left.
    """
    check_weights(weights)
    usable = {name: weight for name in sorted(OPERATORS) if (weight := weights.get(name, 1.0)) > 0}
    if not usable:
        raise InputError("evolution.mutation_weights: all are 0; for a run without edits set mutation_steps to 0")
    return usable


def mutate(blueprint: Blueprint, rng: np.random.Generator, steps: int, weights: Mapping[str, float]) -> Proposal:
    """A child by 1 to `steps` edits, evenly; each operator is drawn by weight among those that apply.

    No architecture on the way, the parent's included, comes twice. There are fewer edits than drawn where nothing more
    applies. OperatorError when nothing applies at all, InputError as `operator_weights`.
    """
    if steps < 1:
        raise InputError(f"evolution.mutation_steps: got {steps}, expected at least 1 to mutate")
    usable = operator_weights(weights)
    child, edits, seen = blueprint, list[Edit](), {digest(blueprint)}
    for _ in range(int(rng.integers(1, steps + 1))):
        made = _one_edit(child, rng, usable, seen)
        if made is None:
            break
        child = made[0]
        edits.append(made[1])
        seen.add(digest(child))
    if not edits:
        raise OperatorError(f"no operator of positive weight applies to blueprint {blueprint.name!r}")
    return Proposal(child, tuple(edits))


def _one_edit(
    blueprint: Blueprint, rng: np.random.Generator, usable: Mapping[str, float], seen: set[str]
) -> tuple[Blueprint, Edit] | None:
    """One edit that leads to an architecture not in `seen`; operators are tried in an order drawn by weight."""
    weight = np.array(list(usable.values()))
    names = list(usable)
    for i in rng.choice(len(names), size=len(names), replace=False, p=weight / weight.sum()):
        made = apply_operator(blueprint, names[i], rng)
        if made is not None and digest(made[0]) not in seen:
            return made
    return None


def describe_operators(blueprint: Blueprint) -> list[OperatorInfo]:
    """Every registered operator in order of name."""
    return [
        OperatorInfo(
            name=name,
            summary=op.summary,
            level=op.level,
            preserves=op.preserves if isinstance(op.preserves, bool) else None,
            applies=apply_operator(blueprint, name, np.random.default_rng(0)) is not None,
        )
        for name, op in sorted(OPERATORS.items())
    ]
