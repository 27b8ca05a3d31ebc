"""What a page is told of a run: plain data, whoever collects it (`pages.py`)."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from morphogen.against_root import NOT_MEASURED, AgainstRoot
from morphogen.candidate import Candidate, Report

Objectives = Mapping[str, Literal["min", "max"]]


@dataclass(frozen=True)
class RunShown:
    """A run.

    Attributes:
        run: Its name.
        candidates: All that were ever asked for, by id.
        reports: What was measured of them, by id.
        frontier: Ids of those on the frontier of the last closed generation.
        objectives: What the search is for, and which way.
        hypervolumes: One per closed generation, from generation 0.
        reference: The point that they are measured from, per objective.
        survivors: Per closed generation the ids of those that went on as parents.
        facts: What else to say of the run, name to text.
        against_root: What repeats on other seeds found of the frontier.
        unmet: What keeps all of the frontier outside of the constraints, or without a value of an objective.
        controls: The root without edits, trained as long as finalists, where that was measured beside the search.
        environment: What else its numbers depend on, as in `environment.json`.
        composites: The figures that the experiment makes of others, as it says them.
        evidence: What was measured of it afterwards (ablations, verification), as tables by what they are called.
        ongoing: Whether it goes on, so that the page will be written again.
    """

    run: str
    candidates: Mapping[str, Candidate]
    reports: Mapping[str, Report]
    frontier: Collection[str]
    objectives: Objectives
    hypervolumes: Sequence[float] = ()
    reference: Mapping[str, float] = field(default_factory=dict)
    survivors: Sequence[Collection[str]] = ()
    facts: Mapping[str, str] = field(default_factory=dict)
    against_root: AgainstRoot = field(default_factory=lambda: NOT_MEASURED)
    unmet: str = ""
    controls: Sequence[Report] = ()
    environment: Mapping[str, Any] = field(default_factory=dict)
    composites: Mapping[str, Any] = field(default_factory=dict)
    evidence: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    ongoing: bool = False

    @property
    def in_order(self) -> list[Candidate]:
        """The candidates, oldest first."""
        return sorted(self.candidates.values(), key=lambda candidate: candidate.index)

    @property
    def root(self) -> str:
        """The id of the first candidate without parents; empty without candidates."""
        return next((candidate.id for candidate in self.in_order if not candidate.parents), "")

    @property
    def unedited(self) -> bool:
        """Whether it is a control: more than its root was trained, and no edit was ever made."""
        return len(self.candidates) > 1 and not any(candidate.edits for candidate in self.candidates.values())
