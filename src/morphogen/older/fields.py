"""Reading a file of the older system: every key of it is accounted for, whether somebody asked for it or not."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from morphogen.blueprint.mistakes import Loc, show
from morphogen.blueprint.yaml import Document
from morphogen.errors import InputError, unknown

How = Literal["translated", "approximated", "dropped"]
_UNKNOWN = "no field of the older system, which ignored it"
_NULL = "null, which is the default"


class Note(NamedTuple):
    """What became of one field. to: where it is in our file; empty: nowhere. idle: dropped, but it had no effect."""

    how: How
    place: str
    to: str
    said: str
    idle: bool = False


class Fields:
    """A mapping of the older file. A key is accounted for by one of `kept`, `near` and `drop`; `rest` drops what
    nobody named, and says so.

    notes: of all mappings of a file, in one list.
    """

    def __init__(self, document: Document, data: Mapping[str, Any], loc: Loc, notes: list[Note]) -> None:
        self.document = document
        self.notes = notes
        self._data = data
        self._loc = loc
        self._open = dict.fromkeys(data)

    # ------------------------------------------------------------------------------------------------- accounting

    def kept(self, name: str, to: str, said: str = "") -> None:
        """The field means the same under `to`, in our file."""
        self._account("translated", name, to, said)

    def near(self, name: str, to: str, said: str) -> None:
        """The nearest that there is."""
        self._account("approximated", name, to, said)

    def drop(self, name: str, said: str) -> None:
        """There is nothing for it."""
        self._account("dropped", name, "", said)

    def idle(self, name: str, said: str) -> None:
        """There is nothing for it, and nothing is lost by that."""
        if self._open.pop(name, False) is None:
            self.notes.append(Note("dropped", self.at(name), "", said, idle=True))

    def retell(self, name: str, how: How, to: str, said: str) -> None:
        """Another account of a field that is in the file."""
        if self.present(name):
            self._open.pop(name, None)
            self.notes[:] = [note for note in self.notes if note.place != self.at(name)]
            self.notes.append(Note(how, self.at(name), to, said))

    def implied(self, to: str, value: object, said: str) -> None:
        """What the older system took where nothing is given, and we would not."""
        self.absent("translated", to.rpartition(".")[2], to, f"{said}: {value}")

    def absent(self, how: How, name: str, to: str, said: str) -> None:
        """What became of a field that is not in the file, but had a default that counts."""
        self.notes.append(Note(how, f"{self.place} without {name}", to, said))

    def _account(self, how: How, name: str, to: str, said: str) -> None:
        if self._open.pop(name, False) is None:
            self.notes.append(Note(how, self.at(name), to, said))

    def rest(self) -> None:
        """Accounts for every key that nobody has named, down to the leaves."""
        for name in list(self._open):
            if self._data[name] is None:
                self.idle(name, _NULL)
                continue
            del self._open[name]
            for leaf in _leaves(self._data[name], (name,)):
                self.notes.append(Note("dropped", dotted((*self._loc, *leaf)), "", _UNKNOWN, idle=True))

    # ---------------------------------------------------------------------------------------------------- values

    @property
    def place(self) -> str:
        """Where it stands."""
        return dotted(self._loc)

    def at(self, name: str) -> str:
        """Where one of its keys stands."""
        return dotted((*self._loc, name))

    def present(self, name: str) -> bool:
        """Whether a key is there, be it null."""
        return name in self._data

    def has(self, name: str) -> bool:
        """Whether a key is there with a value."""
        return self._data.get(name) is not None

    def raw(self, name: str) -> Any:
        """A value as it stands; None where there is none."""
        return self._data.get(name)

    def refuse(self, name: str, wanted: str) -> InputError:
        """What to raise for a value that is none of those wanted."""
        got = show(self.raw(name)) if self.has(name) else "nothing"
        return InputError(self.document.at((*self._loc, name), f"got {got}, expected {wanted}"))

    def number(self, name: str, default: float = 0.0, least: float = -math.inf) -> float:
        """A finite number of at least `least`."""
        if not self.has(name):
            return default
        value = self.raw(name)
        try:
            found = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError, OverflowError):
            found = math.nan
        if not math.isfinite(found) or found < least:
            raise self.refuse(name, "a number" + ("" if least == -math.inf else f" of at least {least:g}"))
        return found

    def whole(self, name: str, default: int = 0, least: int = 0) -> int:
        """A whole number of at least `least`; the older system took 64.0 for 64 too."""
        if not self.has(name):
            return default
        found = self.number(name)
        if found != int(found) or found < least:
            raise self.refuse(name, f"a whole number of at least {least}")
        return int(found)

    def needed(self, name: str, least: int = 1) -> int:
        """A whole number without which nothing can be made."""
        if not self.has(name):
            raise self.refuse(name, f"a whole number of at least {least}")
        return self.whole(name, least=least)

    def cut(self, name: str) -> int:
        """A number of at least 1 without its fraction, which the older system cut off."""
        return int(self.number(name, least=1.0))

    def above(self, name: str, default: float, to: str) -> float:
        """A number above 0, accounted for; 0, which the older system did not take or took for its default, is that."""
        value = self.number(name, default, least=0.0)
        if value:
            self.kept(name, to)
        else:
            self.near(name, to, f"{default:g}, the older default: it cannot be 0")
        return value or default

    def truth(self, name: str, default: bool) -> bool:
        """true or false, in any of the spellings that YAML 1.1 knows."""
        value = self.raw(name)
        if value is None:
            return default
        words = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False}
        found = words.get(str(value).lower(), False if str(value) == "0" else None)
        if found is None:
            raise self.refuse(name, "true or false")
        return found

    def text(self, name: str, default: str = "") -> str:
        """Text; what YAML takes for a number or a truth value is its text."""
        value = self.raw(name)
        if value is None:
            return default
        if isinstance(value, Mapping | Sequence) and not isinstance(value, str):
            raise self.refuse(name, "text")
        return str(value)

    def one_of(self, name: str, default: str, allowed: Sequence[str]) -> str:
        """One of several words."""
        found = self.text(name, default)
        if found not in allowed:
            place = self.document.at((*self._loc, name), "").removesuffix(": ")
            raise InputError(unknown(place, found, allowed))
        return found

    def inner(self, name: str) -> "Fields":
        """A mapping below; an empty one where there is none. The key itself is accounted for by its own."""
        value = self.raw(name)
        if value is None:
            return Fields(self.document, {}, (*self._loc, name), self.notes)
        if not isinstance(value, Mapping):
            raise self.refuse(name, "a mapping")
        self._open.pop(name, None)
        return Fields(self.document, value, (*self._loc, name), self.notes)

    def listed(self, name: str) -> list["Fields"]:
        """A list of mappings, accounted for by its items."""
        value = self._items(name)
        self._open.pop(name, None) if value else None
        found = []
        for i, item in enumerate(value):
            if not isinstance(item, Mapping):
                said = f"got {show(item)}, expected a mapping"
                raise InputError(self.document.at((*self._loc, name, i), said))
            found.append(Fields(self.document, item, (*self._loc, name, i), self.notes))
        return found

    def words(self, name: str) -> list[str]:
        """A list of text."""
        value = self._items(name)
        if not all(isinstance(item, str) for item in value):
            raise self.refuse(name, "a list of names")
        return [str(item) for item in value]

    def wholes(self, name: str) -> list[int]:
        """A list of whole numbers."""
        found = self.numbers(name)
        if not all(value.is_integer() for value in found):
            raise self.refuse(name, "a list of whole numbers")
        return [int(value) for value in found]

    def numbers(self, name: str) -> list[float]:
        """A list of numbers."""
        value = self._items(name)
        if not all(isinstance(item, int | float) and not isinstance(item, bool) for item in value):
            raise self.refuse(name, "a list of numbers")
        return [float(item) for item in value]

    def _items(self, name: str) -> list[Any]:
        value = self.raw(name)
        if value is None:
            return []
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise self.refuse(name, "a list")
        return list(value)

    def names(self) -> list[str]:
        """Its keys that have a value, in their order."""
        return [name for name in self._data if self.has(name)]


def _leaves(value: Any, loc: Loc) -> Iterator[Loc]:
    """The places of all values below one."""
    below: list[tuple[int | str, Any]] = []
    if isinstance(value, Mapping):
        below = list(value.items())
    elif isinstance(value, Sequence) and not isinstance(value, str):
        below = list(enumerate(value))
    for step, item in below:
        yield from _leaves(item, (*loc, step))
    if not below:
        yield loc


def dotted(loc: Loc) -> str:
    """A place as it is read: `model.blocks[0].attn`."""
    path = ""
    for step in loc:
        path += f"[{step}]" if isinstance(step, int) else f".{step}" if path else step
    return path
