"""A training that grows: its trainer, driven step by step, and the architectures that it has had.

A trial and `morphogen train` both run this. B sequences, T tokens of a sequence (T1 is T + 1), V vocabulary.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from morphogen.blueprint.schema import Blueprint
from morphogen.blueprint.tensors import parameter_count
from morphogen.candidate import GrowthEvent, Size, StopReason
from morphogen.cost import Step, total
from morphogen.errors import InputError
from morphogen.growth.blending import loads
from morphogen.growth.controller import Controller, Decision, Surroundings
from morphogen.growth.monitor import Machine
from morphogen.growth.morphogenesis import experts_of
from morphogen.growth.recasting import Situation, allowed, recast
from morphogen.growth.surgery import Operated, max_delta, operate
from morphogen.growth.triggers import Since
from morphogen.growth.utilization import Uses, Watch, removal
from morphogen.inherit.descent import Moments, spliced_at_once
from morphogen.inherit.memory import Memory, memory_in
from morphogen.inherit.plan import plan
from morphogen.inherit.splice import StateDict
from morphogen.network import LanguageModel, assemble
from morphogen.parts.contract.branch import Record
from morphogen.training.accounts import Segment, equal_step
from morphogen.training.anchored import Anchoring
from morphogen.training.losses import sequence_losses
from morphogen.training.optimizers import moments_kept
from morphogen.training.saved import Saved
from morphogen.training.trace import Progress
from morphogen.training.trainer import Batches, Trainer

#: Share of a window's steps that measuring by removal may take.
REMOVAL_SHARE = 0.015
#: A step that no training comes to.
NEVER = 2**62
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
    weights that it begins with. own_steps: of this training before the trainer's first. budget: what stays the same
    when the model grows: the tokens that it is trained on, or the FLOPs that they would have taken (`ending`); of
    tokens never more than most_steps. anchoring: what keeps it from forgetting. on_event: told of every growth as it
    happens. segments: the architectures that it has had, the first of which it began with. events: what it grew by.
    """

    def __init__(
        self,
        trainer: Trainer,
        *,
        held_BT1: NDArray[np.int64],
        seed: int,
        behind: Behind = FROM_NOTHING,
        own_steps: int = 0,
        budget: Literal["tokens", "flops"] = "tokens",
        most_steps: int | None = None,
        anchoring: Anchoring | None = None,
        on_event: OnEvent | None = None,
    ) -> None:
        self.trainer, self.behind, self.own_steps, self.on_event = trainer, behind, own_steps, on_event
        self.anchoring = anchoring
        self.budget, self.most_steps = budget, most_steps
        self.held_BT1 = torch.from_numpy(held_BT1).to(trainer.device)
        self.seq_len = held_BT1.shape[1] - 1
        self._planned_steps = trainer.total_steps
        self.segments = [Segment(trainer.model.blueprint, trainer.step)]
        self.events: list[GrowthEvent] = []
        self._begun = trainer.step
        self._asked: frozenset[str] = frozenset()
        self._next_look = trainer.step
        self._machine = Machine(trainer.device)
        around = Surroundings(self.seq_len, trainer.tokens_per_step, seed, self._step(), moments_kept(trainer.train))
        self._around = around
        self.controller = self._controller(behind.memory)
        if self.controller.rules:
            trainer.on_record = self._on_record

    def _controller(self, memory: str) -> Controller:
        """InputError where the memory is none, or of another architecture than it says."""
        known = memory_in(memory, "the weights that it begins with")
        try:
            return Controller(self.blueprint, self._around, self._now(), known)
        except ValueError as error:
            raise InputError(f"the weights that it begins with: what is remembered of growth: {error}") from None

    def _step(self) -> Step:
        train, sequences = self.trainer.train, self.trainer.tokens_per_step // self.seq_len
        return Step.of(train, sequences // train.accumulate)

    @property
    def blueprint(self) -> Blueprint:
        """The architecture as it is now."""
        return self.segments[-1].blueprint

    def _now(self) -> Since:
        """What lies behind the weights."""
        steps = self.trainer.step - self._begun
        return Since(self.behind.steps + steps, self.behind.tokens + steps * self.trainer.tokens_per_step)

    # -------------------------------------------------------------------------------------------------- training

    def run(
        self, batches: Batches, until_step: int, progress: Progress | None = None, pause_at: int = NEVER
    ) -> StopReason | None:
        """As `Trainer.run`; between two steps, the last one apart, the model may grow. until_step: as planned, see
        `ending`. pause_at: a step to come back at before, which is as if it had not paused when it goes on."""
        if self.anchoring is not None:
            batches = self.anchoring.batches(batches)
        if not self.controller.rules:
            return self.trainer.run(batches, min(pause_at, self.ending(until_step)), progress)
        while self.trainer.step < min(pause_at, self.ending(until_step)):
            if self.trainer.step >= self._next_look:
                self._look()
            stop = self._ticked(batches, min(pause_at, self.ending(until_step)), progress)
            if stop is not None:
                return stop
        return None

    def ending(self, planned_step: int) -> int:
        """The step that one becomes which was planned for the first architecture: with `budget: flops` that by which
        as many FLOPs are spent as these steps would have taken of it."""
        return self._ending(planned_step, self.segments)

    def totals(self) -> list[int]:
        """Steps that the training was to have in all, while it had each of its architectures."""
        return [self._ending(self._planned_steps, self.segments[: k + 1]) for k in range(len(self.segments))]

    def _ending(self, planned_step: int, segments: Sequence[Segment]) -> int:
        if self.budget == "tokens" or len(segments) == 1:
            return planned_step
        step = equal_step(segments, self.seq_len, planned_step)
        return step if self.most_steps is None else min(step, self.most_steps)

    def _ticked(self, batches: Batches, end: int, progress: Progress | None) -> StopReason | None:
        """Trains to where the rules are to be looked at again, or a step is to be measured, and through that."""
        trainer, done = self.trainer, len(self.trainer.trace.losses)
        until = min(end, self._next_look)
        first = next((step for step in range(trainer.step, until) if self._due(step)), until)
        stop = trainer.run(batches, first, progress) if first > trainer.step else None
        if stop is None and first < until:
            stop = self._measured(batches, progress)
        self.controller.observe(trainer.trace.losses[done:], trainer.trace.grad_norms[done:])
        return stop

    def _due(self, step: int) -> list[Uses]:
        """What of layers is to be measured in a step."""
        behind = self.behind.steps + step - self._begun
        return [uses for uses in self.controller.uses.values() if uses.due(behind)]

    def _measured(self, batches: Batches, progress: Progress | None) -> StopReason | None:
        """One step, in which it is measured how much each layer is used."""
        trainer, due = self.trainer, self._due(self.trainer.step)
        watches = [(uses, Watch(trainer.model, uses.measure)) for uses in due if uses.measure != "removal"]
        with ExitStack() as stack:
            for _, watch in watches:
                stack.enter_context(watch.open())
            stop = trainer.run(batches, trainer.step + 1, progress)
        for uses, watch in watches:
            uses.add(watch.scores())
        for uses in due:
            if uses.measure == "removal":
                self.measure(uses)
        return stop

    def _on_record(self, record: Record) -> None:
        """A step's loads of the experts. Of batches that add up to one step the record has the sum."""
        assigned = loads(self.trainer.model, record)
        if assigned:
            self.controller.experts.observe(assigned, self._now().steps + 1)

    # --------------------------------------------------------------------------------------------------- growing

    def ask(self, rule: str) -> None:
        """Has a rule by hand act before the next step, where its trigger is `manual`."""
        self._asked |= {rule}
        self._next_look = self.trainer.step

    def _look(self) -> None:
        """Lets the rules act that fire now. When it looks again depends on no more than what lies behind the weights
        and when they last grew, so that it is the same in however many calls the steps are made."""
        snapshot = None

        def seen() -> Any:
            nonlocal snapshot
            snapshot = self._machine.snapshot() if snapshot is None else snapshot
            return snapshot

        for decision in self.controller.decisions(self._now(), self._situation, seen, self._asked):
            self._grow(decision)
        self._asked = frozenset()
        self._next_look = self.trainer.step + self.controller.ahead(self._now())

    def _situation(self) -> Situation:
        return Situation(self.trainer.model, self.controller.experts, self._now().steps, self.held_BT1[:, :-1])

    def _grow(self, decision: Decision) -> None:
        """Carries a decision out, measures what it did, and puts it on record."""
        before, after, now = self.blueprint, decision.grown.blueprint, self._now()
        operation = self._operation(decision)
        operated = operation(self._situation().state(), self.trainer.updater.carried())
        event = self._event(decision, now, before, operated)
        if not event.taken_back:
            action = decision.rule.do
            said = self.become(
                after,
                operated.state,
                operated.moments,
                warmup=action.warmup,
                multiplier=action.new_param_lr_multiplier,
                carry=lambda state: operation(state, {}).state,
            )
            event = event.replace(reason="; ".join(filter(None, (event.reason, said))))
        self.controller.grew(decision, before, after, now, kept=not event.taken_back)
        self.events.append(event)
        if self.on_event is not None:
            self.on_event(event)

    def _operation(self, decision: Decision) -> Callable[[StateDict, Mapping[str, StateDict]], Operated]:
        """What an action does to weights of the present architecture, and to what an optimizer holds of them."""
        situation, before = self._situation(), self.blueprint
        seed = int(np.random.SeedSequence((self._around.seed, self.controller.growths)).generate_state(1)[0])

        def operation(state: StateDict, moments: Mapping[str, StateDict]) -> Operated:
            made = recast(decision.rule.do, decision.chosen, situation, {"": state, **moments})
            return operate(decision.grown, before, made.pop(""), made, seed)

        return operation

    def become(
        self,
        blueprint: Blueprint,
        state: StateDict,
        moments: Moments,
        *,
        warmup: int | None = None,
        multiplier: float = 1.0,
        carry: Carry | None = None,
    ) -> str:
        """Goes on as `blueprint` from the next step on, with weights and moments spliced from the present ones.

        warmup, multiplier: as `Trainer.change`. carry: the splice that the weights went through, for others of the same
        architecture; None: as from one architecture to the other. What its anchoring has to say of it.
        """
        trainer = self.trainer
        if carry is None:
            drawn, seed = plan(blueprint, [self.blueprint]), self._around.seed + len(self.segments)

            def carry(state: StateDict) -> StateDict:
                return spliced_at_once(drawn, blueprint, [state], ["before"], seed).state

        if self.anchoring is not None:
            self.anchoring.settle()
        self.segments.append(Segment(blueprint, trainer.step))
        trainer.total_steps = self.ending(self._planned_steps)
        trainer.change(
            assemble(blueprint, state).to(trainer.device),
            moments,
            warmup=warmup,
            multiplier=multiplier,
            schedule=trainer.schedule.until(trainer.total_steps),
        )
        trainer.guards.new_text()
        return "" if self.anchoring is None else self.anchoring.grown(moments, carry)

    def _event(self, decision: Decision, now: Since, before: Blueprint, operated: Operated) -> GrowthEvent:
        """What is to be said of a decision, measured on the held batch."""
        rule, (after, edit, *_) = decision.rule, decision.grown
        model, grown = self.trainer.model, assemble(after, operated.state).to(self.trainer.device)
        delta, most = max_delta(model, grown, self.held_BT1[:, :-1])
        loss, loss_after = self._held_loss(model), self._held_loss(grown)
        blocks = _touched(before, after) or tuple(decision.chosen)
        return GrowthEvent(
            steps=now.steps,
            tokens=now.tokens,
            own_steps=self.own_steps + self.trainer.step,
            rule=rule.id,
            trigger=rule.when.trigger,
            action=rule.do.action,
            reason=decision.fired.reason,
            blocks=blocks,
            experts={block: experts for block, experts in decision.chosen.items() if block in blocks},
            usage={block: usage for block, usage in decision.usage.items() if block in blocks},
            threshold=decision.fired.threshold,
            before=self._size(before),
            after=self._size(after),
            loss=loss,
            loss_after=loss_after,
            max_delta=delta,
            max_logit=most,
            exact=operated.exact and edit.preserves,
            bytes=decision.bytes,
            taken_back=loss_after - loss > allowed(rule.do),
            edit=edit,
        )

    def _size(self, blueprint: Blueprint) -> Size:
        return Size(
            params=parameter_count(blueprint),
            layers=len(blueprint.blocks),
            dim=blueprint.emb.dim,
            flops_per_token=total(blueprint, self.seq_len).flops,
            experts=experts_of(blueprint),
        )

    def measure(self, uses: Uses) -> None:
        """Adds a sample of what each layer's removal does."""
        rows = self._affordable(uses.window)
        uses.add(removal(self.trainer.model, lambda model: self._held_loss(model, rows)))

    def _affordable(self, window: int) -> int:
        """Rows of the held batch on which removal is measured once in so many steps: as many as take `REMOVAL_SHARE` of
        them, with a step taken for three forward passes of its sequences; at least one."""
        step = 3 * self.trainer.tokens_per_step // self.seq_len
        passes = len(self.blueprint.blocks) + 1
        return max(1, min(len(self.held_BT1), int(REMOVAL_SHARE * window * step / passes)))

    @torch.no_grad()
    def _held_loss(self, model: LanguageModel, rows: int | None = None) -> float:
        """Nats per token of the held batch, or of its first rows; dropout off."""
        ids_BT1 = self.held_BT1[:rows]
        mode = model.training
        model.eval()
        try:
            logits_BTV = model(ids_BT1[:, :-1])
        finally:
            model.train(mode)
        return float(sequence_losses(logits_BTV, ids_BT1[:, 1:]).mean())

    # ---------------------------------------------------------------------------------------------------- saving

    def memory(self) -> str:
        """What is known of the growth of the weights, for the training that goes on from them; empty where there are no
        rules."""
        if not self.controller.rules:
            return ""
        return json.dumps(self.controller.state(self.blueprint), sort_keys=True)

    def state(self) -> Saved:
        """All that it needs to go on from here bit for bit, but for what is the trainer's own."""
        segments = [[segment.blueprint.to_json(), segment.first_step] for segment in self.segments]
        plain = {
            "segments": segments,
            "events": [event.model_dump(mode="json") for event in self.events],
            "next_look": self._next_look,
            "controller": self.controller.state(self.blueprint),
        }
        return Saved.joined({"growing": Saved({}, plain)} | self._anchored())

    def restore(self, saved: Saved) -> None:
        """Goes on from what `state` gave, with a trainer that already does, of the model that there was then."""
        plain = saved.part("growing").plain
        self.segments = [Segment(Blueprint.model_validate(blueprint), step) for blueprint, step in plain["segments"]]
        self._begun = self.segments[0].first_step
        self.trainer.total_steps = self.ending(self._planned_steps)
        self.events = [GrowthEvent.model_validate(event) for event in plain["events"]]
        self._next_look = plain["next_look"]
        self.controller = Controller(
            self.blueprint, self._around, self._now(), Memory.model_validate(plain["controller"])
        )
        if self.controller.rules:
            self.trainer.on_record = self._on_record
        if self.anchoring is not None:
            self.anchoring.restore(saved.part("anchoring"))

    def _anchored(self) -> dict[str, Saved]:
        return {} if self.anchoring is None else {"anchoring": self.anchoring.state()}


def _touched(before: Blueprint, after: Blueprint) -> tuple[str, ...]:
    """Ids of the blocks that an action changed, made or took away."""
    old, new = ({block.id: block for block in side.blocks} for side in (before, after))
    return tuple(id for id in {**new, **old} if old.get(id) != new.get(id))
