"""What a growth rule can come to: whether its trigger can ever fire, and its action ever be taken. No torch.

Only what is certain counts, whatever the training brings. Operators draw no rule that can come to nothing;
`growth.rules` tells of those that somebody wrote.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np

from morphogen.blueprint import growth as rules
from morphogen.blueprint import triggers
from morphogen.blueprint.growth import GrowthRule
from morphogen.blueprint.schema import Blueprint
from morphogen.blueprint.tensors import parameter_count
from morphogen.blueprint.triggers import Trigger
from morphogen.cost import total
from morphogen.parts.ffn.mlp import MLP
from morphogen.parts.ffn.moe import MoE
from morphogen.variation.making import NOBODY, Chosen, make, within

#: Actions on the experts of mixtures.
ON_EXPERTS = rules.AddExperts | rules.SplitExperts | rules.PruneExperts | rules.MergeExperts | rules.CrossExperts
#: Those that change how many there are.
COUNTING = rules.AddExperts | rules.SplitExperts | rules.PruneExperts | rules.MergeExperts
#: Those after which there are fewer.
FEWER = rules.PruneExperts | rules.MergeExperts
#: What other rules may make of a model is followed through so many architectures.
MOST_STATES = 24
#: Action -> others that may bring a model to where it has something to act on; for a limit, all that shrink.
SHRINKING: tuple[type[rules.Action], ...] = (rules.Narrow, rules.DropLayer, rules.PruneExperts, rules.MergeExperts)
HELPERS: Mapping[str, tuple[type[rules.Action], ...]] = {
    **dict.fromkeys(("prune_experts", "merge_experts"), (rules.ToMoE, rules.AddExperts, rules.SplitExperts)),
    **dict.fromkeys(("add_experts", "split_experts", "cross_experts"), (rules.ToMoE,)),
    "drop_layer": (rules.Deepen,),
    "narrow": (rules.Widen,),
}
#: (what one rule does, what another does) that undo each other.
OPPOSITES = (
    ((rules.Widen,), (rules.Narrow,)),
    ((rules.Deepen,), (rules.DropLayer,)),
    ((rules.SplitExperts, rules.AddExperts), (rules.PruneExperts, rules.MergeExperts)),
)


class Reason(NamedTuple):
    """Why nothing comes of a rule, and of which field of it. certain: else other triggers of the rule may do."""

    at: tuple[str | int, ...]
    said: str
    certain: bool = True


#: Why a trigger never fires; empty where it may.
Why = Callable[[Trigger], str]


# ------------------------------------------------------------------------------------------------ triggers that never


def never(when: Trigger, why: Why, at: tuple[str | int, ...] = ("when",), *, whole: bool = True) -> Iterator[Reason]:
    """The triggers that never fire; certain where their rule therefore never does (`whole`)."""
    if isinstance(when, triggers.AnyTrigger | triggers.AllTrigger | triggers.MajorityTrigger):
        dead = whole and _dead(when, why)
        for i, trigger in enumerate(when.of):
            yield from never(trigger, why, (*at, "of", i), whole=dead)
    elif said := why(when):
        yield Reason(at, f"never fires: it {said}", whole)


def _dead(when: Trigger, why: Why) -> bool:
    """Whether a trigger can never fire."""
    if not isinstance(when, triggers.AnyTrigger | triggers.AllTrigger | triggers.MajorityTrigger):
        return bool(why(when))
    return sum(not _dead(trigger, why) for trigger in when.of) < when.needed


def deaf(blueprint: Blueprint, rule: GrowthRule) -> Iterator[Reason]:
    """Triggers of a rule that never fire, however long the training is."""

    def why(trigger: Trigger) -> str:
        return _unused(blueprint, rule, trigger) if isinstance(trigger, triggers.ExpertUsageTrigger) else ""

    yield from never(rule.when, why)
    yield from _contrary(rule.when)


def _unused(blueprint: Blueprint, rule: GrowthRule, trigger: triggers.ExpertUsageTrigger) -> str:
    """Why no expert's usage passes the threshold of a trigger.

    Each token runs k experts, so that none gets more than 1/k of the assignments; each gets just that where there are
    no more places than k.
    """
    named = rule.blocks() if isinstance(rule.do, ON_EXPERTS) else ()
    here = [block.ffn for block in blueprint.blocks if not named or block.id in named]
    found = {(moe.n_experts, moe.k, moe.places == moe.k and not moe.twins) for moe in here if isinstance(moe, MoE)}
    makers = [
        each.do for each in blueprint.growth if isinstance(each.do, rules.ToMoE) and makes_mixtures(blueprint, each)
    ]
    found |= {(do.n_experts, do.k, do.n_experts == do.k) for do in makers}
    if not found:
        return "watches experts, but the model has no mixture of them and no rule makes one (action to_moe)"
    if any(isinstance(each.do, COUNTING) for each in blueprint.growth if each.id != rule.id):
        return ""  # of other numbers of experts
    little = isinstance(rule.do, rules.PruneExperts | rules.MergeExperts | rules.CrossExperts)
    for experts, k, all_run in sorted(found):
        most, least = 1.0 / k, 1.0 / k if all_run else 0.0
        if least < trigger.prune_at(experts) if little else most > trigger.split_at(experts):
            return ""
    experts, k, _ = min(found)
    if little:
        return (
            f"waits for a usage below {trigger.prune_at(experts):.3g}, but each token runs all of the "
            f"{experts} experts, which are used {1.0 / k:.3g} each"
        )
    return (
        f"waits for a usage above {trigger.split_at(experts):.3g}, but each token runs {k} of "
        f"{experts} experts, so that none is used more than {1.0 / k:.3g}"
    )


def makes_mixtures(blueprint: Blueprint, rule: GrowthRule) -> bool:
    """Whether a rule gives mixtures to blocks that there are."""
    return isinstance(rule.do, rules.ToMoE) and any(
        isinstance(block.ffn, MLP) for block in blueprint.blocks if not rule.blocks() or block.id in rule.blocks()
    )


def _contrary(when: Trigger, at: tuple[str | int, ...] = ("when",), *, whole: bool = True) -> Iterator[Reason]:
    """Bounds of one figure that would have to be passed at once, and cannot."""
    if not isinstance(when, triggers.AnyTrigger | triggers.AllTrigger | triggers.MajorityTrigger):
        return
    together = when.needed == len(when.of)
    for i, trigger in enumerate(when.of):
        yield from _contrary(trigger, (*at, "of", i), whole=whole and together)
    for (i, one), (j, other) in combinations(enumerate(when.of), 2) if together else ():
        if not isinstance(one, triggers.GradientNormTrigger | triggers.PerplexityTrigger):
            continue
        if not isinstance(other, type(one)) or one.window != other.window:
            continue
        for low, high in ((one, other), (other, one)):
            if low.below is None or low.above is not None or high.above is None or high.below is not None:
                continue
            if low.below <= high.above:
                said = f"never fires with number {i}: no mean is below {low.below:g} and above {high.above:g} at once"
                yield Reason((*at, "of", j), said, whole)


# ------------------------------------------------------------------------------------------ actions that never happen


def below(blueprint: Blueprint, rule: GrowthRule, seq_len: int) -> Iterator[Reason]:
    """Limits that the model is beyond before anything has grown. seq_len: at which FLOPs are counted."""
    known, limits = blueprint.nominal, rule.limits
    measures: tuple[tuple[str, float | None, Callable[[], float], str], ...] = (
        ("max_layers", limits.max_layers, lambda: len(known.blocks), "blocks"),
        ("max_dim", limits.max_dim, lambda: known.emb.dim, "residual channels"),
        ("max_params", limits.max_params, lambda: parameter_count(known), "parameters"),
        ("max_flops_per_token", limits.max_flops_per_token, lambda: total(known, seq_len).flops, "FLOPs a token"),
    )
    for name, most, measured, unit in measures:
        if most is not None and most < (held := measured()):
            said = f"is {most:,.15g}, below the {held:,.15g} {unit} that the model begins with"
            yield Reason(("limits", name), said)


def idle(blueprint: Blueprint, i: int, seq_len: int) -> Reason | None:
    """Why rule number `i` can act neither on the model nor on what others make of it; None where it may."""
    outcome = acted(blueprint, i, seq_len)
    return outcome if isinstance(outcome, Reason) and not _helped(blueprint, i, seq_len) else None


def helpers(blueprint: Blueprint, i: int) -> list[int]:
    """The rules that may bring the model to where rule number `i` acts."""
    needs = (*HELPERS.get(blueprint.growth[i].do.action, ()), *SHRINKING)
    return [j for j, rule in enumerate(blueprint.growth) if j != i and isinstance(rule.do, needs)]


def _helped(blueprint: Blueprint, i: int, seq_len: int) -> bool:
    """Whether others may bring the model to where rule number `i` acts; also where there is no end to what they do."""
    reached = [blueprint]
    for state in reached:  # which grows on the way
        if len(reached) >= MOST_STATES or isinstance(acted(state, i, seq_len), Blueprint):
            return True
        made = (acted(state, j, seq_len) for j in helpers(blueprint, i))
        reached += [other for other in made if isinstance(other, Blueprint)]
    return False


def acted(state: Blueprint, i: int, seq_len: int) -> Blueprint | Reason:
    """What rule number `i` makes of a model, or why it makes nothing."""
    rule = state.growth[i]
    forbidden = ""
    for chosen in _choices(state, rule.do):
        made = make(state, rule.do, np.random.default_rng(0), chosen)
        if made is None or made.blueprint is None:
            continue
        forbidden = within(rule.limits, state, made.blueprint, seq_len)
        if not forbidden:  # a rule whose blocks are gone is gone with them
            return made.blueprint.model_copy(update={"growth": state.growth})
    if forbidden:
        name, _, rest = forbidden.partition(" ")
        return Reason(("limits", name), f"{rest}, so that {rule.do.action} is never done")
    field, said = _nothing(state, rule)
    return Reason(("do", *field), said)


def _choices(state: Blueprint, do: rules.GrowthAction) -> Iterator[Chosen]:
    """The experts that an action may be about, one or two of each mixture at a time."""
    stacks = {block.id: block.ffn.stacked for block in state.blocks if isinstance(block.ffn, MoE)}
    most = max(stacks.values(), default=0)
    match do:
        case rules.PruneExperts():
            yield from ({block: (e,) for block, n in stacks.items() if e < n} for e in range(most))
        case rules.MergeExperts() | rules.CrossExperts():  # the first of two stays
            pairs = ({block: ((e + 1) % n, e) for block, n in stacks.items() if n > 1 and e < n} for e in range(most))
            yield from filter(None, pairs)
        case _:
            yield NOBODY


def _nothing(state: Blueprint, rule: GrowthRule) -> tuple[tuple[str, ...], str]:
    """(field, in words) why an action does nothing."""
    do, where = rule.do, ", ".join(rule.blocks()) or "the model"
    here = [block.ffn for block in state.blocks if not rule.blocks() or block.id in rule.blocks()]
    experts = [moe.n_experts for moe in here if isinstance(moe, MoE)]
    match do:
        case rules.GrowVocabulary(tokens=tokens):
            return ("tokens",), f"is {tokens:,}, not above the {state.emb.vocab or 0:,} tokens that there are"
        case rules.DropLayer():
            return (), "drop_layer has nothing to drop: one block is always kept, and there is one"
        case rules.ToMoE():
            return (), f"to_moe has nothing to act on: {where} has no dense feed-forward layer"
    if isinstance(do, ON_EXPERTS) and not experts:
        lacking = "there is" if not rule.blocks() else f"{where} has"
        return (), f"{do.action} has nothing to act on: {lacking} no mixture of experts, and no rule makes one (to_moe)"
    match do:
        case rules.PruneExperts(min_experts=least) | rules.MergeExperts(min_experts=least) if max(experts) <= least:
            said = f"is {least}, and no mixture has more than {max(experts)} experts, nor does any rule add enough"
            return ("min_experts",), said
        case rules.PruneExperts() | rules.MergeExperts():
            return (), f"{do.action} can do nothing in {where}: as many experts stay as each token runs"
        case rules.AddExperts(max_experts=int(most)) | rules.SplitExperts(max_experts=int(most)):
            return ("max_experts",), f"is {most}, and every mixture has {min(experts)} experts or more"
        case rules.Widen(target=target) | rules.Narrow(target=target):
            return ("target",), f"is {target}, of which {do.action} can make no other number in {where}"
    return (), f"{do.action} can do nothing in {where}"


def comes_to_something(blueprint: Blueprint, rule: GrowthRule, seq_len: int = 1) -> bool:
    """Whether a rule may fire and act, beside the others of a blueprint. seq_len: at which FLOPs are counted; where it
    is not known one token's are the least there can be."""
    i = next((i for i, each in enumerate(blueprint.growth) if each.id == rule.id), len(blueprint.growth))
    with_it = blueprint.model_copy(update={"growth": (*blueprint.growth[:i], rule, *blueprint.growth[i + 1 :])})
    present = {block.id for block in blueprint.blocks}
    if not set(rule.blocks()) <= present or any(below(blueprint, rule, seq_len)):
        return False
    return not any(reason.certain for reason in deaf(with_it, rule)) and idle(with_it, i, seq_len) is None


# -------------------------------------------------------------------------------------------- rules against each other


def opposite(one: GrowthRule, other: GrowthRule) -> bool:
    """Whether one of two rules undoes what the other does, whichever way round."""
    mine, theirs = (set[str]() if "blocks" in rule.do.inert() else set(rule.blocks()) for rule in (one, other))
    if mine and theirs and not mine & theirs:
        return False
    return any(
        isinstance(first.do, grows) and isinstance(second.do, shrinks) and _same_target(first.do, second.do)
        for first, second in ((one, other), (other, one))
        for grows, shrinks in OPPOSITES
    )


def _same_target(one: rules.GrowthAction, other: rules.GrowthAction) -> bool:
    """Of what grows and shrinks in width, whether it is the same width."""
    return dict(one).get("target") == dict(other).get("target")


def at_once(one: GrowthRule, other: GrowthRule) -> bool:
    """Whether two rules fire on the very same thing: `manual` is asked for one by one, and `expert_usage` looks at
    other experts for each action."""
    return one.when == other.when and not isinstance(one.when, triggers.ManualTrigger | triggers.ExpertUsageTrigger)


def overlap(blueprint: Blueprint, one: GrowthRule, other: GrowthRule) -> str:
    """Usage at which one rule would split an expert that the other lets go; empty where there is none."""
    for split, prune in ((one, other), (other, one)):
        above, under = split.when, prune.when
        if not (isinstance(split.do, rules.SplitExperts) and isinstance(prune.do, FEWER)):
            continue
        if isinstance(above, triggers.ExpertUsageTrigger) and isinstance(under, triggers.ExpertUsageTrigger):
            for count in _expert_counts(blueprint):
                if under.prune_at(count) > above.split_at(count):
                    return (
                        f"of {count} experts, one used between {above.split_at(count):.3g} and "
                        f"{under.prune_at(count):.3g} is split by {split.id} and let go by {prune.id}"
                    )
    return ""


def _expert_counts(blueprint: Blueprint) -> Sequence[int]:
    """How many experts the mixtures have, or get."""
    present = [block.ffn.n_experts for block in blueprint.blocks if isinstance(block.ffn, MoE)]
    made = [rule.do.n_experts for rule in blueprint.growth if isinstance(rule.do, rules.ToMoE)]
    return sorted({*present, *made})


def at_odds(blueprint: Blueprint, several: Iterable[GrowthRule]) -> Iterator[tuple[GrowthRule, GrowthRule]]:
    """Pairs of rules of which one undoes at the same tick what the other does, or of which both say the same."""
    for one, other in combinations(several, 2):
        if opposite(one, other):
            if at_once(one, other) or overlap(blueprint, one, other):
                yield one, other
        elif one.model_dump(exclude={"id"}) == other.model_dump(exclude={"id"}):
            yield one, other
