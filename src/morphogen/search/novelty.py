"""Novelty: how far a candidate's architecture is from the nearest others of the run. Costs nothing until asked for."""

from collections.abc import Callable, Collection
from heapq import nsmallest
from typing import Generic, TypeVar

from morphogen.experiment import Evolution
from morphogen.figures import Figure, declare, figure_called

NAME = "novelty"
NEIGHBOURS = 5
#: Candidates of a run that the others are compared with.
SAMPLE = 256

T = TypeVar("T")

declare(
    Figure(
        NAME,
        unit="1",
        better="max",
        sort="search",
        summary=f"Mean structural distance to the {NEIGHBOURS} nearest candidates of the run (of an even sample of it "
        f"where it has more than {SAMPLE}).",
    )
)


class Novelty(Generic[T]):
    """Mean structural distance to the `NEIGHBOURS` nearest of a sample of the run. Ref: Lehman and Stanley 2011.

    The sample is everything until there are more than `SAMPLE` candidates; from then on those of the smallest digests:
    an even sample that does not depend on the order in which they came. distance: of two candidates' traits.
    """

    def __init__(self, distance: Callable[[T, T], float]) -> None:
        self._measure = distance
        self._traits: dict[str, T] = {}
        self._sample: dict[str, str] = {}
        self._known: dict[str, dict[str, float]] = {}

    def add(self, id: str, digest: str, traits: T) -> None:
        """A candidate of the run, or what it has become. Its novelty can be asked for until `forget` leaves it out."""
        self._traits[id] = traits
        self._known.pop(id, None)
        for known in self._known.values():
            known.pop(id, None)
        self._sample[id] = digest
        if len(self._sample) > SAMPLE:
            del self._sample[max(self._sample, key=lambda id: (self._sample[id], id))]

    def of(self, id: str) -> float:
        """The novelty of one candidate; 0 while it is the only one."""
        known, mine = self._known.setdefault(id, {}), self._traits[id]
        for other in self._sample:
            if other != id and other not in known:
                known[other] = self._measure(mine, self._traits[other])
        nearest = nsmallest(NEIGHBOURS, (known[other] for other in self._sample if other != id))
        return sum(nearest) / len(nearest) if nearest else 0.0

    def forget(self, keep: Collection[str]) -> None:
        """Drops what is held of all candidates but those and the sample."""
        self._traits = {id: traits for id, traits in self._traits.items() if id in keep or id in self._sample}
        self._known = {
            id: {other: known[other] for other in known if other in self._sample}
            for id, known in self._known.items()
            if id in keep
        }


def wanted(evolution: Evolution) -> bool:
    """Whether anything in the settings asks for novelty."""
    used = {figure_called(name) for name in (*evolution.weights, *evolution.lexicase_cases)}
    used |= {*evolution.objectives, *evolution.constraints, *evolution.map_elites}
    used |= {name for composite in evolution.composite_metrics.values() for name in composite.names}
    return NAME in used or evolution.structural_elite_k > 0
