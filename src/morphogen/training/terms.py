"""The terms of one long training: what it is, how far it is to go, and how it ended. `long_run` keeps them."""

from dataclasses import dataclass
from typing import NamedTuple

from morphogen.blueprint.schema import Blueprint
from morphogen.candidate import DonorLayer, StopReason, Tokens, stream
from morphogen.experiment import Experiment


@dataclass(frozen=True)
class Wanted:
    """How far a training goes, and what it does on its way.

    Attributes:
        steps: Of the optimizer, in all.
        checkpoint_every: Steps between two checkpoints.
        keep: Checkpoints that stay; 0: all.
        eval_every: Steps between two measurements on held-out text; 0: at the end alone.
        grow: Rules of growth with the trigger `manual` that act before the next step.
        early_stop: Whether the guards of `train` end it as they end a candidate's training.
        tensorboard: Whether TensorBoard's events are written.
    """

    steps: int
    checkpoint_every: int
    keep: int
    eval_every: int
    grow: tuple[str, ...] = ()
    early_stop: bool = False
    tensorboard: bool = False


class Origin(NamedTuple):
    """What a training is, whether it begins or goes on. id: its own. blueprint: that it began with. begun: tokens
    behind the weights that it began with. tokenizer_json: its tokenizer, where the name does not tell it. donors:
    layers of other models as these weights have them."""

    id: str
    experiment: Experiment
    blueprint: Blueprint
    begun: Tokens
    tokenizer_json: str = ""
    memory: str = ""
    donors: tuple[DonorLayer, ...] = ()


class Outcome(NamedTuple):
    """How a training ended. stop: why a guard ended it. interrupted: whether it was asked to end before its time."""

    step: int
    tokens: int
    bpb: float | None
    blueprint: Blueprint
    stop: StopReason | None
    interrupted: bool
    events: int


def drawn_seed(experiment: Experiment, purpose: str) -> int:
    """Of what a training draws for one purpose."""
    seed = experiment.train.seed
    return int(stream(seed, 0, f"{purpose}/{seed}").integers(2**31))
