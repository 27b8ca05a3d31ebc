"""Sums of whole numbers. N digits."""

from typing import ClassVar

import numpy as np

from morphogen.data.probes.probe import Asked, Kind

PLUS, EQUALS, END = 10, 11, 12
#: Digits that are drawn and written at once: one more is too large for a draw.
AT_ONCE = 18


class Arithmetic(Kind):
    """`probe:math:DIGITS` (generated, after the addition of Lee et al., arXiv 2307.03381).

    Sums a + b = c one after the other: a and b of one to N digits, the number of digits and then the number drawn
    evenly; digits are the tokens 0 to 9, the highest first, and `+`, `=` and the end of a sum the tokens 10 to 12. As
    many as fit, at the sequence's end; before them ends of sums. The digits of c are scored; how far one reaches is 1
    plus the number of sums of digits that carried below it, so that digits that need no carry weigh as much together
    as those that need one, two and so on.
    """

    name: ClassVar = "math"
    deep: ClassVar = False
    perplexity: ClassVar = "ppl_math"

    def least(self) -> tuple[int, int]:
        """The longest sum; the digits and three signs."""
        return 3 * self.size + 3, END + 1

    def chance(self, vocab: int) -> float:
        """One of ten digits."""
        return 0.1

    def sequence(self, rng: np.random.Generator, seq_len: int, vocab: int) -> Asked:
        """As above."""
        sums: list[list[int]] = []
        asked: list[list[int]] = []
        reach: list[int] = []
        used = 0
        while True:
            a, b = (_drawn(rng, int(rng.integers(1, self.size + 1))) for _ in range(2))
            said = [*_digits(a), PLUS, *_digits(b), EQUALS, *_digits(a + b), END]
            if used + len(said) > seq_len + 1:
                break
            equals = len(said) - 2 - len(_digits(a + b))
            asked.append([used + equals + i for i in range(len(_digits(a + b)))])
            reach += _carries(a, b)
            sums.append(said)
            used += len(said)
        ids_T1 = np.full(seq_len + 1, END, dtype=np.int64)
        ids_T1[seq_len + 1 - used :] = [token for said in sums for token in said]
        places = seq_len + 1 - used + np.array([place for places in asked for place in places])
        return Asked(ids_T1, places, 1 + np.array(reach))


def _drawn(rng: np.random.Generator, digits: int) -> int:
    """A number below 10 to the power of `digits`, evenly."""
    number = 0
    while digits > AT_ONCE:
        number = number * 10**AT_ONCE + int(rng.integers(10**AT_ONCE))
        digits -= AT_ONCE
    rest: int = 10**digits
    return number * rest + int(rng.integers(rest))


def _digits(number: int) -> list[int]:
    told: list[str] = []
    while number >= 10**AT_ONCE:
        number, low = divmod(number, 10**AT_ONCE)
        told.append(f"{low:0{AT_ONCE}}")
    return [int(digit) for digit in "".join([str(number), *reversed(told)])]


def _carries(a: int, b: int) -> list[int]:
    """For every digit of a + b, the highest first: how many of those below it, in a row, handed a carry on to it."""
    found: list[int] = []
    run = 0
    for power in range(len(_digits(a + b))):
        found.append(run)
        below = 10 ** (power + 1)
        run = run + 1 if a % below + b % below >= below else 0
    return found[::-1]
