"""What a training tells whoever watches it."""

from collections.abc import Callable
from dataclasses import dataclass

from morphogen.growth import log
from morphogen.training.trace import StepInfo


@dataclass(frozen=True)
class Stepped:
    """A step is done, of a model of so many parameters. event: the last line of growth, empty before the first."""

    step: StepInfo
    params: int
    event: str


@dataclass(frozen=True)
class Grew:
    """The model grew."""

    row: log.Row


@dataclass(frozen=True)
class Evaluated:
    """The model was measured on held-out text, in bits per byte."""

    step: int
    bpb: float


@dataclass(frozen=True)
class Noted:
    """Something that the user should know."""

    text: str


News = Stepped | Grew | Evaluated | Noted
Observer = Callable[[News], None]
