"""A tokenizer's vocabulary as one line of text: small enough to lie in every checkpoint, and to map tokens by."""

import base64
import binascii
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from morphogen.errors import InputError


@dataclass(frozen=True)
class Vocabulary:
    """The text that each id stands for, None for ids that stand for none, and the id of end of text."""

    pieces: tuple[bytes | None, ...]
    eot: int

    def pack(self) -> str:
        """The line: base64 of compressed JSON."""
        texts = [None if piece is None else piece.decode("latin-1") for piece in self.pieces]
        plain = json.dumps({"eot": self.eot, "pieces": texts}, separators=(",", ":"))
        return base64.b64encode(zlib.compress(plain.encode(), 9)).decode()

    @classmethod
    def unpack(cls, line: str, place: str) -> Self:
        """What `pack` wrote. InputError at `place` for anything else."""
        try:
            found = json.loads(zlib.decompress(base64.b64decode(line, validate=True)))
            pieces = tuple(None if text is None else text.encode("latin-1") for text in found["pieces"])
            return cls(pieces, int(found["eot"]))
        except (binascii.Error, zlib.error, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise InputError(f"{place}: its vocabulary cannot be read") from None

    def index_in(self, other: "Vocabulary", rows: int) -> Sequence[int]:
        """For each of `rows` ids of this vocabulary the id of `other` that stands for the same text, −1 for none.

        End of text stands for end of text. Of several ids with one text the first is taken.
        """
        first: dict[bytes, int] = {}
        for i, piece in enumerate(other.pieces):
            if piece:
                first.setdefault(piece, i)
        index = [first.get(piece, -1) if piece else -1 for piece in self.pieces[:rows]]
        index[self.eot] = other.eot
        return index + [-1] * (rows - len(index))
