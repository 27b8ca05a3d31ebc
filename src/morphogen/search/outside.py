"""Proposals of programs from outside as designs with parents and edits, like those a run breeds. Called by `engine`.

What a program answers may be anything: whatever cannot be a candidate is refused in words, and never raises further.
"""

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from pydantic import ByteSize

from morphogen.blueprint.diff import distance
from morphogen.blueprint.mistakes import show
from morphogen.blueprint.record import recorded
from morphogen.blueprint.schema import Blueprint
from morphogen.candidate import Edit
from morphogen.errors import InputError, OperatorError, unknown
from morphogen.experiment import Evolution
from morphogen.parts.contract.operator import OPERATORS, Operator, find_operator
from morphogen.search.space import Architectures, Bred, Design, Placed
from morphogen.store.proposals import Proposal, Proposed, Refused, Step
from morphogen.variation.act import Aim, Surroundings, apply_operator, targets, trained
from morphogen.variation.fields import check_fields
from morphogen.variation.whole import replaced


@dataclass(frozen=True)
class Outside:
    """What proposals are understood by. parents: who may be one, the survivors first, best first; survivors: how many
    of them are."""

    space: Architectures
    evolution: Evolution
    parents: Mapping[str, Design]
    survivors: int

    def placed(
        self, answers: Sequence[Proposed | Refused], known: Collection[str]
    ) -> tuple[list[Placed[Design]], list[Refused]]:
        """Each answer as a child, or as a refusal. known: the keys of what the run has already."""
        placed: list[Placed[Design]] = []
        refused: list[Refused] = []
        made: set[str] = set()
        for answer in answers:
            if isinstance(answer, Refused):
                refused.append(answer)
                continue
            try:
                bred, parent = self.bred(answer.proposal)
                key = self.space.key(bred[0])
                if key in made or key in known:
                    raise InputError("the same candidate as another of this run")
            except (InputError, OperatorError) as error:
                refused.append(Refused.of(answer.proposer, error, answer.proposal.model_dump(mode="json")))
                continue
            made.add(key)
            placed.append(Placed(bred, (parent,), answer.proposer))
        return placed, refused

    def bred(self, proposal: Proposal) -> tuple[Bred[Design], str]:
        """The child that is asked for, and its parent's id. InputError or OperatorError for why there is none."""
        if not self.parents:
            raise InputError("parent: there is none yet, no generation is closed")
        if proposal.parent is not None and proposal.parent not in self.parents:
            raise InputError(unknown("parent", proposal.parent, self.parents))
        if proposal.blueprint is None:
            assert proposal.parent is not None
            bred, parent = self._edited(self.parents[proposal.parent], proposal.edits), proposal.parent
        else:
            child = recorded(Blueprint, proposal.blueprint, "blueprint")
            parent = proposal.parent or self._nearest(child)
            bred = self._whole(self.parents[parent], child)
        needed = self.space.costs(bred[0])["train_memory_bytes"]
        if needed > (here := os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")):
            sizes = (ByteSize(size).human_readable(separator=" ") for size in (needed, here))
            raise InputError("needs about {} to train; this machine has {} of memory".format(*sizes))
        return bred, parent

    def applicable(self, id: str) -> tuple[str, ...]:
        """The names of the operators that apply to a parent."""
        design = self.parents[id]
        around = self._around(design)
        tried = (
            (name, apply_operator(design.blueprint, name, np.random.default_rng(0), around))
            for name in sorted(self.space.policy.weights)
        )
        return tuple(name for name, made in tried if made is not None)

    def _around(self, design: Design) -> Surroundings:
        policy = self.space.policy
        weights = {**dict.fromkeys(OPERATORS, 0.0), **policy.weights}
        return policy.around(self.evolution, design.train)._replace(weights=weights)

    def _edited(self, parent: Design, steps: Sequence[Step]) -> Bred[Design]:
        blueprint, around, edits = parent.blueprint, self._around(parent), list[Edit]()
        for i, step in enumerate(steps):
            op = find_operator(step.operator)
            place = self._place(blueprint, op, step)
            made = apply_operator(blueprint, op.name, np.random.default_rng(step.seed), around, place)
            if made is None:
                raise InputError(f"edits[{i}]: {self._why_not(blueprint, op, step, around, place)}")
            blueprint, edit = made
            edits.append(edit)
            around = around._replace(train=trained(around.train, (edit,)))
        return Design(blueprint, around.train), tuple(edits)

    def _why_not(self, blueprint: Blueprint, op: Operator, step: Step, around: Surroundings, place: Aim) -> str:
        """Why an edit makes no child: the operator does not apply there, or not with such fields."""
        said = f"{op.name} does not apply{f' at {step.target}' if step.target else ' anywhere'}"
        without = replace(place, set=None)
        plain = apply_operator(blueprint, op.name, np.random.default_rng(step.seed), around, without)
        if not step.set or plain is None:
            return said
        try:
            check_fields(blueprint, plain[0], step.set)
        except InputError as error:
            return f"{op.name}: {error}"
        fields = ", ".join(f"{name} {show(value)}" for name, value in step.set.items())
        return f"{said} with {fields}: that is the parent again, or does not fit the rest of it"

    def _place(self, blueprint: Blueprint, op: Operator, step: Step) -> Aim:
        """Where an edit is asked for. InputError for an operator that is switched off, and for what it has not."""
        if op.name not in self.space.policy.weights:
            raise InputError(f"operator {op.name}: has weight 0 in this run, which switches it off")
        names = [target.name for target in targets(blueprint, op)]
        if step.target is not None and step.target not in names:
            raise InputError(
                unknown(f"target of {op.name}", step.target, names)
                if names
                else f"target of {op.name}: got {step.target!r}, but it applies nowhere"
            )
        if step.set and op.level in ("train", "compound"):
            raise InputError(f"set: {op.name} makes no one part whose fields could be set")
        return Aim(target=step.target if op.level in ("part", "block") else None, set=step.set or None)

    def _whole(self, parent: Design, child: Blueprint) -> Bred[Design]:
        made, edit = replaced(parent.blueprint, child)
        return Design(made, parent.train), (edit,)

    def _nearest(self, child: Blueprint) -> str:
        """The most similar survivor; of those that are equally so, the best."""
        survivors = list(self.parents)[: self.survivors]
        return min(survivors, key=lambda id: distance(child, self.parents[id].blueprint))
