"""What a probe is: sequences of tokens, of which some are scored.

A kind of probe is one class in one file of this package, entered in `sections.built_in.PROBES`; an installed package
adds its own as an entry point of the group `morphogen.probes`. Everything is scored causally: a token's prediction is
read where the model has seen the tokens before it and no other.

Shapes: T1 tokens of a sequence (T is T1 − 1 targets), K scored tokens, V vocabulary.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Final, NamedTuple

import numpy as np

from morphogen import plugins
from morphogen.data.spelling import Ids
from morphogen.errors import InputError
from morphogen.sections.built_in import PROBES

#: A sequence is cut into parts by where in it stands what has to be known: the percent at which each begins.
DEPTHS: Final = (0, 20, 40, 60, 80)


class Asked(NamedTuple):
    """One sequence: its tokens (T1,); where the model is when it has to give a scored token, the next one (K,); and how
    far from there, in tokens, what it has to know stands (K,)."""

    ids: Ids
    asked: Ids
    distance: Ids


class Kind(ABC):
    """One kind of probe, of a size that is its own to define."""

    #: As in `probe:NAME`.
    name: ClassVar[str]
    #: Whether distances are places in the sequence, so that accuracy by depth says something.
    deep: ClassVar[bool] = True
    #: A figure that is exp of its loss; empty where there is none.
    perplexity: ClassVar[str] = ""

    def __init__(self, size: int) -> None:
        self.size = size

    @abstractmethod
    def least(self) -> tuple[int, int]:
        """The fewest targets of a sequence and the fewest tokens of a vocabulary that it can do with."""

    @abstractmethod
    def chance(self, vocab: int) -> float:
        """Accuracy of a model that knows only which tokens may be answers, each as likely."""

    @abstractmethod
    def sequence(self, rng: np.random.Generator, seq_len: int, vocab: int) -> Asked:
        """A sequence of `seq_len` targets; a pure function of the generator's state."""


@dataclass(frozen=True)
class Probe:
    """`probe:<name>:<size>` made ready. weight: its share of training sequences, relative to the shards'; 0 is none.

    label: what its figures are called after. lengths: of the sequences that are asked; none given: `seq_len`, that of
    those that are trained on.
    """

    size: int
    weight: float
    seq_len: int
    vocab_size: int
    name: str = "mqar"
    label: str = "mqar"
    lengths: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """InputError when sequences are too short or the tokens too few."""
        length, tokens = self.kind.least()
        where = f"data: probe:{self.name}:{self.size}"
        for given in (self.seq_len, *self.lengths):
            if given < length:
                raise InputError(f"{where} needs a seq_len of at least {length}, got {given}")
        if self.vocab_size < tokens:
            raise InputError(f"{where} needs at least {tokens} tokens in the vocabulary, got {self.vocab_size}")

    @cached_property
    def kind(self) -> Kind:
        """What makes its sequences."""
        return kind_of(self.name)(self.size)

    @property
    def chance(self) -> float:
        """Accuracy without the ability."""
        return self.kind.chance(self.vocab_size)

    @property
    def asked_at(self) -> tuple[int, ...]:
        """The lengths at which it is measured."""
        return self.lengths or (self.seq_len,)

    def sequence(self, *entropy: int, length: int | None = None) -> Asked:
        """The sequence of one random stream; a pure function of `entropy`. length: other than that of training."""
        rng = np.random.default_rng(np.random.SeedSequence(entropy))
        return self.kind.sequence(rng, length or self.seq_len, self.vocab_size)


def kind_of(name: str) -> type[Kind]:
    """The class of a kind, ours or an installed package's. InputError where there is none, or it is something else."""
    found = PROBES[name].kind() if name in PROBES else plugins.find(plugins.PROBES, name)
    if not (isinstance(found, type) and issubclass(found, Kind)):
        raise InputError(f"probe:{name}: got {found!r}, expected a class that inherits from morphogen's probes' Kind")
    return found


def scored_only(asked: Asked) -> Ids:
    """ids_T1 as training reads them: −1 − id where the token is not scored (see `data.mixture`)."""
    ids_T1 = -1 - asked.ids
    ids_T1[asked.asked + 1] = asked.ids[asked.asked + 1]
    return ids_T1


def others(rng: np.random.Generator, vocab: int, taken: Ids, count: int) -> Ids:
    """ids_N: tokens, evenly, that are none of `taken`."""
    ids_N = rng.integers(vocab - len(taken), size=count)
    shifts = np.sort(taken) - np.arange(len(taken))  # how many free tokens lie below each taken one
    found: Ids = ids_N + np.searchsorted(shifts, ids_N, side="right")
    return found
