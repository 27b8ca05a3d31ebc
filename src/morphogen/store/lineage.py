"""`lineage.json`: every candidate of a run, the rejected with their reason, and the edits from parent to child."""

from collections.abc import Collection, Mapping
from typing import ClassVar, Literal, Self

from pydantic import model_validator

from morphogen.candidate import (
    Beside,
    Candidate,
    CandidateId,
    Edit,
    Growth,
    Inheritance,
    OtherBlueprint,
    Record,
    Report,
    Status,
    StopReason,
    Tokens,
    Twin,
    Whole,
)
from morphogen.continued import Continued, Continues
from morphogen.store.documents import Document

Kind = Literal["mutation", "crossover", "copy"]


class Node(Record):
    """One candidate. `frontier`: it stands on the frontier. `timed`: what depends on the machine's clock and memory.
    `blueprint`: as trained, where training changed it (`growth`: how); else the edges' edits tell all of it."""

    id: CandidateId
    index: Whole
    generation: Whole
    frontier: bool
    status: Status
    reason: str
    rung: Whole
    steps: Whole
    stop_reason: StopReason
    metrics: dict[str, float]
    errors: dict[str, float] = {}
    timed: dict[str, float]
    costs: dict[str, float]
    tokens: Tokens
    flops: float
    tokens_beside: Beside = 0
    twin: Twin | None = None
    inheritance: Inheritance | None
    blueprint: OtherBlueprint = None
    growth: Growth = ()
    proposer: str = ""
    """The program from outside that proposed it; empty: bred by the run."""


class Edge(Record):
    """Parent to child. A crossover has one edge from each parent; each edge carries all of the child's edits.

    A copy is a child without edits: the same blueprint, trained further.
    """

    parent: CandidateId
    child: CandidateId
    kind: Kind
    edits: tuple[Edit, ...]


class Lineage(Document):
    """The file: nodes by candidate index, edges by the child's index, then by the position of the parent. continues:
    the candidate of an earlier run whose weights the first one began with."""

    title: ClassVar[str] = "lineage"
    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]
    continues: Continues = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        index = {node.id: node.index for node in self.nodes}
        if len(index) < len(self.nodes):
            raise ValueError("two nodes share an id")
        for edge in self.edges:
            for end in (edge.parent, edge.child):
                if end not in index:
                    raise ValueError(f"edge {edge.parent} -> {edge.child}: there is no node {end!r}")
            if index[edge.parent] >= index[edge.child]:
                raise ValueError(f"edge {edge.parent} -> {edge.child}: the parent is not older than the child")
        return self

    def records(self) -> tuple[dict[str, Candidate], dict[str, Report]]:
        """Candidates and reports by id, as the pictures take them. The blueprints are empty: the file holds none."""
        parents: dict[str, list[str]] = {node.id: [] for node in self.nodes}
        edits: dict[str, tuple[Edit, ...]] = {}
        for edge in self.edges:
            parents[edge.child].append(edge.parent)
            edits[edge.child] = edge.edits
        candidates = {
            node.id: Candidate(
                id=node.id,
                index=node.index,
                generation=node.generation,
                blueprint={},
                parents=tuple(parents[node.id]),
                edits=edits.get(node.id, ()),
                proposer=node.proposer,
            )
            for node in self.nodes
        }
        shared = set(Report.model_fields) & set(Node.model_fields)
        reports = {node.id: Report(**{name: value for name, value in node if name in shared}) for node in self.nodes}
        return candidates, reports

    @property
    def frontier(self) -> tuple[str, ...]:
        """Ids of the nodes on the frontier, by candidate index."""
        return tuple(node.id for node in self.nodes if node.frontier)


def build_lineage(
    run: str,
    candidates: Mapping[str, Candidate],
    reports: Mapping[str, Report],
    ids: Collection[str],
    continues: Continued | None = None,
) -> Lineage:
    """The lineage of all `candidates`; `ids` are those on the frontier. One without a report stands as `proposed`."""
    nodes, edges = [], []
    for candidate in sorted(candidates.values(), key=lambda candidate: candidate.index):
        report = reports[candidate.id] if candidate.id in reports else Report(id=candidate.id, status=Status.PROPOSED)
        nodes.append(
            Node(
                id=candidate.id,
                index=candidate.index,
                generation=candidate.generation,
                frontier=candidate.id in ids,
                status=report.status,
                reason=report.reason,
                rung=report.rung,
                steps=report.steps,
                stop_reason=report.stop_reason,
                metrics=report.metrics,
                errors=report.errors,
                timed=report.timed,
                costs=report.costs,
                tokens=report.tokens,
                flops=report.flops,
                tokens_beside=report.tokens_beside,
                twin=report.without_influence.twin,
                inheritance=report.inheritance,
                blueprint=report.blueprint,
                growth=report.growth,
                proposer=candidate.proposer,
            )
        )
        kind: Kind = "crossover" if len(candidate.parents) > 1 else "mutation" if candidate.edits else "copy"
        edges += [
            Edge(parent=parent, child=candidate.id, kind=kind, edits=candidate.edits) for parent in candidate.parents
        ]
    return Lineage(run=run, nodes=tuple(nodes), edges=tuple(edges), continues=continues)
