"""Novelty: how far a candidate's architecture is from the nearest others of the run. Costs nothing until asked for."""

from collections.abc import Mapping

from morphogen.blueprint.diff import distance
from morphogen.blueprint.schema import Blueprint

NAME = "novelty"
NEIGHBOURS = 5


class Novelty:
    """Mean structural distance to the `NEIGHBOURS` nearest of all other candidates. Ref: Lehman and Stanley 2011.

    blueprints: those of the run by id; the mapping may grow. Distances are kept once computed.
    """

    def __init__(self, blueprints: Mapping[str, Blueprint]) -> None:
        self._blueprints = blueprints
        self._known: dict[tuple[str, str], float] = {}

    def of(self, id: str) -> float:
        """The novelty of one candidate; 0 while it is the only one."""
        nearest = sorted(self._distance(id, other) for other in self._blueprints if other != id)[:NEIGHBOURS]
        return sum(nearest) / len(nearest) if nearest else 0.0

    def _distance(self, a: str, b: str) -> float:
        pair = (min(a, b), max(a, b))
        if pair not in self._known:
            self._known[pair] = distance(self._blueprints[pair[0]], self._blueprints[pair[1]])
        return self._known[pair]
