"""Templates: reading them, whether one fits a blueprint, carrying one out, making one up, varying one."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from pydantic import JsonValue, ValidationError
from pydantic_core import ErrorDetails

from morphogen.blueprint.mistakes import Loc, what
from morphogen.blueprint.schema import Block, Blueprint
from morphogen.blueprint.templates import Action, Conditions, Template, TemplateFile
from morphogen.blueprint.tensors import parameter_count
from morphogen.blueprint.yaml import read
from morphogen.candidate import Edit
from morphogen.cost import structure
from morphogen.errors import InputError, unknown
from morphogen.parts.contract.operator import ALIASES, OPERATORS, Operator, find_operator, load_operators, pick
from morphogen.parts.contract.part import REGISTRY, Part
from morphogen.parts.recurrence.recurrence import Recurrence
from morphogen.variation.act import Aim, CompoundEdit, Surroundings, apply_operator, trained

#: Draws for one action, where it shall be another or one that applies.
TRIES = 12
#: A template that is made up or varied has at most so many actions,
LONGEST = 4
#: and weights between these.
LIGHTEST, HEAVIEST = 0.1, 10.0


def read_templates(path: str | Path) -> tuple[Template, ...]:
    """The templates in a YAML file. InputError with file, line and column for every mistake, names included."""
    document = read(path, "a mapping with 'templates'")
    found = document.parse(TemplateFile).templates
    if wrong := [document.at(("templates", *loc), said) for loc, said in mistakes(found)]:
        raise InputError("\n".join(wrong))
    return found


def resolve_templates(templates: str | tuple[Template, ...]) -> tuple[Template, ...]:
    """The templates themselves, read where only their file is given. InputError as `read_templates`."""
    if isinstance(templates, str):
        return read_templates(templates)
    check_templates(templates)
    return templates


def check_templates(templates: Sequence[Template]) -> None:
    """InputError for a template that names what there is not; `templates` stand in an experiment."""
    if wrong := [f"evolution.templates{_dotted(loc)}: {said}" for loc, said in mistakes(templates)]:
        raise InputError("\n".join(wrong))


def _dotted(loc: Loc) -> str:
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in loc)


def mistakes(templates: Sequence[Template]) -> Iterator[tuple[Loc, str]]:
    """(place, what is wrong there) for every operator, target, field or value that cannot be."""
    load_operators()
    fields = {name: own for cls in _kinds() for name, own in cls.names().items()}
    names = sorted(OPERATORS.keys() - {"template_mutation"})
    for i, template in enumerate(templates):
        for j, action in enumerate(template.actions):
            place: Loc = (i, "actions", j)
            if ALIASES.get(action.operator, action.operator) not in names:
                yield (*place, "operator"), unknown("", action.operator, names).removeprefix(": ")
                continue
            op = find_operator(action.operator)
            if op.level not in ("part", "block") and action.target != "any":
                yield (
                    (*place, "target"),
                    f"got {action.target!r}, expected any: {op.name} acts on no one block",
                )
            if op.level in ("train", "compound") and action.set:
                yield (*place, "set"), f"{op.name} makes no one part whose fields could be set"
            for name, value in action.set.items():
                if name not in fields:
                    yield (*place, "set", name), unknown("", name, fields).removeprefix(": ")
                elif fields[name] != name and fields[name] in action.set:
                    yield (*place, "set", name), f"another name of {fields[name]}, which is set too"
                elif wrong := _wrong_value(op, name, value):
                    yield (*place, "set", name, *wrong[0]), wrong[1]


def _kinds() -> list[type[Part]]:
    """Every class that an operator may make or change, each once."""
    return [*dict.fromkeys(REGISTRY.values()), Recurrence]


def _wrong_value(op: Operator, name: str, value: JsonValue) -> tuple[Loc, str] | None:
    """(place below the field, what is wrong there) where no part that `op` may make takes `value`; None where one does.

    What parts together make impossible, such as heads that cannot be shared out, shows only where the template acts.
    """
    holders = [cls for cls in _kinds() if name in cls.names()]
    wrong: list[tuple[type[Part], ErrorDetails]] = []
    for cls in holders:
        own = cls.names()[name]
        try:
            cls.model_validate({own: value})
            return None
        except ValidationError as error:
            # all others are of fields that are missing here
            found = [detail for detail in error.errors() if detail["loc"][:1] == (own,)]
        if not found:
            return None
        wrong.append((cls, found[0]))
    told = [(cls, detail) for cls, detail in wrong if op.target is not None and issubclass(cls, op.target)] or wrong
    cls, first = told[0]
    if all(detail["type"] == "literal_error" for _, detail in told):
        allowed = dict.fromkeys(detail["ctx"]["expected"].replace(" or ", ", ") for _, detail in told)
        first["ctx"]["expected"] = ", ".join(allowed)
    return first["loc"][1:], what(cls, first, first["loc"])


# ---------------------------------------------------------------------------------------------------- applying


def fits(conditions: Conditions, blueprint: Blueprint) -> bool:
    """Whether they hold of the blueprint; an unknown vocabulary counts as one token."""
    blocks, held = len(blueprint.blocks), features_of(blueprint)
    if not (conditions.min_blocks or 0) <= blocks <= (conditions.max_blocks or blocks):
        return False
    if not set(conditions.has) <= held or set(conditions.lacks) & held:
        return False
    if conditions.min_params is None and conditions.max_params is None:
        return True
    params = parameter_count(blueprint.nominal)
    return (conditions.min_params or 0) <= params <= (conditions.max_params or params)


def features_of(blueprint: Blueprint) -> set[str]:
    """The slots that are filled, the kinds in them, and what gates count."""
    held = {name for block in blueprint.blocks for slot, _, part in block.parts() for name in (slot, part.label)}
    counts = structure(blueprint)
    return held | {name.removesuffix("_blocks").removesuffix("s") for name, count in counts.items() if count}


def carry_out(
    template: Template, blueprint: Blueprint, around: Surroundings, rng: np.random.Generator
) -> CompoundEdit | None:
    """All of the template's actions one after another; None where its conditions do not hold or an action fails."""
    if not fits(template.conditions, blueprint):
        return None
    child, steps, last = blueprint, list[Edit](), None
    for action in template.actions:
        aim = _aim(action, child, last)
        made = None if aim is None else apply_operator(child, action.operator, rng, around, aim)
        if made is None:
            return None
        last = _acted_in(child, made[0])
        around = around._replace(train=trained(around.train, (made[1],)))
        child, steps = made[0], [*steps, made[1]]
    return CompoundEdit(child, tuple(steps), template)


def _aim(action: Action, blueprint: Blueprint, last: str | None) -> Aim | None:
    """Where the action is to act; None where there is no such place."""
    match action.target:
        case "any" | "first" | "last":
            return Aim(order=action.target, set=action.set)
        case "same":
            return None if last is None else Aim(block=last, set=action.set)
        case position:
            blocks = blueprint.blocks
            inside = -len(blocks) <= position < len(blocks)
            return Aim(block=blocks[position].id, set=action.set) if inside else None


def _acted_in(before: Blueprint, after: Blueprint) -> str | None:
    """The id of the first block that is new or has changed."""
    old: dict[str, Block] = {block.id: block for block in before.blocks}
    return next((block.id for block in after.blocks if old.get(block.id) != block), None)


def drawn_templates(
    around: Surroundings, usable: Mapping[str, float], blueprint: Blueprint, rng: np.random.Generator
) -> Iterator[Template]:
    """Templates to try: those of the run that fit, in an order drawn by weight, each varied, or another made up in its
    place, with the probability of a new one; where there are none, one that is made up."""
    pool = [template for template in around.templates if fits(template.conditions, blueprint)]
    weight = np.array([template.weight for template in pool])
    for i in rng.choice(len(pool), size=len(pool), replace=False, p=weight / weight.sum()) if pool else ():
        if not usable or rng.random() >= around.novelty:
            yield pool[i]
        elif rng.random() < 0.5:
            yield varied(pool[i], usable, rng)
        else:
            yield from made_up(blueprint, around, usable, rng)
    if not pool and usable:
        yield from made_up(blueprint, around, usable, rng)


# ------------------------------------------------------------------------------------------------------ making


def made_up(
    blueprint: Blueprint, around: Surroundings, usable: Mapping[str, float], rng: np.random.Generator
) -> Iterator[Template]:
    """A new template of two or three actions that can be made on `blueprint` one after another; none where that fails.

    Operators are drawn by the weights of `usable`.
    """
    child, actions, last = blueprint, list[Action](), None
    wanted = int(rng.integers(2, LONGEST))
    for _ in range(TRIES * wanted):
        action = _new_action(usable, rng, follows=bool(actions))
        aim = _aim(action, child, last)
        made = None if aim is None else apply_operator(child, action.operator, rng, around, aim)
        if made is not None:
            last, child = _acted_in(child, made[0]), made[0]
            actions.append(action)
        if len(actions) == wanted:
            yield Template(name=f"made-{_tail(rng)}", actions=tuple(actions))
            return


def varied(template: Template, usable: Mapping[str, float], rng: np.random.Generator) -> Template:
    """The template with one action more, one fewer, another in the place of one, or half or twice its weight."""
    actions, weight = list(template.actions), template.weight
    ways = ["weight", *(["add", "replace"] if usable else []), *(["drop"] if len(actions) > 1 else [])]
    way = pick(rng, [way for way in ways if way != "add" or len(actions) < LONGEST])
    at = int(rng.integers(len(actions)))
    if way == "add":
        actions.insert(at + 1, _new_action(usable, rng, follows=True))
    elif way == "replace":
        others = [_new_action(usable, rng, follows=at > 0) for _ in range(TRIES)]
        actions[at] = next((action for action in others if action != actions[at]), others[0])
    elif way == "drop":
        del actions[at]
    else:
        weight = float(np.clip(weight * rng.choice([0.5, 2.0]), LIGHTEST, HEAVIEST))
    if actions[0].target == "same":
        actions[0] = actions[0].model_copy(update={"target": "any"})
    name = f"{template.name.split('~')[0][:50]}~{_tail(rng)}"
    return Template(name=name, weight=weight, conditions=template.conditions, actions=tuple(actions))


def _new_action(usable: Mapping[str, float], rng: np.random.Generator, follows: bool) -> Action:
    """An action without fields of its own; one that follows another acts in the same block now and then."""
    names, weight = list(usable), np.array(list(usable.values()))
    name = names[int(rng.choice(len(names), p=weight / weight.sum()))]
    together = follows and OPERATORS[name].level in ("part", "block") and rng.random() < 0.5
    return Action(operator=name, target="same" if together else "any")


def _tail(rng: np.random.Generator) -> str:
    return f"{int(rng.integers(16**6)):06x}"
