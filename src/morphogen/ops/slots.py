"""Slots that stand for some past tokens each: how many there are and who reads them. No torch: costs need it too."""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from morphogen.errors import InputError

Aggregator = Literal["mean", "attention", "gate"]
#: Queries of a tile (benchmarks/speed.py).
ROWS = 128


@dataclass(frozen=True)
class Slots:
    """Slot s stands for the `size` tokens from s·stride on. A token reads the slots that ended before it.

    keep: only the latest so many of them; None reads all. Raises InputError where tokens would be in no slot.
    """

    size: int
    stride: int
    keep: int | None = None

    def __post_init__(self) -> None:
        """Raises InputError for sizes below 1, and for a stride above the size: some tokens would be in no slot."""
        if not 1 <= self.stride <= self.size or (self.keep is not None and self.keep < 1):
            raise InputError(
                f"Slots: got size {self.size}, stride {self.stride}, keep {self.keep}, expected "
                "1 ≤ stride ≤ size and keep ≥ 1"
            )

    def complete(self, tokens: int) -> int:
        """How many slots the first `tokens` tokens complete."""
        return 0 if tokens < self.size else (tokens - self.size) // self.stride + 1


def spans(slots: Slots, skip: int, start: int, before: int, length: int) -> Iterator[tuple[int, int, slice]]:
    """First and last + 1 query of each tile, and the slots that one of its queries at least reads."""
    for first in range(skip, length, ROWS):
        last = min(first + ROWS, length)
        low = 0 if slots.keep is None else max(0, before + slots.complete(start + first) - slots.keep)
        yield first, last, slice(low, before + slots.complete(start + last - 1))


@functools.lru_cache(maxsize=1024)
def read_pairs(slots: Slots, length: int) -> int:
    """(token, slot) pairs that `attend_slots` computes on over a sequence of `length` tokens."""
    runs = spans(slots, min(length, slots.size), 0, 0, length)
    return sum((last - first) * (keys.stop - keys.start) for first, last, keys in runs)
