"""Which rules of growth act, and when: limits, cooldowns, windows, and all that is remembered between two steps."""

import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from morphogen.blueprint.growth import DropLayer, GrowthRule
from morphogen.blueprint.schema import Blueprint
from morphogen.blueprint.triggers import ExpertUsageTrigger, UtilizationTrigger
from morphogen.candidate import stream
from morphogen.cost import Step, train_memory_bytes
from morphogen.growth.actions import Grown, act
from morphogen.growth.monitor import Ceilings, Kept, Snapshot, Verdict, added_bytes, decide, sort_of
from morphogen.growth.morphogenesis import Experts
from morphogen.growth.recasting import Situation, beyond, choose
from morphogen.growth.triggers import LATER, Fired, Signals, Since, Watched, ahead, fired, parts, reach
from morphogen.growth.utilization import Measure, Uses
from morphogen.inherit.memory import FORMAT, Memory
from morphogen.variation.making import NOBODY, UNKNOWN, Chosen, Used, within

#: Measure and window by which layers are dropped where a rule's trigger measures none: one that knows something early.
USUAL: tuple[Measure, int] = ("gradient", 20)


@dataclass
class Standing:
    """How a rule stands: how often it has acted along the lineage, and since when it waits."""

    times: int
    since: Since


class Decision(NamedTuple):
    """What a rule does now: why, to what, to which experts and how much these are used, and the bytes that it is
    predicted to take."""

    rule: GrowthRule
    fired: Fired
    grown: Grown
    chosen: Chosen
    usage: Mapping[str, tuple[float, ...]]
    bytes: int


class Surroundings(NamedTuple):
    """What a training is, for the rules of growth. seed: of what growth draws. step: what else decides about a step's
    memory; kept: what its optimizer keeps of a parameter."""

    seq_len: int
    tokens_per_step: int
    seed: int
    step: Step
    kept: Kept


class Controller:
    """The rules of one training and what they remember.

    uses: how much each layer is used, by measure and window, where a rule asks. experts: the books of the mixtures.
    growths: changes of architecture along the lineage so far.
    """

    def __init__(self, blueprint: Blueprint, around: Surroundings, now: Since, memory: Memory | None = None) -> None:
        """memory: the `state` of the training that the weights come from: of an ancestor that differs, only how its
        rules stand is taken over. ValueError where it is not of the architecture that it says."""
        self.around = around
        self.rules: tuple[GrowthRule, ...] = blueprint.growth
        self.standings = {rule.id: Standing(0, now) for rule in self.rules}
        self.last: Since | None = None
        self.growths = 0
        longest = max((reach(rule.when) for rule in self.rules), default=0)
        self.losses: deque[float] = deque(maxlen=longest)
        self.grad_norms: deque[float] = deque(maxlen=longest)
        self.uses = {key: Uses(*key) for key in sorted(set(_measured(self.rules)))}
        self._used_now: dict[tuple[Measure, int], Used] = {}
        self.experts = Experts.of(blueprint, self.rules, now.steps)
        if memory is not None:
            self._remember(memory, now)
            if (memory.of, memory.tokens_per_step) == (_identity(blueprint), around.tokens_per_step):
                self._go_on(blueprint, memory)

    # ------------------------------------------------------------------------------------------------ observing

    def observe(self, losses: Sequence[float], grad_norms: Sequence[float]) -> None:
        """Steps that were made."""
        self.losses.extend(losses)
        self.grad_norms.extend(grad_norms)

    def ahead(self, now: Since) -> int:
        """In how many steps it has to look at the rules again; `LATER` where there is nothing to look at any more."""
        waits = []
        for rule in self._active():
            waits.append(ahead(rule.when, now, self.around.tokens_per_step))
            if (left := self._cools(rule, now.steps)) > 0:
                waits.append(left)
        return min(waits, default=LATER)

    def _active(self) -> Iterator[GrowthRule]:
        """The rules that may act yet."""
        for rule in self.rules:
            most = rule.limits.max_times
            if most is None or self.standings[rule.id].times < most:
                yield rule

    def _cools(self, rule: GrowthRule, steps: int) -> int:
        """Steps until a rule may act again."""
        return 0 if self.last is None else max(0, self.last.steps + rule.limits.cooldown_steps - steps)

    # ------------------------------------------------------------------------------------------------- deciding

    def decisions(
        self,
        now: Since,
        situation: Callable[[], Situation],
        snapshot: Callable[[], Snapshot],
        asked: frozenset[str] = frozenset(),
    ) -> Iterator[Decision]:
        """What the rules do now, in their order. Whoever asks has carried one decision out, and said so (`grew`), when
        he asks for the next one: rules that have fired act on what those before them have made.

        situation: as it is now. A rule whose action would pass a limit, or has nothing to do, waits for the next time;
        one that another has taken away acts no more.
        """
        self._used_now = {key: uses.so_far for key, uses in self.uses.items()}
        signals = Signals(
            now.steps,
            now.tokens,
            tuple(self.losses),
            tuple(self.grad_norms),
            lambda trigger: self.uses[trigger.measure, trigger.window].values,
            snapshot,
            asked,
        )
        ready = [
            (rule, found)
            for rule in tuple(self._active())
            if not self._cools(rule, now.steps)
            and (found := fired(rule.when, signals, self._watched(rule, situation()))) is not None
        ]
        for waiting, found in ready:
            rule = next((one for one in self.rules if one.id == waiting.id), None)
            if rule is None or self._cools(rule, now.steps):
                continue
            decision = self._decided(rule, found, situation())
            if decision is None:
                self.standings[rule.id].since = now
            else:
                yield decision

    def _watched(self, rule: GrowthRule, on: Situation) -> Watched:
        def room(snapshot: Snapshot, ceilings: Ceilings) -> Verdict:
            grown = self._act(rule, on, choose(rule.do, rule.when, on))
            if grown is None:
                return Verdict.WAIT
            more = max(self._added(on.blueprint, grown.blueprint), self._estimated(on.blueprint, grown.blueprint))
            return decide(snapshot, ceilings, {sort_of(rule.do): max(0, more)})

        def experts(trigger: ExpertUsageTrigger) -> Fired | None:
            chosen = beyond(trigger, rule.do, rule.when, on)
            if not chosen:
                return None
            usage = self._usage(chosen, on.experts, trigger.window)
            named = ", ".join(
                f"{block}: "
                + ", ".join(f"{e} ({used:.3f})" for e, used in zip(chosen[block], usage[block], strict=True))
                for block in chosen
            )
            sizes = [len(on.experts.usage(block)) for block in chosen]  # of several the threshold that all have passed
            prunes = sort_of(rule.do) is Verdict.PRUNE
            threshold = trigger.prune_at(min(sizes)) if prunes else trigger.split_at(max(sizes))
            return Fired(f"usage of experts of {named}", chosen, usage, threshold)

        return Watched(rule.id, self.standings[rule.id].since, room, experts)

    @staticmethod
    def _usage(chosen: Chosen, experts: Experts, window: int | None) -> dict[str, tuple[float, ...]]:
        usage = {block: experts.usage(block, window) for block in chosen}
        return {block: tuple(usage[block][e] for e in chosen[block]) for block in chosen}

    def _decided(self, rule: GrowthRule, found: Fired, on: Situation) -> Decision | None:
        """What a rule that has fired does; None where there is nothing to do, or a limit forbids it."""
        chosen = choose(rule.do, rule.when, on)
        grown = self._act(rule, on, chosen)
        if grown is None or within(rule.limits, on.blueprint, grown.blueprint, self.around.seq_len):
            return None
        usage = dict(found.usage) or self._usage(chosen or NOBODY, on.experts, None)
        more = self._added(on.blueprint, grown.blueprint)
        return Decision(rule, found, grown, chosen or NOBODY, usage, more)

    def _act(self, rule: GrowthRule, on: Situation, chosen: Chosen | None) -> Grown | None:
        if chosen is not None and not chosen:
            return None  # an action on experts, of which none is to be acted on
        rng = stream(self.around.seed, self.growths, "growth")
        return act(on.blueprint, rule.do, rng, chosen or NOBODY, self._used(rule, on.blueprint))

    def _used(self, rule: GrowthRule, blueprint: Blueprint) -> Used:
        """How much each layer is used, for a rule that drops some; wholly where it has come to be just now."""
        key = next(iter(_measured([rule])), None)
        used = UNKNOWN if key is None else self._used_now[key]
        return {block.id: used.get(block.id, 1.0) for block in blueprint.blocks} if used else UNKNOWN

    def _added(self, before: Blueprint, after: Blueprint) -> int:
        """Bytes of weights, gradients and moments that an action adds."""
        return added_bytes(before, after, self.around.kept)

    def _estimated(self, before: Blueprint, after: Blueprint) -> int:
        """The same of all that a training step holds at its peak, activations among it."""
        peaks = [train_memory_bytes(side.nominal, self.around.seq_len, self.around.step) for side in (before, after)]
        return int(peaks[1] - peaks[0])

    # ----------------------------------------------------------------------------------------------- remembering

    def grew(self, decision: Decision, before: Blueprint, after: Blueprint, now: Since, *, kept: bool = True) -> None:
        """A decision has been carried out. kept: it was not taken back."""
        standing = self.standings[decision.rule.id]
        standing.times, standing.since = standing.times + 1, now
        self.last, self.growths = now, self.growths + 1
        if decision.chosen:
            self.experts.touched(list(decision.chosen), now.steps)
        if not kept:
            return
        self.experts.follow(before, after, now.steps, decision.grown.takes)
        self.losses.clear()
        self.grad_norms.clear()
        for uses in self.uses.values():
            uses.forget()
        self.rules = after.growth
        self.standings = {rule.id: self.standings.get(rule.id, Standing(0, now)) for rule in self.rules}

    def state(self, blueprint: Blueprint) -> dict[str, Any]:
        """All that it remembers, as strict JSON, of the architecture as it is now."""
        return {
            "format": FORMAT,
            "of": _identity(blueprint),
            "tokens_per_step": self.around.tokens_per_step,
            "rules": {
                rule.id: [one.times, one.since.steps, one.since.tokens, rule.when.model_dump(mode="json")]
                for rule in self.rules
                for one in [self.standings[rule.id]]
            },
            "last": None if self.last is None else list(self.last),
            "growths": self.growths,
            "losses": list(self.losses),
            "grad_norms": list(self.grad_norms),
            "uses": [uses.state() for uses in self.uses.values()],
            "experts": self.experts.state(),
        }

    def _remember(self, memory: Memory, now: Since) -> None:
        """How the rules stand that an ancestor had too; what was passed before a trigger was as it is, is past. Its
        steps may have been of another length: they are counted back from now, in steps of this training."""

        def then(steps: int, tokens: int) -> Since:
            return Since(now.steps - (now.tokens - tokens) // self.around.tokens_per_step, tokens)

        for rule in self.rules:
            if rule.id in memory.rules:
                times, steps, tokens, when = memory.rules[rule.id]
                same = when == rule.when.model_dump(mode="json")
                since = then(steps, tokens) if same else self.standings[rule.id].since
                self.standings[rule.id] = Standing(times, since)
        self.last = None if memory.last is None else then(*memory.last)
        self.growths = memory.growths

    def _go_on(self, blueprint: Blueprint, memory: Memory) -> None:
        """The rest, of the very same architecture."""
        if len(memory.uses) != len(self.uses):
            raise ValueError("it is of other measures of layers than the rules ask for")
        self.observe(memory.losses, memory.grad_norms)
        for (key, uses), samples in zip(list(self.uses.items()), memory.uses, strict=True):
            self.uses[key] = Uses.from_state(uses.measure, uses.window, samples)
        self.experts = Experts.from_state(blueprint, self.rules, memory.experts)


def _measured(rules: Sequence[GrowthRule]) -> Iterator[tuple[Measure, int]]:
    """What of layers has to be measured: measure and window."""
    for rule in rules:
        asked = [(one.measure, one.window) for one in parts(rule.when) if isinstance(one, UtilizationTrigger)]
        yield from asked
        if not asked and isinstance(rule.do, DropLayer):
            yield USUAL


def _identity(blueprint: Blueprint) -> str:
    """Of an architecture with the ids of its genes."""
    return hashlib.sha256(json.dumps(blueprint.to_json(), sort_keys=True).encode()).hexdigest()
