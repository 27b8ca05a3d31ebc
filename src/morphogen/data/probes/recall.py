"""Pairs that come again and again: among noise, with keys and values of several tokens, and always the same. K pairs"""

import math
from typing import ClassVar

import numpy as np

from morphogen.data.probes.probe import Asked, Kind
from morphogen.data.spelling import Ids

#: Share of slots that hold noise.
NOISE = 0.2
#: Tokens of a key or a value at most.
LONGEST = 3
#: Of the one map of keys to values that there is to memorize.
MAP_SEED = 12345


class NoisyRecall(Kind):
    """`probe:noisy_recall:PAIRS` (MAD's noisy in-context recall, arXiv 2403.17844).

    Keys are of the lowest third of the token range, values of the middle one, noise of the rest. A sequence has K keys,
    drawn without replacement, each with a value of its own. It is cut into slots of two tokens: two of noise with
    probability 0.2, else one of the keys, evenly, and its value. A value is scored where its key came before; the last
    slot asks for one of those.
    """

    name: ClassVar = "noisy_recall"

    def least(self) -> tuple[int, int]:
        """A pair twice; as many keys and values as pairs, and a token of noise."""
        return 3, 3 * max(self.size, 1)

    def chance(self, vocab: int) -> float:
        """One of the values' third."""
        return 1.0 / (vocab // 3)

    def sequence(self, rng: np.random.Generator, seq_len: int, vocab: int) -> Asked:
        """As above."""
        third, slots = vocab // 3, (seq_len + 1) // 2
        keys_K = rng.choice(third, self.size, replace=False)
        values_K = third + rng.choice(third, self.size, replace=False)
        pair_S = rng.integers(self.size, size=slots)
        noisy_S = rng.random(slots) < NOISE
        noisy_S[0] = noisy_S[-1] = False
        known = np.unique(pair_S[:-1][~noisy_S[:-1]])
        pair_S[-1] = known[rng.integers(len(known))]
        ids_T1 = rng.integers(2 * third, vocab, size=seq_len + 1)
        start = (seq_len + 1) % 2
        told = start + 2 * np.flatnonzero(~noisy_S)
        ids_T1[told], ids_T1[told + 1] = keys_K[pair_S[~noisy_S]], values_K[pair_S[~noisy_S]]
        return _repeats(ids_T1, told, pair_S[~noisy_S], np.ones(len(told), dtype=np.int64), np.ones_like(told))


class FuzzyRecall(Kind):
    """`probe:fuzzy_recall:PAIRS` (MAD's fuzzy in-context recall, arXiv 2403.17844).

    A key is one to three tokens of the lower half of the token range but for 0, a value one to three of the upper half;
    a sequence has K such pairs. They follow one another, each drawn evenly, as long as there is room, after as many
    tokens 0 as are left. All tokens of a value are scored where its key came before; the last pair is one of those.
    """

    name: ClassVar = "fuzzy_recall"

    def least(self) -> tuple[int, int]:
        """The longest pair twice; twice as many keys of three tokens as pairs."""
        return 4 * LONGEST - 1, 2 * (2 + math.ceil((2 * self.size) ** (1 / LONGEST)))

    def chance(self, vocab: int) -> float:
        """One of the upper half of the tokens."""
        return 1.0 / (vocab - vocab // 2)

    def sequence(self, rng: np.random.Generator, seq_len: int, vocab: int) -> Asked:
        """As above."""
        half = vocab // 2
        pairs: dict[tuple[int, ...], list[int]] = {}
        while len(pairs) < self.size:  # keys of three tokens are many, so that this ends
            width = int(rng.integers(1, LONGEST + 1)) if len(pairs) < half - 1 else LONGEST
            key = tuple(int(token) for token in rng.integers(1, half, size=width))
            pairs.setdefault(key, (half + rng.integers(vocab - half, size=rng.integers(1, LONGEST + 1))).tolist())
        known = list(pairs.items())
        drawn = [int(rng.integers(self.size))]
        used = 2 * _size(known[drawn[0]])
        while used + _size(known[one := int(rng.integers(self.size))]) <= seq_len + 1:
            drawn.append(one)
            used += _size(known[one])
        drawn.append(drawn[0])
        key_n = np.array([len(known[one][0]) for one in drawn])
        value_n = np.array([len(known[one][1]) for one in drawn])
        said = [token for one in drawn for token in (*known[one][0], *known[one][1])]
        ids_T1 = np.zeros(seq_len + 1, dtype=np.int64)
        ids_T1[seq_len + 1 - len(said) :] = said
        starts = seq_len + 1 - len(said) + np.concatenate([[0], np.cumsum(key_n + value_n)[:-1]])
        return _repeats(ids_T1, starts, np.array(drawn), key_n, value_n)


class Memorize(Kind):
    """`probe:memorize:KEYS` (MAD's memorization, arXiv 2403.17844): what weights hold, not what the context does.

    Each of K keys, the lowest tokens, has a value in the upper half of the token range, drawn once and for all. A
    sequence is keys in random order, none twice before all have come, each followed by its value, which is scored;
    values whose key came before in the sequence are not. A token that is left over before them is always the same.
    """

    name: ClassVar = "memorize"
    deep: ClassVar = False

    def least(self) -> tuple[int, int]:
        """A key and its value; as many keys as asked for in the lower half."""
        return 1, 2 * self.size

    def chance(self, vocab: int) -> float:
        """One of the upper half of the tokens."""
        return 1.0 / (vocab - vocab // 2)

    def sequence(self, rng: np.random.Generator, seq_len: int, vocab: int) -> Asked:
        """As above."""
        half, slots = vocab // 2, (seq_len + 1) // 2
        values = half + np.random.default_rng(MAP_SEED).integers(vocab - half, size=self.size)
        rounds = -(-slots // self.size)
        keys_S = np.concatenate([rng.permutation(self.size) for _ in range(rounds)])[:slots]
        ids_T1 = np.empty(seq_len + 1, dtype=np.int64)
        start = (seq_len + 1) % 2
        ids_T1[0] = half - 1  # always the same, where a token is left over
        ids_T1[start::2], ids_T1[start + 1 :: 2] = keys_S, values[keys_S]
        asked = start + 2 * np.arange(min(slots, self.size))
        return Asked(ids_T1, asked, np.ones(len(asked), dtype=np.int64))


def _size(pair: tuple[tuple[int, ...], list[int]]) -> int:
    return len(pair[0]) + len(pair[1])


def _repeats(ids_T1: Ids, start_n: Ids, pair_n: Ids, key_n: Ids, value_n: Ids) -> Asked:
    """Scores the values of pairs that came before. start, which pair, tokens of key and value of each of n in turn."""
    seen: dict[int, int] = {}
    asked: list[int] = []
    distance: list[int] = []
    for start, pair, key, value in zip(*(x.tolist() for x in (start_n, pair_n, key_n, value_n)), strict=True):
        if pair in seen:
            asked += [start + key - 1 + i for i in range(value)]
            distance += [start - seen[pair]] * value
        seen[pair] = start
    return Asked(ids_T1, np.array(asked), np.array(distance))
