"""What a program outside of a run is told of it, and what it answers: the documents of `morphogen ask` and `tell`.

The command of `evolution.proposer` reads and writes the same. Plain data; `search.outside` makes candidates of it.
"""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, JsonValue, model_validator

from morphogen.candidate import (
    Candidate,
    CandidateId,
    Edit,
    ProposerName,
    Record,
    Report,
    Status,
    Tokens,
    Twin,
    Whole,
    Words,
)
from morphogen.figures import Bounds
from morphogen.store.documents import Document
from morphogen.store.files import canonical_json

#: Edits of one proposal; after so many a child has little of its parent.
MOST_EDITS = 100
#: Characters of a refused proposal, as JSON, and of the reason, that are kept.
MOST_KEPT, MOST_REASON = 2**16, 2000
#: Levels of a proposal's data; a blueprint has about ten.
DEEPEST = 64


def too_deep(value: object, left: int = DEEPEST) -> bool:
    """Whether data is nested deeper than anything that could be meant, and than serialisers go."""
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return left == 0 or any(too_deep(item, left - 1) for item in items)


class Step(Record):
    """One edit that is asked for."""

    operator: Annotated[str, Field(max_length=200)]
    """Its name; the state lists those that the run has, and which of them apply to which parent."""
    target: Annotated[str, Field(max_length=500)] | None = None
    """Where it acts, such as `blocks[b0].ffn`; null: anywhere that it applies."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Of what it draws: the same edit of the same parent is the same child."""
    set: dict[str, JsonValue] = {}
    """Fields of the one part that it puts in or changes, such as `{"hidden": 96}`."""


class Proposal(Record):
    """One candidate that a program asks for: edits of a parent, or a whole blueprint."""

    parent: CandidateId | None = None
    """Whose weights it inherits, one of the state's `parents`; null, for a blueprint: the most similar survivor."""
    edits: Annotated[tuple[Step, ...], Field(max_length=MOST_EDITS)] = ()
    """Made one after another."""
    blueprint: dict[str, Any] | None = None
    """As in `morphogen schema blueprint`; blocks with the parent's ids inherit the parent's weights."""

    @model_validator(mode="after")
    def _one_or_the_other(self) -> Self:
        if (self.blueprint is None) == (not self.edits):
            raise ValueError("expected either edits of a parent, or a blueprint")
        if self.edits and self.parent is None:
            raise ValueError("parent: missing, but edits are made of one")
        return self


class Answer(Record):
    """What a program answers."""

    proposals: tuple[Proposal, ...]
    """At most as many as the state has open seats."""
    proposer: ProposerName | None = None
    """What to call it in the lineage; null: as the experiment, or `tell --proposer`, calls it."""


class Proposed(Record):
    """A proposal, and whose it is."""

    proposer: ProposerName
    proposal: Proposal


class Refused(Record):
    """An answer that made no candidate, and why. It has cost a seat."""

    proposer: ProposerName
    reason: Words
    proposal: dict[str, Any] | None = None
    """The proposal, where the answer was one, and no larger than is worth keeping."""

    @classmethod
    def of(cls, proposer: str, error: Exception, proposal: dict[str, Any] | None = None) -> Self:
        """With the error for the reason, shortened: what programs say may be of any size, and is told again later."""
        large = proposal is not None and (too_deep(proposal) or len(canonical_json(proposal)) > MOST_KEPT)
        reason = str(error)
        short = reason if len(reason) <= MOST_REASON else f"{reason[:MOST_REASON]}…"
        return cls(proposer=proposer, reason=short, proposal=None if large else proposal)


class KnownOperator(Record):
    """An operator that the run has. preserves: True exact, False lossy, null where it depends."""

    name: str
    summary: str
    level: str
    preserves: bool | None
    weight: float
    """How often the run draws it, relative to the others."""


class Parent(Record):
    """A candidate that proposals may be made of."""

    id: CandidateId
    survivor: bool
    frontier: bool
    blueprint: dict[str, Any]
    operators: tuple[str, ...]
    """Those that apply to it."""


class Past(Record):
    """One candidate: how it came about, and what is known of it. twin: what its twin from fresh weights found, by which
    selection judges where there is one. errors: standard errors of metrics."""

    id: CandidateId
    index: Whole
    generation: Whole
    parents: tuple[CandidateId, ...]
    proposer: str
    """The program that proposed it; empty: bred by the run."""
    edits: tuple[Edit, ...]
    status: Status
    reason: str
    metrics: dict[str, float]
    errors: dict[str, float]
    twin: Twin | None
    timed: dict[str, float]
    costs: dict[str, float]
    tokens: Tokens
    flops: float

    @classmethod
    def of(cls, candidate: Candidate, report: Report | None) -> Self:
        """Both records as one; a candidate without a report is `proposed`."""
        report = (report or Report(id=candidate.id, status=Status.PROPOSED)).without_influence
        tables = (dict(candidate), dict(report))
        return cls(**{name: table[name] for table in tables for name in cls.model_fields if name in table})


class State(Document):
    """Where a run stands, for a program that proposes candidates."""

    title: ClassVar[str] = "state"
    generation: Whole
    """The one that is to be asked for next."""
    generations: Whole
    """As many as are planned; more are for `morphogen run --resume --generations`."""
    seats: Whole
    """Open places in it: proposals beyond them are refused. 0 while the last one is not closed."""
    objectives: dict[str, Literal["min", "max"]]
    constraints: dict[str, Bounds]
    operators: tuple[KnownOperator, ...]
    parents: tuple[Parent, ...]
    """The survivors, best first, then the rest of the frontier."""
    frontier: tuple[CandidateId, ...]
    history: tuple[Past, ...]
    """Every candidate of the run by index."""
    refused: tuple[Refused, ...]
    """Answers so far that made no candidate."""
    waiting: tuple[Proposed, ...]
    """What was told, and has its seat in the next generation."""
    schemas: dict[str, str] = {
        "answer": "morphogen schema answer",
        "blueprint": "morphogen schema blueprint",
        "state": "morphogen schema state",
    }
    """The commands that print the JSON Schema of these formats."""
