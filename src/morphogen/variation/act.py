"""One operator on one blueprint: the places where it may act, the child it makes there, and the record of it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, TypeVar

import numpy as np
from pydantic import JsonValue

from morphogen.blueprint.diff import changes, digest
from morphogen.blueprint.effective import effective
from morphogen.blueprint.schema import Block, Blueprint
from morphogen.blueprint.templates import Template
from morphogen.blueprint.tensors import parameter_count
from morphogen.candidate import Change, Edit
from morphogen.errors import RunError, anybodys
from morphogen.experiment import Train
from morphogen.inherit.plan import plan
from morphogen.parts.contract.operator import Operator, find_operator
from morphogen.parts.contract.part import Context, Part
from morphogen.variation.fields import with_block, with_fields, with_part

T = TypeVar("T")

#: Draws at one target before another is tried: an operator that applies may by chance pick what changes nothing.
DRAWS = 4


class Surroundings(NamedTuple):
    """What an edit may depend on besides the blueprint.

    train: how the candidate is trained. weights: of the operators that compound ones draw from; none where all are as
    they declare. templates: those of the run. novelty: the probability that a template is varied or made up. seq_len:
    tokens of the run's sequences; None where that is not known, so that every other blueprint counts as changed.
    donors: models of others whose layers may be put in.
    """

    train: Train = Train(bf16=False)
    weights: Mapping[str, float] = {}
    templates: tuple[Template, ...] = ()
    novelty: float = 0.25
    seq_len: int | None = None
    donors: tuple[str, ...] = ()

    def digest(self, blueprint: Blueprint) -> str:
        """Equal for architectures that nothing tells apart at `seq_len`."""
        return digest(blueprint if self.seq_len is None else effective(blueprint, self.seq_len))

    def key(self, blueprint: Blueprint) -> str:
        """Likewise, of the same size and trained alike."""
        return f"{self.digest(blueprint)}/{parameter_count(blueprint.nominal)}/{self.train.model_dump_json()}"

    def differs(self, child: Blueprint, parent: Blueprint) -> bool:
        """Whether an edit from parent to child is one: something tells them apart, or the child lacks what did
        nothing."""
        return self.digest(child) != self.digest(parent) or parameter_count(child.nominal) < parameter_count(
            parent.nominal
        )


PLAIN = Surroundings()


class CompoundEdit(NamedTuple):
    """What a compound operator did: the child, the edits that lead to it, the template they come from, if any, and
    where they were made, as far as that is said."""

    child: Blueprint
    steps: tuple[Edit, ...]
    template: Template | None = None
    target: str = "model"


@dataclass(frozen=True)
class Target:
    """A place where an operator may act. `position` and `path` say which part or block; both are None for the model."""

    name: str
    position: int | None = None
    path: str | None = None


@dataclass(frozen=True)
class Aim:
    """Where among its targets an operator shall act, and what it shall make there.

    order: at a random one where it applies, the first or the last. block: only in the block of this id. target: only at
    the target of this name. set: fields of the one part that it puts in or changes.
    """

    order: Literal["any", "first", "last"] = "any"
    block: str | None = None
    target: str | None = None
    set: Mapping[str, JsonValue] | None = None


ANYWHERE = Aim()


def targets(blueprint: Blueprint, op: Operator) -> tuple[Target, ...]:
    """Every place of the kind `op` is written for, in order of depth; it need not apply at all of them."""
    if op.level == "train":
        return (Target("train"),)
    if op.level in ("model", "compound"):
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


def trained(train: Train, edits: Iterable[Edit]) -> Train:
    """The settings of training after edits. Raises ValueError where a change does not fit."""
    fields = train.model_dump()
    for edit in edits:
        for change in edit.changes:
            section, _, name = change.path.partition(".")
            if section == "train":
                if fields[name] != change.before:
                    raise ValueError(f"{change.path}: found {fields[name]!r}, the edit expects {change.before!r}")
                fields[name] = change.after
    return Train.model_validate(fields)


def train_changes(before: Train, after: Train) -> tuple[Change, ...]:
    """What differs between two ways of training."""
    old, new = before.model_dump(mode="json"), after.model_dump(mode="json")
    return tuple(
        Change(path=f"train.{name}", before=old[name], after=new[name]) for name in old if old[name] != new[name]
    )


def apply_operator(
    blueprint: Blueprint, name: str, rng: np.random.Generator, around: Surroundings = PLAIN, aim: Aim = ANYWHERE
) -> tuple[Blueprint, Edit] | None:
    """The child that operator `name` makes at a place where it applies, and the edit; None when there is none.

    The child is valid and of another architecture than `blueprint`, also as far as sequences of the run's length can
    tell, or trained in another way. OperatorError for an unknown name.
    """
    op = find_operator(name)
    if op.level == "compound":
        return _compound(blueprint, op, rng, around)
    if op.level == "train":
        after = _made_by(op, Train, around.train, rng)
        if after is None or after == around.train:
            return None
        done = train_changes(around.train, after)
        return blueprint, Edit(operator=op.name, target="train", preserves=op.exact(around.train), changes=done)
    return _in_order(blueprint, op, _ordered(blueprint, targets(blueprint, op), aim, rng), aim, around, rng)


def _compound(
    blueprint: Blueprint, op: Operator, rng: np.random.Generator, around: Surroundings
) -> tuple[Blueprint, Edit] | None:
    made = _made_by(op, CompoundEdit, blueprint, around, rng)
    if made is None:
        return None
    after = trained(around.train, made.steps)
    if around._replace(train=after).key(made.child) == around.key(blueprint):
        return None
    edit = Edit(
        operator=op.name,
        target=made.target,
        preserves=all(step.preserves for step in made.steps),
        changes=(*changes(blueprint, made.child), *train_changes(around.train, after)),
        steps=made.steps,
        template=None if made.template is None else made.template.model_dump(mode="json"),
    )
    return made.child, edit


def _ordered(blueprint: Blueprint, places: Sequence[Target], aim: Aim, rng: np.random.Generator) -> Sequence[Target]:
    """The targets at which to try, in order."""
    if aim.block is not None:
        position = {block.id: i for i, block in enumerate(blueprint.blocks)}.get(aim.block)
        places = [target for target in places if target.position is not None and target.position == position]
    if aim.target is not None:
        places = [target for target in places if target.name == aim.target]
    if aim.order == "any":
        return [places[i] for i in rng.permutation(len(places))]
    return places if aim.order == "first" else places[::-1]


def _in_order(
    blueprint: Blueprint,
    op: Operator,
    places: Sequence[Target],
    aim: Aim,
    around: Surroundings,
    rng: np.random.Generator,
) -> tuple[Blueprint, Edit] | None:
    """The operator at the first of `places` where it applies."""
    for target in places:
        subject = _subject(blueprint, target, around)
        for _ in range(DRAWS):
            child = _child(blueprint, op, target, subject, rng)
            if child is not None and aim.set:
                child = with_fields(blueprint, child, aim.set)
            if child is not None and around.differs(child, blueprint):
                # fields of one's own choice may make an exact edit lossy, so that the plan is asked
                exact = plan(child.nominal, [blueprint.nominal]).exact if aim.set else op.exact(*subject)
                done = changes(blueprint, child)
                return child, Edit(operator=op.name, target=target.name, preserves=exact, changes=done)
    return None


def _context(blueprint: Blueprint, around: Surroundings) -> Context:
    """What operators may know of the model."""
    known, seq_len = blueprint.nominal, around.seq_len
    return replace(known.context() if seq_len is None else known.context(seq_len), donors=around.donors)


def _made_by(op: Operator, kind: type[T], *subject: object) -> T | None:
    """What the operator makes of a subject. RunError where that is nothing that an operator of its level gives, or it
    fails."""
    with anybodys(f"operator {op.name}", RunError):
        made = op.act(*subject)
    if made is None or isinstance(made, kind):
        return made
    raise RunError(f"operator {op.name}: made {made!r}, expected a {kind.__name__} or None")


def _subject(blueprint: Blueprint, target: Target, around: Surroundings) -> tuple[object, ...]:
    """What the operator is called on, less the generator."""
    if target.position is None:
        return (blueprint,)
    block = blueprint.blocks[target.position]
    if target.path is None:
        return block, _context(blueprint, around)
    return next(part for _, path, part in block.parts() if path == target.path), _context(blueprint, around)


def _child(
    blueprint: Blueprint, op: Operator, target: Target, subject: Sequence[object], rng: np.random.Generator
) -> Blueprint | None:
    """The blueprint with what the operator makes of a target; None where it makes nothing, or nothing valid there."""
    if target.position is None:
        return _made_by(op, Blueprint, *subject, rng)
    if target.path is None:
        block = _made_by(op, Block, *subject, rng)
    else:
        part = _made_by(op, Part, *subject, rng)
        block = None if part is None else with_part(blueprint.blocks[target.position], target.path, part)
    return None if block is None else with_block(blueprint, target.position, block)
