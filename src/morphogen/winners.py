"""A run's frontier for use from Python: blueprints that `build` takes, and weights to load. Made by `Run.frontier`."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Self

from pydantic import PrivateAttr

from morphogen.blueprint.schema import Blueprint
from morphogen.errors import InputError, unknown
from morphogen.store.frontier import Entry, Frontier

if TYPE_CHECKING:
    from torch import Tensor


class Winner(Entry):
    """One candidate of the frontier, its blueprint ready for `build`."""

    blueprint: Blueprint  # type: ignore[assignment]  # the same field, read as what it describes
    _folder: Path = PrivateAttr(default=Path())

    def weights(self) -> "dict[str, Tensor]":
        """Its weights by name as they were measured, for `load_state_dict`.

        Raises:
            InputError: They are gone or damaged.
        """
        from morphogen.inherit.checkpoint import load_checkpoint

        if self.checkpoint is None:
            raise InputError(f"candidate {self.id}: has no checkpoint")
        state, _, _ = load_checkpoint(self._folder / self.checkpoint, measured=True)
        return dict(state)


class Winners(Frontier):
    """The frontier of a run, as in `frontier.json`: `run.frontier["ID"]` is one of its candidates, of which it is a
    collection."""

    candidates: tuple[Winner, ...]

    @classmethod
    def of(cls, folder: Path) -> Self:
        """Reads the frontier of a run.

        Args:
            folder: The run's folder.

        Raises:
            InputError: Its file cannot be read.
        """
        found = cls.read(folder / "frontier.json")
        for winner in found.candidates:
            winner._folder = folder.absolute()
        return found

    def __len__(self) -> int:
        return len(self.candidates)

    def __iter__(self) -> Iterator[Winner]:  # type: ignore[override]  # candidates rather than fields
        return iter(self.candidates)

    def __contains__(self, id: object) -> bool:
        return any(id in (winner.id, winner) for winner in self.candidates)

    def __getitem__(self, id: str) -> Winner:
        found = next((winner for winner in self.candidates if winner.id == id), None)
        if found is None:
            raise InputError(unknown("frontier", id, [winner.id for winner in self.candidates]))
        return found
