"""Multi-query associative recall. K pairs, S slots."""

from typing import ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from morphogen.data.probes.probe import Asked, Kind, others

#: Exponent a of the power law of gaps.
POWER: Final = 0.01


class MQAR(Kind):
    """`probe:mqar:PAIRS` (Arora et al., Zoology, arXiv 2312.04927).

    A sequence begins with K pairs of a key and its value. Keys are drawn from the lower half of the token range and
    values from the upper half, both without replacement. After them, every key comes once again, followed by its value:
    the rest is cut into slots of two tokens, and the keys' slots are drawn without replacement with probability
    p(i) ∝ a·i^(a−1) for the i-th, a = 0.01, so that most questions come soon. Other slots hold tokens that are none of
    the sequence's keys and values. Only values are scored, where they answer.
    """

    name: ClassVar = "mqar"

    def least(self) -> tuple[int, int]:
        """Two times two tokens a pair, less one; more values than are asked."""
        return 4 * self.size - 1, 2 * self.size + 2

    def chance(self, vocab: int) -> float:
        """One of the upper half of the tokens."""
        return 1.0 / (vocab - vocab // 2)

    def sequence(self, rng: np.random.Generator, seq_len: int, vocab: int) -> Asked:
        """As above."""
        pairs, half = self.size, vocab // 2
        slots = (seq_len + 1 - 2 * pairs) // 2
        keys_K = rng.choice(half, pairs, replace=False)
        values_K = half + rng.choice(vocab - half, pairs, replace=False)
        slots_K = rng.choice(slots, pairs, replace=False, p=slot_law(slots))
        ids_T1 = np.empty(seq_len + 1, dtype=np.int64)
        ids_T1[0 : 2 * pairs : 2], ids_T1[1 : 2 * pairs : 2] = keys_K, values_K
        ids_T1[2 * pairs :] = others(rng, vocab, np.concatenate([keys_K, values_K]), seq_len + 1 - 2 * pairs)
        asked_K = 2 * (pairs + slots_K)
        ids_T1[asked_K], ids_T1[asked_K + 1] = keys_K, values_K
        return Asked(ids_T1, asked_K, asked_K - 2 * np.arange(pairs))


def slot_law(slots: int) -> NDArray[np.float64]:
    """p_S: probability of each slot, p(i) ∝ a·i^(a−1) for i from 1."""
    law_S = POWER * np.arange(1, slots + 1, dtype=np.float64) ** (POWER - 1.0)
    whole: NDArray[np.float64] = law_S / law_S.sum()
    return whole
