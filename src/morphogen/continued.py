"""Where the weights come from that a run begins with: a candidate of an earlier run, and what that descends from."""

from typing import Annotated

from pydantic import Field

from morphogen.candidate import CandidateId, Record, Whole, Words


class Forebear(Record):
    """A candidate of an earlier run, of those that weights from outside come from. operators: of its edits."""

    run: Words
    id: CandidateId
    parents: tuple[CandidateId, ...] = ()
    operators: tuple[str, ...] = ()


class Continued(Record):
    """The candidate of an earlier run whose weights a run begins with. tokens: behind them. forebears: it and all that
    it descends from, those of still earlier runs first."""

    run: Words
    id: CandidateId
    tokens: Whole
    forebears: tuple[Forebear, ...] = ()


#: What a run goes on from; files leave it out where it begins with nothing.
Continues = Annotated[Continued | None, Field(exclude_if=lambda found: found is None)]
