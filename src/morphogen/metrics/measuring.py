"""What a metric is: a function of a trained model and its data that gives figures, registered by being defined.

A new metric is one file of this package (or of another one, named as an entry point of the group `morphogen.figures`):

    @measures(Figure("dead_units", unit="share", better="min", sort="metric", summary="Hidden units that never fire."))
    def dead_units(subject: Subject) -> dict[str, float]:
        ...

Nothing here or at the top of a metric's file imports torch: what figures there are is asked where nothing is measured.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from morphogen import figures
from morphogen.errors import InputError, unknown
from morphogen.figures import Figure

if TYPE_CHECKING:
    import torch

    from morphogen.data.mixture import Mixture
    from morphogen.data.prepare import PreparedData
    from morphogen.metrics.perplexity import Score
    from morphogen.metrics.probing import Answers
    from morphogen.network import LanguageModel


@dataclass(frozen=True)
class Subject:
    """A trained model and what it is measured on.

    eval_tokens: held-out tokens of every shard, at most. losses, grad_norms: of every training step on the training
    shards, healing left out. recorded: what the model's branches reported of themselves, step by step, by name.
    answered: what was asked of the model by probes already.
    """

    model: "LanguageModel"
    device: "torch.device"
    mixture: "Mixture"
    eval_tokens: int
    bf16: bool
    losses: Sequence[float]
    grad_norms: Sequence[float]
    recorded: Mapping[str, Sequence[float]]
    answered: "dict[str, dict[int, Answers]]" = field(default_factory=dict)

    @property
    def prepared(self) -> "PreparedData":
        """The text, and how batches are made of it."""
        return self.mixture.prepared

    def score(self) -> "Mapping[str, list[Score]]":
        """The held-out loss of the model as it is now: shard -> a score per batch."""
        from morphogen.metrics.perplexity import held_out

        return held_out(self.model, self.mixture, self.eval_tokens, bf16=self.bf16)

    @cached_property
    def scores(self) -> "Mapping[str, list[Score]]":
        """`score`, once for all metrics that leave the model as it is."""
        return self.score()


Measure = Callable[[Subject], Mapping[str, float]]

_MEASURES: dict[str, Measure] = {}


def measures(*made: Figure) -> Callable[[Measure], Measure]:
    """Declares the figures that a function measures, and has it called for every candidate that was trained.

    Of these figures it returns those that the subject has. It leaves the model as it found it.
    """

    def join(measure: Measure) -> Measure:
        figures.declare(*made)
        _MEASURES[f"{measure.__module__}.{measure.__qualname__}"] = measure
        return measure

    return join


def measured(subject: Subject) -> tuple[dict[str, float], dict[str, float]]:
    """Every figure of the subject: those that repeat, and those of the machine's clock.

    A value that is not a finite number is left out. InputError for a figure that nobody declared, DivergedError where
    the model's loss is not finite.
    """
    declared = figures.known()
    found: dict[str, float] = {}
    for name in sorted(_MEASURES):
        found |= _MEASURES[name](subject)
    repeated: dict[str, float] = {}
    timed: dict[str, float] = {}
    for name, value in found.items():
        figure = figures.find(name)
        if figure is None:
            raise InputError(unknown("a metric gave a figure that nobody declared", name, declared))
        if math.isfinite(value):
            (timed if figure.sort == "timed" else repeated)[name] = value
    return repeated, timed
