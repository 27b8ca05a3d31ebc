"""What cannot be meant in growth rules: one that can never fire or never act, a limit below the start. No torch.

A rule is refused only where that is certain, whatever the training brings.
"""

import math
from collections.abc import Iterator
from itertools import combinations

from morphogen.blueprint import growth as rules
from morphogen.blueprint import triggers
from morphogen.blueprint.growth import GrowthRule
from morphogen.blueprint.mistakes import Loc
from morphogen.blueprint.schema import Blueprint
from morphogen.blueprint.triggers import Trigger
from morphogen.errors import nearest
from morphogen.growth.triggers import samples
from morphogen.knobs import Remark
from morphogen.parts.ffn.moe import MoE
from morphogen.sections.values import changed
from morphogen.variation.possible import (
    Reason,
    acted,
    at_once,
    below,
    deaf,
    helpers,
    idle,
    makes_mixtures,
    never,
    opposite,
    overlap,
)

#: Tokens of a step where they are not known: so many that it may be the first that a trigger waits for.
ANY_LENGTH = 2**62


def growth_remarks(blueprint: Blueprint, seq_len: int, *, begun: bool = False) -> Iterator[Remark]:
    """What is odd about the rules of a blueprint, as far as it tells: rules that can never fire or act, limits below
    what the model has, rules that undo each other, and what has no effect.

    seq_len: at which FLOPs are counted. begun: it may have grown already, so that a limit may be reached.
    """
    for i, rule in enumerate(blueprint.growth):
        loc: Loc = ("model", "growth", i)
        named, low = list(_names(blueprint, rule, loc)), list(below(blueprint, rule, seq_len))
        yield from named
        yield from (_told(loc, reason, refused=not begun) for reason in low)
        yield from _unread(rule, loc)
        yield from (_told(loc, reason) for reason in deaf(blueprint, rule))
        if not low and not any(remark.refused for remark in named):
            yield from _idle(blueprint, i, seq_len, begun=begun)
    yield from _undoing(blueprint)


def _told(loc: Loc, reason: Reason, *, refused: bool = True) -> Remark:
    return Remark((*loc, *reason.at), reason.said, reason.certain and refused)


def _names(blueprint: Blueprint, rule: GrowthRule, loc: Loc) -> Iterator[Remark]:
    present = [block.id for block in blueprint.blocks]
    for j, name in enumerate(rule.blocks()):
        place = (*loc, "do", "blocks", j)
        if name not in present:
            close = nearest(name, present)
            hint = f"; did you mean {close!r}?" if close else ""
            yield Remark(place, f"got {name!r}, but the model has the blocks {', '.join(present)}{hint}", True)
        elif name in rule.blocks()[:j]:
            yield Remark(place, f"names {name} once more, which has no effect")


def _unread(rule: GrowthRule, loc: Loc) -> Iterator[Remark]:
    """Fields that nothing reads as the rest of the rule stands."""
    holders = {("do",): rule.do, ("limits",): rule.limits, **dict(triggers.singles(rule.when, ("when",)))}
    for (*at, name), why in rule.unread().items():
        if name in changed(holders[tuple(at)]):
            yield Remark((*loc, *at, name), f"has no effect: {why}")


def _idle(blueprint: Blueprint, i: int, seq_len: int, *, begun: bool) -> Iterator[Remark]:
    """A rule that can act neither on the model nor on what others make of it, or is past before they do."""
    loc: Loc = ("model", "growth", i)
    reason = idle(blueprint, i, seq_len)
    if reason is not None:
        yield _told(loc, reason, refused=not begun)
        return
    when = blueprint.growth[i].when
    if not isinstance(when, triggers.StepTrigger) or when.at is None or begun:
        return
    if isinstance(acted(blueprint, i, seq_len), Reason):
        comes = min(first_step(blueprint, blueprint.growth[j], ANY_LENGTH) for j in helpers(blueprint, i))
        if comes > when.at:
            said = f"fires once, at step {when.at:,}, when there is nothing for it to act on: no rule acts before step"
            yield Remark((*loc, "when"), f"{said} {comes:,}", True)


# ------------------------------------------------------------------------------------- triggers that come too late


def late(blueprint: Blueprint, steps: int, tokens: int) -> Iterator[Remark]:
    """Triggers that a training of so many steps and tokens in all, ancestors' included, never comes to; none of one
    that takes no step."""
    if steps < 1:
        return
    per_step = max(1, tokens // steps)
    for i, rule in enumerate(blueprint.growth):

        def beyond(trigger: Trigger, rule: GrowthRule = rule) -> str:
            comes = _first(blueprint, rule, trigger, per_step)
            if comes < steps:
                return ""
            waits, most, unit = comes, steps, "steps"
            if isinstance(trigger, triggers.TokensTrigger):
                waits, most, unit = trigger.at or trigger.every or 0, tokens, "tokens"
            end = ", and nothing grows after the last step" if waits <= most else ""
            return f"waits for {waits:,} {unit}, but there are {most:,} in all{end}"

        yield from (_told(("model", "growth", i), reason) for reason in never(rule.when, beyond))


def unheard(blueprint: Blueprint, steps: int, tokens: int) -> list[Remark]:
    """Likewise of one training, which may be made longer: refused only where no rule of the model is ever come to."""
    found = list(late(blueprint, steps, tokens))
    waiting = {remark.loc[:3] for remark in found if remark.refused}
    by_count = all(isinstance(rule.when, triggers.StepTrigger | triggers.TokensTrigger) for rule in blueprint.growth)
    nothing = by_count and len(waiting) == len(blueprint.growth)
    return [remark._replace(refused=nothing) for remark in found]


def unasked(blueprint: Blueprint) -> Iterator[Remark]:
    """Triggers that wait to be asked by hand, as nobody does in a search."""

    def by_hand(trigger: Trigger) -> str:
        return (
            "is asked for by hand, and nobody asks in a search" if isinstance(trigger, triggers.ManualTrigger) else ""
        )

    for i, rule in enumerate(blueprint.growth):
        yield from (_told(("model", "growth", i), reason) for reason in never(rule.when, by_hand))


def first_step(blueprint: Blueprint, rule: GrowthRule, tokens_per_step: int) -> int:
    """The least number of steps after which a rule can fire, in a lineage that begins with this blueprint."""
    return _first(blueprint, rule, rule.when, tokens_per_step)


def _first(blueprint: Blueprint, rule: GrowthRule, trigger: Trigger, tokens_per_step: int) -> int:
    """The least number of steps after which a trigger of a rule can fire."""
    match trigger:
        case triggers.StepTrigger(at=at, every=every):
            return at or every or 0
        case triggers.TokensTrigger(at=at, every=every):
            return math.ceil((at or every or 0) / tokens_per_step)
        case triggers.PlateauTrigger(window=window):
            return window
        case triggers.GradientNormTrigger(window=window) | triggers.PerplexityTrigger(window=window):
            return window
        case triggers.LossSpikeTrigger(window=window):
            return window + 1
        case triggers.UtilizationTrigger(measure=measure, window=window):
            each = samples(measure, window)
            return each * (window // each)
        case triggers.ExpertUsageTrigger():
            return _first_look(blueprint, rule, trigger, tokens_per_step)
        case triggers.AnyTrigger(of=several) | triggers.AllTrigger(of=several) | triggers.MajorityTrigger(of=several):
            return sorted(_first(blueprint, rule, one, tokens_per_step) for one in several)[trigger.needed - 1]
    return 0


def _first_look(
    blueprint: Blueprint, rule: GrowthRule, trigger: triggers.ExpertUsageTrigger, tokens_per_step: int
) -> int:
    """The first of its looks at which a trigger can know enough of an expert.

    Experts that are there from the start are old; those that a rule makes have an age, and the rule a cooldown.
    """
    little = isinstance(rule.do, rules.PruneExperts | rules.MergeExperts | rules.CrossExperts)
    known = max(1, min(trigger.window, trigger.interval), trigger.probation if little else 0)
    if not any(isinstance(block.ffn, MoE) for block in blueprint.blocks):
        makers = [each for each in blueprint.growth if makes_mixtures(blueprint, each)]
        on_counts = [each for each in makers if not any(_on_experts(one) for _, one in triggers.singles(each.when))]
        born = min((first_step(blueprint, each, tokens_per_step) for each in on_counts), default=0)
        known = born + max(known, trigger.min_age, rule.limits.cooldown_steps)
    return math.ceil(known / trigger.interval) * trigger.interval


def _on_experts(trigger: Trigger) -> bool:
    return isinstance(trigger, triggers.ExpertUsageTrigger)


# -------------------------------------------------------------------------------------------- rules against each other


def _undoing(blueprint: Blueprint) -> Iterator[Remark]:
    """Rules of which one undoes at the same tick what the other does."""
    for (_, one), (j, other) in combinations(enumerate(blueprint.growth), 2):
        loc: Loc = ("model", "growth", j)
        if not opposite(one, other):
            if one.model_dump(exclude={"id"}) == other.model_dump(exclude={"id"}):
                yield Remark(loc, f"says what {one.id} says, so that both act at once")
        elif at_once(one, other):
            said = f"{other.do.action} undoes what {one.id} does ({one.do.action}), and both have the same trigger"
            # others may be meant: what is least used goes, and something new comes in its place
            yield Remark((*loc, "when"), said, isinstance(one.do, rules.Widen | rules.Narrow))
        elif said := overlap(blueprint, one, other):
            yield Remark((*loc, "when"), said, True)
