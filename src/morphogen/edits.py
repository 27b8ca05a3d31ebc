"""What operators did to a blueprint or its training, as records. `candidate` has these names too. No torch here."""

from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import Field

from morphogen.plain import Record, Whole


class Change(Record):
    """One place in a blueprint that differs. `path` names blocks by gene id: `blocks.b1.ffn.hidden`."""

    path: str
    before: Any = None
    after: Any = None


class Merging(Record):
    """How the weights of two parents became one: the method, the parents' weights, and what the method draws with."""

    method: str
    weights: tuple[float, ...]
    density: float = 1.0
    epsilon: float = 0.0
    seed: Whole = 0


class Edit(Record):
    """What one operator did: enough to explain and to replay.

    `preserves` says whether the operator claims to leave the function of an inherited model unchanged.
    Changes at `train.<field>` are of the candidate's training, all others of its blueprint.
    `sources` is filled by crossovers: gene id of a block -> position of the parent it came from.
    `steps`: the edits that a compound edit consists of, in order; `changes` sums them up. `template`: the template that
    was applied, as it was. `repair`: made to satisfy a structural gate, not drawn. `merging`: of two parents' weights.
    """

    operator: str
    target: str
    preserves: bool
    changes: tuple[Change, ...] = ()
    sources: dict[str, int] = {}
    steps: tuple["Edit", ...] = ()
    template: dict[str, Any] | None = None
    repair: bool = False
    merging: Annotated[Merging | None, Field(exclude_if=lambda merging: merging is None)] = None

    def single(self) -> Iterator["Edit"]:
        """The edits to make one after another: the steps of a compound edit, else the edit itself."""
        if not self.steps:
            yield self
        for step in self.steps:
            yield from step.single()
