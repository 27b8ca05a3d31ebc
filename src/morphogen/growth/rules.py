"""What cannot be meant in growth rules: one that can never fire or never act, a limit below the start. No torch.

A rule is refused only where that is certain, whatever the training brings.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations

import numpy as np

from morphogen.blueprint import growth as rules
from morphogen.blueprint import triggers
from morphogen.blueprint.growth import GrowthRule
from morphogen.blueprint.mistakes import Loc
from morphogen.blueprint.schema import Blueprint
from morphogen.blueprint.tensors import parameter_count
from morphogen.blueprint.triggers import Trigger
from morphogen.cost import total
from morphogen.errors import InputError, nearest
from morphogen.growth.actions import act, within
from morphogen.knobs import Remark
from morphogen.parts.ffn.moe import MoE
from morphogen.sections.values import changed
from morphogen.variation.growth import ON_EXPERTS, places

#: Why a trigger never fires; empty where it may.
Why = Callable[[Trigger], str]
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


def check_growth(
    blueprint: Blueprint, most_steps: int | None = None, most_tokens: int | None = None, seq_len: int = 256
) -> list[Remark]:
    """What is odd about the rules of a blueprint that begins to train, so long in all; None: nobody knows how long.

    InputError with a line for each rule that can never fire or never act, each limit below what the model has, and
    rules that undo each other.
    """
    found = [*growth_remarks(blueprint, seq_len), *late(blueprint, most_steps, most_tokens)]
    if wrong := [f"{_dotted(remark.loc)}: {remark.said}" for remark in found if remark.refused]:
        raise InputError("\n".join(wrong))
    return found


def _dotted(loc: Loc) -> str:
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in loc).lstrip(".")


def growth_remarks(blueprint: Blueprint, seq_len: int, *, begun: bool = False) -> Iterator[Remark]:
    """What of that the blueprint alone tells. seq_len: at which FLOPs are counted. begun: it may have grown already, so
    that a limit may be reached."""
    low = set[int]()
    for i, rule in enumerate(blueprint.growth):
        loc: Loc = ("model", "growth", i)
        named, below = list(_names(blueprint, rule, loc)), list(_below(blueprint, rule, loc, seq_len))
        yield from named
        yield from (remark._replace(refused=not begun) for remark in below)
        yield from _unread(rule, loc)
        yield from _watching(blueprint, rule.when, (*loc, "when"))
        if below or any(remark.refused for remark in named):
            low.add(i)
    yield from (remark._replace(refused=not begun) for remark in _idle(blueprint, low, seq_len))
    yield from _undoing(blueprint)


# ----------------------------------------------------------------------------------------------- names and limits


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


def _below(blueprint: Blueprint, rule: GrowthRule, loc: Loc, seq_len: int) -> Iterator[Remark]:
    """Limits that the model is beyond before anything has grown."""
    known, limits = blueprint.nominal, rule.limits
    measures: tuple[tuple[str, float | None, float, str], ...] = (
        ("max_layers", limits.max_layers, len(known.blocks), "blocks"),
        ("max_dim", limits.max_dim, known.emb.dim, "residual channels"),
        ("max_params", limits.max_params, parameter_count(known), "parameters"),
        ("max_flops_per_token", limits.max_flops_per_token, total(known, seq_len).flops, "FLOPs a token"),
    )
    for name, most, held, unit in measures:
        if most is not None and most < held:
            said = f"is {most:,.15g}, below the {held:,.15g} {unit} that the model begins with"
            yield Remark((*loc, "limits", name), said, True)


def _unread(rule: GrowthRule, loc: Loc) -> Iterator[Remark]:
    """Fields that nothing reads as the rest of the rule stands."""
    do = rule.do
    for name in sorted(do.inert() & changed(do)):
        yield Remark((*loc, "do", name), f"has no effect: {do.action} adds no parameters")
    if isinstance(rule.when, triggers.ExpertUsageTrigger):
        unread = {"split_above": (rules.PruneExperts, rules.MergeExperts), "prune_below": (rules.SplitExperts,)}
        for name, actions in unread.items():
            if isinstance(do, actions) and name in changed(rule.when):
                yield Remark((*loc, "when", name), f"has no effect with action {do.action}")
    widens = isinstance(do, rules.Widen) and do.target == "dim"
    read = {"max_layers": isinstance(do, rules.Deepen), "max_dim": widens, "max_params": do.adds}
    read["max_flops_per_token"] = do.adds
    for name, is_read in read.items():
        if not is_read and name in changed(rule.limits):
            yield Remark((*loc, "limits", name), f"has no effect: {do.action} changes nothing that it limits")


# --------------------------------------------------------------------------------------------- triggers that are deaf


def _makes_mixtures(blueprint: Blueprint) -> bool:
    """Whether there is a mixture, or a rule that makes one."""
    mixed = any(isinstance(block.ffn, MoE) for block in blueprint.blocks)
    return mixed or any(isinstance(rule.do, rules.ToMoE) and places(blueprint, rule.do) for rule in blueprint.growth)


def _watching(blueprint: Blueprint, when: Trigger, loc: Loc) -> Iterator[Remark]:
    """A trigger on experts where there are none and never will be."""
    if not _makes_mixtures(blueprint):
        deaf = "watches experts, but the model has no mixture of them and no rule makes one (action to_moe)"
        yield from _never(when, loc, lambda trigger: deaf if isinstance(trigger, triggers.ExpertUsageTrigger) else "")


def late(blueprint: Blueprint, most_steps: int | None, most_tokens: int | None) -> Iterator[Remark]:
    """Triggers that a training of at most so many steps and tokens in all, ancestors' included, never comes to."""

    def beyond(trigger: Trigger) -> str:
        match trigger:
            case triggers.StepTrigger(at=at, every=every):
                first, most, unit = at or every or 0, most_steps, "steps"
            case triggers.TokensTrigger(at=at, every=every):
                first, most, unit = at or every or 0, most_tokens, "tokens"
            case triggers.PlateauTrigger(window=window):
                first, most, unit = window, most_steps, "steps"
            case triggers.ExpertUsageTrigger(interval=interval):  # experts that are there from the start are old
                first, most, unit = interval, most_steps, "steps"
            case _:
                return ""
        return f"waits for {first:,} {unit}, but there are {most:,} in all" if most is not None and first > most else ""

    for i, rule in enumerate(blueprint.growth):
        yield from _never(rule.when, ("model", "growth", i, "when"), beyond)


def unheard(blueprint: Blueprint, steps: int, tokens: int) -> list[Remark]:
    """Likewise of one training, which may be made longer: refused only where no rule of the model is ever come to."""
    found = list(late(blueprint, steps, tokens))
    waiting = {remark.loc[:3] for remark in found if remark.refused}
    by_count = all(isinstance(rule.when, triggers.StepTrigger | triggers.TokensTrigger) for rule in blueprint.growth)
    nothing = by_count and len(waiting) == len(blueprint.growth)
    return [remark._replace(refused=nothing) for remark in found]


def _never(when: Trigger, loc: Loc, why: Why, *, whole: bool = True) -> Iterator[Remark]:
    """Triggers that never fire, and why; refused where their rule therefore never does (`whole`)."""
    if isinstance(when, triggers.AnyTrigger | triggers.AllTrigger | triggers.MajorityTrigger):
        dead = _dead(when, why)
        for i, trigger in enumerate(when.of):
            yield from _never(trigger, (*loc, "of", i), why, whole=whole and dead)
    elif said := why(when):
        yield Remark(loc, f"never fires: it {said}", whole)


def _dead(when: Trigger, why: Why) -> bool:
    """Whether a trigger can never fire."""
    if not isinstance(when, triggers.AnyTrigger | triggers.AllTrigger | triggers.MajorityTrigger):
        return bool(why(when))
    alive = sum(not _dead(trigger, why) for trigger in when.of)
    needed = {"any": 1, "all": len(when.of), "majority": len(when.of) // 2 + 1}[when.trigger]
    return alive < needed


# ------------------------------------------------------------------------------------------ actions that never happen


def _idle(blueprint: Blueprint, known: set[int], seq_len: int) -> Iterator[Remark]:
    """Rules, but those of which it is `known`, that can act neither on the model nor on what others make of it."""
    for i in range(len(blueprint.growth)):
        outcome = None if i in known else _acted(blueprint, i, seq_len)
        if isinstance(outcome, Remark) and not _helped(blueprint, i, seq_len):
            yield outcome


def _helped(blueprint: Blueprint, i: int, seq_len: int) -> bool:
    """Whether others may bring the model to where rule number `i` acts; also where there is no end to what they do."""
    needed = (*HELPERS.get(blueprint.growth[i].do.action, ()), *SHRINKING)
    helpers = [j for j, rule in enumerate(blueprint.growth) if j != i and isinstance(rule.do, needed)]
    reached = [blueprint]
    for state in reached:  # which grows on the way
        if len(reached) >= MOST_STATES or isinstance(_acted(state, i, seq_len), Blueprint):
            return True
        reached += [made for j in helpers if isinstance(made := _acted(state, j, seq_len), Blueprint)]
    return False


def _acted(state: Blueprint, i: int, seq_len: int) -> Blueprint | Remark:
    """What rule number `i` makes of a model, or why it makes nothing."""
    rule = state.growth[i]
    mixtures = {block.id: (0, 1) for block in state.blocks if isinstance(block.ffn, MoE)}
    chosen = mixtures if isinstance(rule.do, rules.CrossExperts) else {}
    grown = act(state, rule.do, np.random.default_rng(0), chosen)
    loc: Loc = ("model", "growth", i)
    if grown is None:
        field, said = _nothing(state, rule)
        return Remark((*loc, "do", *field), said, True)
    if said := within(rule.limits, state, grown.blueprint, seq_len):
        name, _, rest = said.partition(" ")
        return Remark((*loc, "limits", name), f"{rest}, so that {rule.do.action} is never done", True)
    # a rule whose blocks are gone is gone with them
    return grown.blueprint.model_copy(update={"growth": state.growth})


def _nothing(state: Blueprint, rule: GrowthRule) -> tuple[tuple[str, ...], str]:
    """(field, in words) why an action does nothing."""
    do, where = rule.do, ", ".join(rule.blocks()) or "the model"
    experts = [block.ffn.n_experts for block in state.blocks if isinstance(block.ffn, MoE)]
    match do:
        case rules.GrowVocabulary(tokens=tokens):
            return ("tokens",), f"is {tokens:,}, not above the {state.emb.vocab or 0:,} tokens that there are"
        case rules.DropLayer():
            return (), "drop_layer has nothing to drop: one block is always kept, and there is one"
        case rules.ToMoE():
            return (), f"to_moe has nothing to act on: {where} has no dense feed-forward layer"
    if isinstance(do, ON_EXPERTS) and not experts:
        return (), f"{do.action} has nothing to act on: there is no mixture of experts, and no rule makes one (to_moe)"
    match do:
        case rules.PruneExperts(min_experts=least) | rules.MergeExperts(min_experts=least) if max(experts) <= least:
            said = f"is {least}, and no mixture has more than {max(experts)} experts, nor does any rule add enough"
            return ("min_experts",), said
        case rules.AddExperts(max_experts=int(most)) | rules.SplitExperts(max_experts=int(most)):
            return ("max_experts",), f"is {most}, and every mixture has {min(experts)} experts or more"
        case rules.Widen(target=target) | rules.Narrow(target=target):
            return ("target",), f"is {target}, of which {do.action} can make no other number in {where}"
    return (), f"{do.action} can do nothing in {where}"


# -------------------------------------------------------------------------------------------- rules against each other


def _undoing(blueprint: Blueprint) -> Iterator[Remark]:
    """Rules of which one undoes at the same tick what the other does."""
    numbered = list(enumerate(blueprint.growth))
    for (_, one), (j, other) in combinations(numbered, 2):
        loc: Loc = ("model", "growth", j)
        if not _opposite(one, other) and not _opposite(other, one):
            if one.model_dump(exclude={"id"}) == other.model_dump(exclude={"id"}):
                yield Remark(loc, f"says what {one.id} says, so that both act at once")
        elif one.when == other.when and not isinstance(one.when, triggers.ManualTrigger | triggers.ExpertUsageTrigger):
            said = f"{other.do.action} undoes what {one.id} does ({one.do.action}), and both have the same trigger"
            # others may be meant: what is least used goes, and something new comes in its place
            yield Remark((*loc, "when"), said, isinstance(one.do, rules.Widen | rules.Narrow))
        elif said := _overlap(blueprint, one, other):
            yield Remark((*loc, "when"), said, True)


def _opposite(one: GrowthRule, other: GrowthRule) -> bool:
    if one.blocks() and other.blocks() and not set(one.blocks()) & set(other.blocks()):
        return False
    match one.do, other.do:
        case rules.Widen(target=target), rules.Narrow(target=shrunk) if target != shrunk:
            return False
    return any(isinstance(one.do, grows) and isinstance(other.do, shrinks) for grows, shrinks in OPPOSITES)


def _overlap(blueprint: Blueprint, one: GrowthRule, other: GrowthRule) -> str:
    """Usage at which one rule would split an expert that the other lets go; empty where there is none."""
    for split, prune in ((one, other), (other, one)):
        above, below = split.when, prune.when
        if not (isinstance(split.do, rules.SplitExperts) and isinstance(prune.do, rules.PruneExperts)):
            continue
        if isinstance(above, triggers.ExpertUsageTrigger) and isinstance(below, triggers.ExpertUsageTrigger):
            for count in _expert_counts(blueprint):
                if below.prune_at(count) > above.split_at(count):
                    return (
                        f"of {count} experts, one used between {above.split_at(count):.3g} and "
                        f"{below.prune_at(count):.3g} is split by {split.id} and let go by {prune.id}"
                    )
    return ""


def _expert_counts(blueprint: Blueprint) -> Sequence[int]:
    """How many experts the mixtures have, or get."""
    present = [block.ffn.n_experts for block in blueprint.blocks if isinstance(block.ffn, MoE)]
    made = [rule.do.n_experts for rule in blueprint.growth if isinstance(rule.do, rules.ToMoE)]
    return sorted({*present, *made})
