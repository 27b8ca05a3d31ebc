"""Probes: sequences made on the spot that test one ability. `mqar` is multi-query associative recall.

A sequence of `mqar` (Arora et al., Zoology, arXiv 2312.04927) begins with K pairs of a key and its value. Keys are
drawn from the lower half of the token range and values from the upper half, both without replacement. After them, every
key comes once again, followed by its value: the rest is cut into slots of two tokens, and the keys' slots are drawn
without replacement with probability p(i) ∝ a·i^(a−1) for the i-th, a = 0.01, so that most questions come soon. Other
slots hold tokens that are none of the sequence's keys and values. Only values are scored, where they answer.

Shapes: B sequences, T1 tokens of a sequence (T is T1 − 1 targets), K pairs, S slots, N filler tokens, V vocabulary.
"""

from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from morphogen.data.spelling import Ids
from morphogen.errors import InputError

#: Exponent a of the power law of gaps.
POWER: Final = 0.01


@dataclass(frozen=True)
class Probe:
    """`probe:mqar:<pairs>` made ready. weight: its share of training sequences, relative to the shards'; 0 is none."""

    pairs: int
    weight: float
    seq_len: int
    vocab_size: int

    def __post_init__(self) -> None:
        """InputError when the sequences are too short or the tokens too few."""
        if self.slots < self.pairs:
            raise InputError(
                f"data: probe:mqar:{self.pairs} needs a seq_len of at least {4 * self.pairs - 1} (two "
                f"times two tokens a pair, less one), got {self.seq_len}"
            )
        if self.vocab_size // 2 <= self.pairs:
            raise InputError(
                f"data: probe:mqar:{self.pairs} needs at least {2 * self.pairs + 2} tokens in the vocabulary, got "
                f"{self.vocab_size}"
            )

    @property
    def slots(self) -> int:
        """S: places of two tokens after the pairs."""
        return (self.seq_len + 1 - 2 * self.pairs) // 2

    @property
    def chance(self) -> float:
        """Accuracy without any memory: one of the upper half of the tokens."""
        return 1.0 / (self.vocab_size - self.vocab_size // 2)

    def sequence(self, *entropy: int) -> "Recall":
        """The sequence of one random stream; a pure function of `entropy`."""
        rng = np.random.default_rng(np.random.SeedSequence(entropy))
        half, vocab = self.vocab_size // 2, self.vocab_size
        keys_K = rng.choice(half, self.pairs, replace=False)
        values_K = half + rng.choice(vocab - half, self.pairs, replace=False)
        slots_K = rng.choice(self.slots, self.pairs, replace=False, p=slot_law(self.slots))
        ids_T1 = np.empty(self.seq_len + 1, dtype=np.int64)
        ids_T1[0 : 2 * self.pairs : 2], ids_T1[1 : 2 * self.pairs : 2] = keys_K, values_K
        ids_T1[2 * self.pairs :] = _others(
            rng, vocab, np.concatenate([keys_K, values_K]), self.seq_len + 1 - 2 * self.pairs
        )
        asked_K = 2 * (self.pairs + slots_K)
        ids_T1[asked_K], ids_T1[asked_K + 1] = keys_K, values_K
        return Recall(ids_T1, asked_K, asked_K - 2 * np.arange(self.pairs))


class Recall(NamedTuple):
    """One sequence: its tokens (T1,), where each key comes again (K,), how many tokens after its first place (K,)."""

    ids: Ids
    asked: Ids
    distance: Ids


def slot_law(slots: int) -> NDArray[np.float64]:
    """p_S: probability of each slot, p(i) ∝ a·i^(a−1) for i from 1."""
    law_S = POWER * np.arange(1, slots + 1, dtype=np.float64) ** (POWER - 1.0)
    whole: NDArray[np.float64] = law_S / law_S.sum()
    return whole


def _others(rng: np.random.Generator, vocab: int, taken: Ids, count: int) -> Ids:
    """ids_N: tokens, evenly, that are none of `taken`."""
    ids_N = rng.integers(vocab - len(taken), size=count)
    shifts = np.sort(taken) - np.arange(len(taken))  # how many free tokens lie below each taken one
    found: Ids = ids_N + np.searchsorted(shifts, ids_N, side="right")
    return found


def scored_only(recall: Recall) -> Ids:
    """ids_T1 as training reads them: −1 − id where the token is not scored (see `data.mixture`)."""
    ids_T1 = -1 - recall.ids
    ids_T1[recall.asked + 1] = recall.ids[recall.asked + 1]
    return ids_T1
