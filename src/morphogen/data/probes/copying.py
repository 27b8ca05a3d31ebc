"""Tokens to be given back in order: picked out of blanks, or as many as fit. K tokens to copy."""

from typing import ClassVar

import numpy as np

from morphogen.data.probes.probe import Asked, Kind
from morphogen.data.spelling import Ids

BLANK, COPY, FIRST = 0, 1, 2


class SelectiveCopy(Kind):
    """`probe:selective_copy:TOKENS` (Gu and Dao, Mamba, arXiv 2312.00752; MAD, 2403.17844).

    K tokens, drawn evenly but for 0 and 1, stand in order at places drawn evenly among blanks, the token 0. Then come
    the token 1 and the K tokens in their order, which are scored. Where MAD shows blanks while it asks, here the tokens
    asked before are seen, as in any next-token prediction.
    """

    name: ClassVar = "selective_copy"

    def least(self) -> tuple[int, int]:
        """Twice the tokens, with the mark; two to tell apart."""
        return 2 * self.size, 4

    def chance(self, vocab: int) -> float:
        """Any token but the two."""
        return 1.0 / (vocab - FIRST)

    def sequence(self, rng: np.random.Generator, seq_len: int, vocab: int) -> Asked:
        """As above."""
        tokens_K = rng.integers(FIRST, vocab, size=self.size)
        places_K = np.sort(rng.choice(seq_len - self.size, self.size, replace=False))
        return copied(tokens_K, places_K, seq_len)


class Compress(Kind):
    """`probe:compress` (after MAD's compression, arXiv 2403.17844): how much a state holds.

    As many tokens as fit, drawn evenly from the 16 (or all that there are) after 0 and 1, then the token 1 and the
    tokens once more, which are scored: half of the sequence. MAD reads the sequence out of the last token's vector by a
    decoder of its own, which a language model has not; here a model without room for the whole sequence loses it.
    """

    name: ClassVar = "compress"
    #: Values that a token may have at most.
    VALUES: ClassVar = 16

    def least(self) -> tuple[int, int]:
        """One token and the mark; two to tell apart."""
        return 2, 4

    def chance(self, vocab: int) -> float:
        """One of the values."""
        return 1.0 / min(self.VALUES, vocab - FIRST)

    def sequence(self, rng: np.random.Generator, seq_len: int, vocab: int) -> Asked:
        """As above."""
        count = seq_len // 2
        tokens_K = FIRST + rng.integers(min(self.VALUES, vocab - FIRST), size=count)
        return copied(tokens_K, seq_len - 2 * count + np.arange(count), seq_len)


def copied(tokens_K: Ids, places_K: Ids, seq_len: int) -> Asked:
    """Blanks but for the tokens at their places, then the mark and the tokens again at the end."""
    count = len(tokens_K)
    ids_T1 = np.full(seq_len + 1, BLANK, dtype=np.int64)
    ids_T1[places_K] = tokens_K
    ids_T1[seq_len - count], ids_T1[seq_len - count + 1 :] = COPY, tokens_K
    asked_K = seq_len - count + np.arange(count)
    return Asked(ids_T1, asked_K, asked_K - places_K + 1)
