"""Operators on growth rules. They change no weights, and are drawn in runs whose root has rules or that ask for them.

A rule that they draw may fire and act on the blueprint at hand, or on what its other rules make of it, and undoes
nothing that another does at once. One that is drawn anew has limits; of a rule with none a copy has none.
"""

from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Literal, get_args, get_origin

import numpy as np

from morphogen.blueprint import growth as rules
from morphogen.blueprint import triggers
from morphogen.blueprint.growth import GrowthAction, GrowthLimits, GrowthRule, of_blocks
from morphogen.blueprint.schema import Block, Blueprint
from morphogen.blueprint.tensors import parameter_count
from morphogen.blueprint.triggers import Trigger
from morphogen.parts.contract.frozen import Frozen
from morphogen.parts.contract.operator import model_operator, offered, pick
from morphogen.parts.ffn.mlp import MLP
from morphogen.parts.ffn.moe import MoE
from morphogen.variation.making import make
from morphogen.variation.possible import at_odds, comes_to_something

#: Operators add to fewer rules than these.
MOST_RULES = 4
#: Limits are drawn and raised up to these: how often a rule acts, and how many times as large as it is the model gets
#: in blocks, channels or parameters. Somebody's own that are higher may stay, and fall.
MOST_TIMES = 4
MOST_GROWTH = 4
#: Steps that counts and windows are drawn around, where no rule of the blueprint names any.
STEPS = 20
#: Values that are never drawn: what jumps in loss, depends on the clock, or costs a forward pass for every layer.
NOT_DRAWN = frozenset({"stack", "removal", "activation", "head_dim"})
#: What is never tuned: FLOPs depend on the length of sequences, which operators do not know.
NOT_TUNED = frozenset({"max_flops_per_token"})


def rule_weights(root: Blueprint, given: Mapping[str, float]) -> dict[str, float]:
    """The weights of these operators that are not `given`, in a run from `root`: 1 where it has rules or is given a
    weight for more, else as declared, 0."""
    wanted = len(root.growth) > 0 or given.get("add_growth_rule", 0.0) > 0.0
    return offered(NAMES, wanted, given)


# ------------------------------------------------------------------------------------------------ what can act where


def places(blueprint: Blueprint, action: GrowthAction) -> tuple[str, ...]:
    """Ids of the blocks in which an action finds something to act on, as the blueprint stands; all for one that acts
    on the whole model."""
    return tuple(block.id for block in blueprint.blocks if _found(block, action))


def _found(block: Block, action: GrowthAction) -> bool:
    match action:
        case rules.Widen(target="ffn") | rules.Narrow(target="ffn"):
            return any(isinstance(part, MLP | MoE) for part in block.branches())
        case rules.Widen(target="heads" | "head_dim") | rules.Narrow(target="heads"):
            return block.attn is not None
        case rules.ToMoE():
            return isinstance(block.ffn, MLP)
        case rules.PruneExperts() | rules.MergeExperts():
            return isinstance(block.ffn, MoE) and block.ffn.n_experts > action.min_experts
        case rules.AddExperts() | rules.SplitExperts() | rules.CrossExperts():
            return isinstance(block.ffn, MoE)
    return True


def added_rules(child: Blueprint, other: Blueprint) -> Blueprint:
    """The child with rules of another blueprint too: those whose ids it lacks, that come to something in it, and that
    neither say nor undo at once what one of its own does."""
    own = {rule.id for rule in child.growth}
    offered = of_blocks(other.growth, {block.id for block in child.blocks})
    new = tuple(rule for rule in offered if rule.id not in own)
    while new and (with_all := child.evolve(growth=(*child.growth, *new))) is not None:
        clashing = [later for _, later in at_odds(with_all, with_all.growth)]
        kept = tuple(rule for rule in new if rule not in clashing and comes_to_something(with_all, rule))
        if kept == new:
            return with_all
        new = kept
    return child


# ------------------------------------------------------------------------------------------------------------- draws


def _steps(blueprint: Blueprint, rng: np.random.Generator) -> int:
    """A number of steps of the order that the blueprint's own rules name: half, once or twice the least."""
    named = [int(value) for rule in blueprint.growth for value in _counts(rule.when)]
    return max(2, round(min(named, default=STEPS) * float(rng.choice([0.5, 1.0, 2.0]))))


def _counts(trigger: Trigger) -> Iterator[int]:
    """The numbers of steps in a trigger."""
    match trigger:
        case triggers.AnyTrigger(of=several) | triggers.AllTrigger(of=several) | triggers.MajorityTrigger(of=several):
            for each in several:
                yield from _counts(each)
        case triggers.StepTrigger(at=at, every=every):
            yield at or every or STEPS
        case triggers.TokensTrigger() | triggers.ResourcesTrigger() | triggers.ManualTrigger():
            return
        case _:
            yield trigger.window


def _trigger(blueprint: Blueprint, action: GrowthAction, rng: np.random.Generator) -> Trigger:
    """Something that a short training may come to."""
    steps = _steps(blueprint, rng)
    drawn: list[Trigger] = [
        triggers.StepTrigger(at=steps),
        triggers.StepTrigger(every=steps),
        triggers.PlateauTrigger(window=steps, tolerance=float(rng.choice([1e-3, 1e-2, 5e-2]))),
        triggers.UtilizationTrigger(
            measure="gradient",
            threshold=float(rng.choice([0.1, 0.25, 0.5])),
            share=float(rng.choice([0.5, 0.8])),
            window=steps,
        ),
    ]
    if isinstance(action, rules.SplitExperts | rules.PruneExperts):
        drawn.append(triggers.ExpertUsageTrigger(window=steps, interval=steps, min_age=steps))
    return drawn[int(rng.integers(len(drawn)))]


def _actions(blueprint: Blueprint, rng: np.random.Generator) -> list[GrowthAction]:
    """One of each sort that finds something to act on."""
    factor = float(rng.choice([1.25, 1.5]))
    most = MOST_GROWTH * max(
        (block.ffn.n_experts for block in blueprint.blocks if isinstance(block.ffn, MoE)), default=1
    )
    drawn: list[GrowthAction] = [
        rules.Widen(target="ffn", factor=float(rng.choice([1.25, 1.5, 2.0]))),
        rules.Widen(target="heads", factor=factor),
        rules.Widen(target="dim", factor=factor),
        rules.Deepen(
            layers=int(rng.integers(1, 3)),
            where=("middle", "end", "alternate")[int(rng.integers(3))],
            how=("copy", "fresh")[int(rng.integers(2))],
        ),
        rules.ToMoE(n_experts=int(rng.integers(2, 5)), k=int(rng.integers(1, 3))),
        rules.AddExperts(max_experts=most),
        rules.SplitExperts(max_experts=most),
        rules.PruneExperts(chooser=("usage", "gate_norm", "merge")[int(rng.integers(3))]),
        rules.MergeExperts(),
        rules.CrossExperts(),
        rules.Narrow(target="ffn"),
        *([rules.DropLayer()] if len(blueprint.blocks) > 2 else []),
    ]
    return [action for action in drawn if places(blueprint, action)]


def _limits(blueprint: Blueprint, action: GrowthAction, rng: np.random.Generator) -> GrowthLimits:
    """Room for the action, and an end to it."""
    times, depth = int(rng.integers(1, MOST_TIMES + 1)), len(blueprint.blocks)
    layers = min(depth + times * action.layers, MOST_GROWTH * depth) if isinstance(action, rules.Deepen) else None
    wider = isinstance(action, rules.Widen) and action.target == "dim"
    known = blueprint.emb.vocab is not None  # else the real size is not
    return GrowthLimits(
        max_layers=layers,
        max_dim=MOST_GROWTH * blueprint.emb.dim if wider else None,
        max_params=MOST_GROWTH * parameter_count(blueprint) if known and action.adds else None,
        max_times=times,
        cooldown_steps=_steps(blueprint, rng),
    )


def _in_one_block(blueprint: Blueprint, action: GrowthAction, rng: np.random.Generator) -> GrowthAction:
    """The action in one of the blocks where it can act; as it is where it names none."""
    one = pick(rng, places(blueprint, action))
    reads_blocks = "blocks" in type(action).model_fields and "blocks" not in action.inert()
    return action.model_copy(update={"blocks": (one,)}) if reads_blocks and one is not None else action


def _plain(part: Frozen) -> Frozen:
    """Of an action: without names of blocks that it does not read."""
    unread = isinstance(part, rules.Action) and "blocks" in part.inert()
    return part.model_copy(update={"blocks": ()}) if unread else part


# ---------------------------------------------------------------------------------------------------- the operators


def _with(blueprint: Blueprint, made: Sequence[GrowthRule]) -> Blueprint | None:
    """The blueprint with these rules; None where one that is new, or came to something before, comes to nothing, where
    a new one says the same as another or undoes it at once, or where nothing differs."""
    child = blueprint.evolve(growth=tuple(made))
    if child is None:
        return None
    new = [rule for rule in made if rule not in blueprint.growth]
    idle = [rule for rule in made if not comes_to_something(child, rule)]
    if any(rule in new or comes_to_something(blueprint, rule) for rule in idle):
        return None
    return None if any(one in new or other in new for one, other in at_odds(child, made)) else child


@model_operator(preserves=True, weight=0.0)
def add_growth_rule(blueprint: Blueprint, rng: np.random.Generator) -> Blueprint | None:
    """A rule by which the model changes while it trains, within limits. Ref: arXiv 2203.06211, 2305.02869."""
    action = pick(rng, _actions(blueprint, rng)) if len(blueprint.growth) < MOST_RULES else None
    if action is None:
        return None
    if rng.random() < 0.25:
        action = _in_one_block(blueprint, action, rng)
    rule = GrowthRule(
        id=blueprint.fresh_id(rng),
        when=_trigger(blueprint, action, rng),
        do=action,
        limits=_limits(blueprint, action, rng),
    )
    return _with(blueprint, (*blueprint.growth, rule))


@model_operator(preserves=True, weight=0.0)
def remove_growth_rule(blueprint: Blueprint, rng: np.random.Generator) -> Blueprint | None:
    """One growth rule fewer."""
    gone = pick(rng, blueprint.growth)
    return None if gone is None else _with(blueprint, [rule for rule in blueprint.growth if rule is not gone])


@model_operator(preserves=True, weight=0.0)
def copy_growth_rule(blueprint: Blueprint, rng: np.random.Generator) -> Blueprint | None:
    """A growth rule once more, with another trigger, another target, or in one block alone."""
    rule = pick(rng, blueprint.growth) if len(blueprint.growth) < MOST_RULES else None
    if rule is None:
        return None
    changed: list[dict[str, object]] = [{"when": _trigger(blueprint, rule.do, rng)}]
    changed += [{"do": _plain(other)} for other in _other_choices(rule.do, ("target",))]
    changed += [{"do": _in_one_block(blueprint, rule.do, rng)}]
    other = rule.evolve(id=blueprint.fresh_id(rng), **changed[int(rng.integers(len(changed)))])
    if other is None or _too_large(blueprint, other, rule):
        return None
    at = blueprint.growth.index(rule) + 1
    return _with(blueprint, (*blueprint.growth[:at], other, *blueprint.growth[at:]))


@model_operator(preserves=True, weight=0.0)
def tune_growth_rule(blueprint: Blueprint, rng: np.random.Generator) -> Blueprint | None:
    """A number of a growth rule doubled or halved, or another of its choices."""
    rule = pick(rng, blueprint.growth)
    if rule is None:
        return None
    section = ("when", "do", "limits")[int(rng.integers(3))]
    part: Frozen = {"when": rule.when, "do": rule.do, "limits": rule.limits}[section]
    unread = {at[1:] for at in rule.unread() if at[0] == section}
    tuned = _tuned(part, rng, unread)
    other = None if tuned is None else rule.evolve(**{section: _plain(tuned)})
    if other is None or _too_large(blueprint, other, rule):
        return None
    return _with(blueprint, [other if each is rule else each for each in blueprint.growth])


def _too_large(blueprint: Blueprint, rule: GrowthRule, before: GrowthRule) -> bool:
    """Whether a limit has risen further than operators let it, or one act makes more of the model than that."""
    model = (len(blueprint.blocks), blueprint.emb.dim, parameter_count(blueprint.nominal))
    old, new = before.limits, rule.limits
    bounds = [
        (new.max_layers, old.max_layers, MOST_GROWTH * model[0]),
        (new.max_dim, old.max_dim, MOST_GROWTH * model[1]),
        (new.max_params, old.max_params, MOST_GROWTH * model[2]),
        (new.max_times, old.max_times, MOST_TIMES),
    ]
    if any(most is not None and old is not None and most > max(old, bound) for most, old, bound in bounds):
        return True
    made = make(blueprint, rule.do, np.random.default_rng(0)) if rule.do != before.do and rule.do.adds else None
    if made is None or made.blueprint is None:
        return False
    grown = made.blueprint.nominal
    sizes = (len(grown.blocks), grown.emb.dim, parameter_count(grown))
    return any(size > MOST_GROWTH * held for size, held in zip(sizes, model, strict=True))


def _tuned(part: Frozen, rng: np.random.Generator, unread: Set[tuple[str | int, ...]]) -> Frozen | None:
    """With one number doubled or halved, or one choice another, of what is read; of several triggers, one of them
    tuned."""
    if isinstance(part, triggers.AnyTrigger | triggers.AllTrigger | triggers.MajorityTrigger):
        i = int(rng.integers(len(part.of)))
        tuned = _tuned(part.of[i], rng, {at[2:] for at in unread if at[:2] == ("of", i)})
        return None if tuned is None else part.evolve(of=(*part.of[:i], tuned, *part.of[i + 1 :]))
    made: list[Frozen] = list(_other_choices(part, tuple(type(part).model_fields)))
    for name, value in part:
        read = name not in NOT_TUNED and (name,) not in unread
        if read and isinstance(value, int | float) and not isinstance(value, bool):
            scaled = value * float(rng.choice([0.5, 2.0]))
            other = part.evolve(**{name: round(scaled) if isinstance(value, int) else scaled})
            made += [] if other is None else [other]
    return pick(rng, made)


def _other_choices(part: Frozen, names: Sequence[str]) -> list[Frozen]:
    """The part with another value in one of these fields, where it is one of a few words."""
    made = list[Frozen]()
    for name in names:
        field = type(part).model_fields.get(name)
        if field is not None and get_origin(field.annotation) is Literal:
            words = [word for word in get_args(field.annotation) if word not in NOT_DRAWN]
            made += [other for word in words if (other := part.evolve(**{name: word})) is not None]
    return made


NAMES = tuple(act.__name__ for act in (add_growth_rule, copy_growth_rule, remove_growth_rule, tune_growth_rule))
