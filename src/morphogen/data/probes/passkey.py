"""A key in a haystack. N tokens of the key."""

from typing import ClassVar

import numpy as np

from morphogen.data.probes.probe import Asked, Kind

KEY, QUESTION, FILLER = 0, 1, 2


class Passkey(Kind):
    """`probe:passkey:TOKENS` (Mohtashami and Jaggi, arXiv 2305.16300), over tokens drawn at random.

    A key of N tokens from the upper half of the token range, each evenly, stands behind the token 0 at a place that is
    even over all where it fits; the rest, the haystack, is drawn evenly from the lower half but for the tokens 0 and 1.
    The last N + 1 tokens are 1 and the key once more, which is scored token by token. Ask at lengths other than
    training's with `lengths`.
    """

    name: ClassVar = "passkey"

    def least(self) -> tuple[int, int]:
        """Two keys with their marks; one token to fill with."""
        return 2 * self.size + 1, 6

    def chance(self, vocab: int) -> float:
        """One of the upper half of the tokens."""
        return 1.0 / (vocab - vocab // 2)

    def sequence(self, rng: np.random.Generator, seq_len: int, vocab: int) -> Asked:
        """As above."""
        half, size = vocab // 2, self.size
        ids_T1 = rng.integers(FILLER, half, size=seq_len + 1)
        key_N = half + rng.integers(vocab - half, size=size)
        question = seq_len - size
        place = int(rng.integers(question - size))
        ids_T1[place], ids_T1[place + 1 : place + 1 + size] = KEY, key_N
        ids_T1[question], ids_T1[question + 1 :] = QUESTION, key_N
        asked_N = question + np.arange(size)
        return Asked(ids_T1, asked_N, np.full(size, question - place))
