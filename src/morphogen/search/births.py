"""Genomes on their way to becoming candidates: what rung 0 knows of them, and what they are called. `Search` asks."""

from collections.abc import Iterable, Mapping
from typing import Generic, NamedTuple

from morphogen.candidate import Candidate, Edit
from morphogen.errors import RunError
from morphogen.estimates import composed
from morphogen.experiment import Evolution
from morphogen.search.rungs import rejection
from morphogen.search.space import G, Space, T

#: Operator names in a candidate's id take at most this many characters.
ID_LENGTH = 60


class Known(NamedTuple, Generic[G]):
    """What a genome says of itself. rejected: why rung 0 turns it away; empty when it does not."""

    genome: G
    digest: str
    key: str
    costs: dict[str, float]
    rejected: str


class Child(NamedTuple, Generic[G]):
    """A genome that may become a candidate: of which parents, by which edits, and proposed by whom from outside.
    A founder has none of these."""

    known: Known[G]
    parents: tuple[str, ...] = ()
    edits: tuple[Edit, ...] = ()
    proposer: str = ""

    @property
    def operators(self) -> list[str]:
        """What it came by, for its id."""
        crossed = len(self.parents) > 1 and all(edit.merging is None for edit in self.edits)
        return ["xover"] if crossed else [edit.operator for edit in self.edits] or ["continued"]


def examined(evolution: Evolution, space: Space[G, T], genome: G, *, founder: bool = False) -> Known[G]:
    """What rung 0 and the search need to know of a genome. Founders may lack what children are mended to have."""
    found = space.costs(genome)
    found |= composed(found, evolution.composite_metrics)
    rejected = rejection(found, evolution, gated=not founder or evolution.structural_gates == "reject")
    return Known(genome, space.digest(genome), space.key(genome), found, rejected)


def candidate_id(operators: Iterable[str], index: int, digest: str) -> str:
    """`<operators joined by +>-<index>-<digest4>`; of many operators those that fit are named, the others counted."""
    names = list(operators)
    shown = len(names)
    while shown > 1 and len("+".join(names[:shown])) > ID_LENGTH:
        shown -= 1
    rest = [f"{len(names) - shown}more"] if shown < len(names) else []
    return f"{'+'.join([*names[:shown], *rest])}-{index}-{digest[:4]}"


def born(space: Space[G, T], child: Child[G], index: int, generation: int) -> Candidate:
    """The candidate that a child becomes; the first generation's are founders."""
    operators = child.operators if generation else ["root"]
    return Candidate(
        id=candidate_id(operators, index, child.known.digest),
        index=index,
        generation=generation,
        parents=child.parents,
        edits=child.edits,
        proposer=child.proposer,
        **space.record(child.known.genome),
    )


def check_next(candidate: Candidate, earlier: Mapping[str, Candidate]) -> None:
    """RunError unless a recorded candidate can come after those before it."""
    if candidate.id in earlier or candidate.index != len(earlier):
        raise RunError(f"candidate {candidate.id} is number {candidate.index}, expected {len(earlier)}")
    if orphaned := [parent for parent in candidate.parents if parent not in earlier]:
        raise RunError(f"candidate {candidate.id} has the parent {orphaned[0]}, which is no candidate before it")
