"""How large a model may grow: its rules carried out as often as they can be in so many steps. No torch.

A bound rather than a forecast: whatever may fire, fires as early as it can. What shrinks a model is left out.
"""

from typing import NamedTuple

from morphogen.blueprint import triggers
from morphogen.blueprint.growth import GrowthRule
from morphogen.blueprint.schema import Blueprint
from morphogen.blueprint.tensors import parameter_count
from morphogen.growth.rules import first_step
from morphogen.variation.possible import acted

#: Growth is followed so far, or to the first model beyond; that is told as one that no rule holds back.
MOST_GROWTHS, MOST_PARAMS, MOST_BLOCKS = 64, 10**12, 2048
#: Triggers that wait as long again after each growth: for a count, or for a window of steps, which is forgotten then.
AGAIN = (
    triggers.StepTrigger
    | triggers.TokensTrigger
    | triggers.PlateauTrigger
    | triggers.LossSpikeTrigger
    | triggers.GradientNormTrigger
    | triggers.PerplexityTrigger
    | triggers.UtilizationTrigger
)


class Largest(NamedTuple):
    """What a model may come to. growths: how often it grows until then. bounded: whether it is followed to the end."""

    blueprint: Blueprint
    growths: int
    bounded: bool


def largest(blueprint: Blueprint, seq_len: int, tokens_per_step: int, steps: int) -> Largest:
    """What a lineage may grow into that begins with a model and takes so many steps in all.

    Of rules that share a limit those that are named first take what it leaves. A rule with the trigger `manual` is
    taken to be asked for once.
    """
    left = [most_times(blueprint, rule, tokens_per_step, steps) if rule.do.adds else 0 for rule in blueprint.growth]
    now, growths, acting = blueprint, 0, True
    while acting:
        acting = False
        for i, rule in enumerate(blueprint.growth):
            if left[i] < 1 or rule.id not in (each.id for each in now.growth):
                continue
            made = acted(now, i, seq_len)
            if not isinstance(made, Blueprint):
                continue
            if growths == MOST_GROWTHS:
                return Largest(now, growths, bounded=False)
            if len(made.blocks) > MOST_BLOCKS or parameter_count(made) > MOST_PARAMS:
                return Largest(made, growths + 1, bounded=False)
            now, growths, acting = made, growths + 1, True
            left[i] -= 1
    return Largest(now, growths, bounded=True)


def most_times(blueprint: Blueprint, rule: GrowthRule, tokens_per_step: int, steps: int) -> int:
    """How often a rule can act in so many steps, at most; after the last nothing grows."""
    first = first_step(blueprint, rule, tokens_per_step)
    if first >= steps:
        return 0
    match rule.when:
        case triggers.ManualTrigger() | triggers.StepTrigger(at=int()) | triggers.TokensTrigger(at=int()):
            times = 1
        case when:
            waits = first if isinstance(when, AGAIN) else 1
            waits = when.interval if isinstance(when, triggers.ExpertUsageTrigger) else waits
            times = 1 + (steps - 1 - first) // max(1, waits, rule.limits.cooldown_steps)
    most = rule.limits.max_times
    return times if most is None else min(times, most)
