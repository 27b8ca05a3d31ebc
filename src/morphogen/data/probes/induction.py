"""What followed a token the last time."""

from typing import ClassVar

import numpy as np

from morphogen.data.probes.probe import Asked, Kind

MARK = 0


class Induction(Kind):
    """`probe:induction` (the induction heads of Olsson et al., arXiv 2209.11895, as in Fu et al., 2212.14052).

    Tokens are drawn evenly, the token 0 left out. It stands at one place, even over all but the last two, and once more
    at the end; the token that followed it is scored.
    """

    name: ClassVar = "induction"

    def least(self) -> tuple[int, int]:
        """The mark, what follows, and the mark; two answers."""
        return 3, 3

    def chance(self, vocab: int) -> float:
        """Any token but the mark."""
        return 1.0 / (vocab - 1)

    def sequence(self, rng: np.random.Generator, seq_len: int, vocab: int) -> Asked:
        """As above."""
        ids_T1 = rng.integers(1, vocab, size=seq_len + 1)
        asked, place = seq_len - 1, int(rng.integers(seq_len - 2))
        ids_T1[place] = ids_T1[asked] = MARK
        ids_T1[seq_len] = ids_T1[place + 1]
        return Asked(ids_T1, np.array([asked]), np.array([asked - place]))
