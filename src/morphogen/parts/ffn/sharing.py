"""Who shares the places of a mixture, as pure data: experts that split are twins, which may split again.

Of the tokens that reach an expert, a gate sends each on to a twin or leaves it there; an expert's gates come in order.
Experts are numbered: first those with a place of their own, then the twins, one for each gate.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Self

from morphogen.parts.contract.alignment import AxisMap


class Gate(NamedTuple):
    """A gate by its row, −1 for a new one; the expert that it stands behind; and the twin that it sends tokens to."""

    row: int
    host: int
    twin: int


class Sharing(NamedTuple):
    """Places, and the gates behind them, while experts split and go. Experts keep the names they began with, which are
    their numbers in the parent; new ones are named by the numbers after those.

    places: (row of the router, expert). origins: expert -> that of the parent whose weights it has. parent: places and
    gates there.
    """

    places: tuple[tuple[int, int], ...]
    gates: tuple[Gate, ...]
    origins: tuple[int, ...]
    parent: tuple[int, int]

    @classmethod
    def of(cls, places: int, twins: Sequence[int]) -> Self:
        """As a mixture has it: `twins` are the numbers of the experts that they split from."""
        gates = tuple(Gate(i, host, places + i) for i, host in enumerate(twins))
        own = tuple((i, i) for i in range(places))
        return cls(own, gates, tuple(range(places + len(gates))), (places, len(gates)))

    def split(self, expert: int) -> Self:
        """With a twin of an expert, behind the gates that it has."""
        new = Gate(-1, expert, len(self.origins))
        return self._replace(gates=(*self.gates, new), origins=(*self.origins, self.origins[expert]))

    def without(self, expert: int) -> Self:
        """Without an expert. Its place goes too, unless others share it: then the last twin of its own takes it over;
        the tokens of one that has none stay where they split off."""
        own = [gate for gate in self.gates if gate.host == expert]
        if not own:
            places = tuple(place for place in self.places if place[1] != expert)
            return self._replace(places=places, gates=tuple(gate for gate in self.gates if gate.twin != expert))
        heir = own[-1].twin

        def heirs(other: int) -> int:
            return heir if other == expert else other

        return self._replace(
            places=tuple((row, heirs(other)) for row, other in self.places),
            gates=tuple(
                Gate(gate.row, heirs(gate.host), heirs(gate.twin)) for gate in self.gates if gate is not own[-1]
            ),
        )

    @property
    def experts(self) -> list[int]:
        """By their new numbers."""
        return [expert for _, expert in self.places] + [gate.twin for gate in self.gates]

    @property
    def twins(self) -> tuple[int, ...]:
        """As `of` takes them, by the new numbers."""
        return tuple(self.experts.index(gate.host) for gate in self.gates)

    def takes(self) -> Mapping[str, AxisMap]:
        """Axis -> where its entries come from in the parent."""
        places, gates = self.parent
        return {
            "place": by_index([row for row, _ in self.places], places),
            "expert": by_index([self.origins[expert] for expert in self.experts], places + gates),
            "twin": by_index([gate.row for gate in self.gates], gates),
        }


def by_index(index: Sequence[int], parent_size: int) -> AxisMap:
    """Entry i from `index[i]`; −1 is fresh."""
    return AxisMap(how="index", size=len(index), parent_size=parent_size, index=tuple(index))


def aligned(places: int, twins: Sequence[int], parent: Sharing) -> Sharing:
    """A mixture of so many places and such twins as what became of `parent`: places by number, an expert's gates in
    their order. A gate that the parent has not is new, and its twin a copy of its host."""
    kept = min(places, len(parent.places))
    origins = [i if i < kept else -1 for i in range(places)]
    gates, free = list[Gate](), list(parent.gates)
    for i, host in enumerate(twins):
        of_host = (gate for gate in free if gate.host == origins[host])
        found = next(of_host, Gate(-1, host, origins[host]))
        origins.append(found.twin)
        gates.append(Gate(found.row, host, places + i))
        if found in free:
            free.remove(found)
    rows = tuple((i if i < kept else -1, i) for i in range(places))
    return Sharing(rows, tuple(gates), tuple(origins), parent.parent)


def rounds(places: int, twins: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """The gates, by number, in as few rounds as their order allows: all of a round may act at once."""
    ready = dict[int, int]()
    found: list[list[int]] = []
    for i, host in enumerate(twins):
        at = ready.get(host, 0)
        ready[host] = ready[places + i] = at + 1
        if at == len(found):
            found.append([])
        found[at].append(i)
    return tuple(map(tuple, found))
