"""A training that grows: its trainer, driven step by step, and the architectures that it has had.

A trial and `morphogen train` both run this. B sequences, T1 tokens of a sequence: one more than there are targets.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from morphogen.blueprint.schema import Blueprint
from morphogen.candidate import GrowthEvent, StopReason
from morphogen.inherit.descent import Moments, spliced_at_once
from morphogen.inherit.plan import plan
from morphogen.inherit.splice import StateDict
from morphogen.network import assemble
from morphogen.training.accounts import Segment
from morphogen.training.anchored import Anchoring
from morphogen.training.saved import Saved
from morphogen.training.schedule import Schedule
from morphogen.training.trace import Progress
from morphogen.training.trainer import Batches, Trainer

OnEvent = Callable[[GrowthEvent], None]
#: A splice of weights.
Carry = Callable[[StateDict], StateDict]


class Behind(NamedTuple):
    """What lies behind the weights that a training begins with: steps and tokens, and what is known of their growth
    (`Growing.memory` of the training that made them)."""

    steps: int = 0
    tokens: int = 0
    memory: str = ""


FROM_NOTHING = Behind()


class Growing:
    """One training, from its first step to its last, in one or several calls of `run`.

    held_BT1: a batch on which growth is measured, which is not trained on. seed: of what growth draws. behind: the
    weights that it begins with. anchoring: what keeps it from forgetting. on_event: told of every growth as it
    happens. segments: the architectures that it has
    had, the first of which it began with. events: what it grew by.
    """

    def __init__(
        self,
        trainer: Trainer,
        *,
        held_BT1: NDArray[np.int64],
        seed: int,
        behind: Behind = FROM_NOTHING,
        anchoring: Anchoring | None = None,
        on_event: OnEvent | None = None,
    ) -> None:
        self.trainer = trainer
        self.held_BT1, self.seed, self.behind, self.on_event = held_BT1, seed, behind, on_event
        self.anchoring = anchoring
        self.segments = [Segment(trainer.model.blueprint, trainer.step)]
        self.events: list[GrowthEvent] = []

    @property
    def blueprint(self) -> Blueprint:
        """The architecture as it is now."""
        return self.segments[-1].blueprint

    def run(self, batches: Batches, until_step: int, progress: Progress | None = None) -> StopReason | None:
        """As `Trainer.run`; between two steps the model may grow."""
        if self.anchoring is not None:
            batches = self.anchoring.batches(batches)
        return self.trainer.run(batches, until_step, progress)

    def state(self) -> Saved:
        """What it needs to go on, but for the trainer's part."""
        segments = [[segment.blueprint.to_json(), segment.first_step] for segment in self.segments]
        plain = {"segments": segments, "events": [event.model_dump(mode="json") for event in self.events]}
        anchors = None if self.anchoring is None else self.anchoring.state()
        parts = {"growth": Saved({}, plain), **({} if anchors is None else {"anchoring": anchors})}
        return Saved.joined(parts)

    def restore(self, saved: Saved) -> None:
        """Goes on from what `state` gave, with the trainer as it was then."""
        plain = saved.part("growth").plain
        self.segments = [Segment(Blueprint.model_validate(blueprint), step) for blueprint, step in plain["segments"]]
        self.events = [GrowthEvent.model_validate(event) for event in plain["events"]]
        if self.anchoring is not None:
            self.anchoring.restore(saved.part("anchoring"))

    def become(
        self,
        blueprint: Blueprint,
        state: StateDict,
        moments: Moments,
        *,
        warmup: int | None = None,
        schedule: Schedule | None = None,
        carry: Carry | None = None,
    ) -> str:
        """Goes on as `blueprint` from the next step on, with weights and moments spliced from the present ones.

        warmup: steps over which what is new warms up on its own; None: as many as a training's own warm-up. schedule:
        as `Trainer.change`. carry: the splice that the weights went through, for others of the same architecture; None:
        as from one architecture to the other. What its anchoring has to say of it.
        """
        if carry is None:
            drawn, seed = plan(blueprint, [self.blueprint]), self.seed + len(self.segments)

            def carry(state: StateDict) -> StateDict:
                return spliced_at_once(drawn, blueprint, [state], ["before"], seed).state

        if self.anchoring is not None:
            self.anchoring.settle()
        model = assemble(blueprint, state).to(self.trainer.device)
        self.segments.append(Segment(blueprint, self.trainer.step))
        self.trainer.change(model, moments, warmup=self.trainer.warmup if warmup is None else warmup, schedule=schedule)
        return "" if self.anchoring is None else self.anchoring.grown(moments, carry)
