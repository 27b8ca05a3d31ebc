"""Documents, and the account of how a source was read: how much of it, and what was left out and why."""

import hashlib
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, Self

from morphogen.errors import InputError

#: So many of what was left out for one reason are named; of the rest there is the count.
NAMED: Final = 3
#: So many reasons are told apart, those for most first; the rest are one.
REASONS: Final = 12


class Document(NamedTuple):
    """One document. `key` is stable: the path inside its source, with line or row where a file holds many.

    origin: the `digest_of` a larger text that this one was taken from. Texts of one origin go into one split, so that
    a docstring is never held out while the module it stands in is trained on.
    """

    key: str
    text: str
    origin: bytes | None = None


def digest_of(text: str) -> bytes:
    """The hash that names a text: 16 bytes of BLAKE2b over its UTF-8."""
    return hashlib.blake2b(text.encode("utf-8"), digest_size=16).digest()


@dataclass(frozen=True)
class LeftOut:
    """Some of a source that is not in the corpus: why, how many, and the names of the first few."""

    why: str
    count: int
    such_as: tuple[str, ...]

    def __str__(self) -> str:
        names = ", ".join(self.such_as) + (", ..." if self.count > len(self.such_as) else "")
        return f"{self.count:,} {self.why}" + (f" ({names})" if names else "")


@dataclass(frozen=True)
class Account:
    """How a source was read: files, documents before empty ones and duplicates are dropped, and what was left out.

    columns: of the files of records, by how many of them had their text in it.
    """

    files: int
    documents: int
    columns: dict[str, int]
    left_out: tuple[LeftOut, ...]

    def __str__(self) -> str:
        said = f"{self.documents:,} documents from {self.files:,} files" if self.files else f"{self.documents:,} rows"
        said += "".join(f", text from column {name!r}" for name in self.columns if name != "text")
        return said + (f"; left out: {'; '.join(map(str, self.left_out))}" if self.left_out else "")

    @classmethod
    def from_json(cls, told: dict[str, Any]) -> Self:
        """The account whose `dataclasses.asdict` this is, as JSON holds it."""
        left = tuple(LeftOut(item["why"], item["count"], tuple(item["such_as"])) for item in told["left_out"])
        return cls(told["files"], told["documents"], told["columns"], left)


@dataclass
class Reader:
    """Where a source is being read, what to do with what cannot be, and the tally that becomes its `Account`.

    column: of records, where the text is; None to find it. skip: leave out what cannot be read, and count it.
    """

    place: str
    column: str | None = None
    skip: bool = False
    files: int = 0
    documents: int = 0
    columns: Counter[str] = field(default_factory=Counter)
    _left: dict[str, list[str]] = field(default_factory=dict)
    _counts: Counter[str] = field(default_factory=Counter)

    def leave_out(self, why: str, name: str) -> None:
        """Counts one more left out."""
        self._counts[why] += 1
        names = self._left.setdefault(why, [])
        if name and len(names) < NAMED:
            names.append(name)

    def refuse(self, where: str, said: str, why: str) -> None:
        """What cannot be read at `where` is left out with `skip`, else an InputError."""
        if not self.skip:
            raise InputError(f"{self.place}: {where}{said} (on_error: skip on the shard leaves such out)")
        self.leave_out(why, where)

    def account(self) -> Account:
        """The tally so far."""
        ranked = sorted(self._counts.items(), key=lambda item: (-item[1], item[0]))
        told = [LeftOut(why, count, tuple(self._left[why])) for why, count in sorted(ranked[:REASONS])]
        if rest := ranked[REASONS:]:
            names = tuple(name for why, _ in rest for name in self._left[why])[:NAMED]
            told.append(LeftOut("for other reasons", sum(count for _, count in rest), names))
        return Account(self.files, self.documents, dict(sorted(self.columns.items())), tuple(told))
