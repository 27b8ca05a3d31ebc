"""Operators that work through other operators: one of a family, a few small edits at once, a template."""

from collections.abc import Mapping, Sequence

import numpy as np

from morphogen.blueprint.schema import Blueprint
from morphogen.candidate import Edit
from morphogen.parts.contract.operator import OPERATORS, compound_operator
from morphogen.variation.act import CompoundEdit, Surroundings, apply_operator, trained
from morphogen.variation.template import carry_out, drawn_templates

#: Operator -> what it does, and the operators of which it makes one edit, where one applies.
FAMILIES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "tune_kv": (
        "More or fewer key/value heads for the same queries, or a larger or smaller latent of them.",
        ("split_kv", "make_gqa", "widen_mla_latent", "narrow_mla_latent"),
    ),
    "tune_attn_shape": (
        "More or fewer heads of an attention, or wider or narrower ones.",
        (
            *("add_heads", "remove_heads", "add_query_heads", "widen_head_dim", "narrow_head_dim"),
            *("add_mla_heads", "remove_mla_heads", "widen_mla_head_dim", "narrow_mla_head_dim"),
            *("add_linear_heads", "remove_linear_heads", "widen_linear_values", "narrow_linear_values"),
        ),
    ),
    "tune_ffn_width_activation": (
        "A wider or narrower dense feed-forward layer, or another activation in it.",
        ("widen_ffn", "narrow_ffn", "change_activation"),
    ),
}

#: `graph_jitter` makes from two to so many edits.
JITTERS = 4


def simple_operators(weights: Mapping[str, float]) -> dict[str, float]:
    """The operators on parts, blocks and models that have a weight above 0, in order of name."""
    simple = {name: op for name, op in sorted(OPERATORS.items()) if op.level in ("part", "block", "model")}
    return {name: weight for name, op in simple.items() if (weight := weights.get(name, op.weight)) > 0}


def by_weight(weights: Mapping[str, float], rng: np.random.Generator) -> Sequence[str]:
    """All names in an order drawn by weight, without replacement; the weights are positive."""
    names, weight = list(weights), np.array(list(weights.values()))
    if not names:
        return names
    return [names[i] for i in rng.choice(len(names), size=len(names), replace=False, p=weight / weight.sum())]


def one_of(
    blueprint: Blueprint, weights: Mapping[str, float], rng: np.random.Generator, around: Surroundings
) -> CompoundEdit | None:
    """One edit by the first operator, in an order drawn by weight, that applies."""
    for name in by_weight(weights, rng):
        made = apply_operator(blueprint, name, rng, around)
        if made is not None:
            return CompoundEdit(made[0], (made[1],))
    return None


def _family(
    members: Sequence[str], blueprint: Blueprint, around: Surroundings, rng: np.random.Generator
) -> CompoundEdit | None:
    usable = simple_operators(around.weights)
    return one_of(blueprint, {name: usable[name] for name in members if name in usable}, rng, around)


for _name, (_summary, _members) in FAMILIES.items():
    compound_operator(
        _name, _summary, lambda blueprint, around, rng, members=_members: _family(members, blueprint, around, rng)
    )


def graph_jitter(blueprint: Blueprint, around: Surroundings, rng: np.random.Generator) -> CompoundEdit | None:
    """From two to four edits anywhere, by operators on parts, blocks and models; fewer where no more apply."""
    usable = simple_operators(around.weights)
    child, steps, seen = blueprint, list[Edit](), {around.key(blueprint)}
    for _ in range(int(rng.integers(2, JITTERS + 1))):
        made = one_of(child, usable, rng, around)
        if made is None or around.key(made.child) in seen:
            continue
        child, steps = made.child, [*steps, *made.steps]
        seen.add(around.key(child))
    return CompoundEdit(child, tuple(steps)) if steps else None


def template_mutation(blueprint: Blueprint, around: Surroundings, rng: np.random.Generator) -> CompoundEdit | None:
    """The edits of a template, all or none: one of the run's whose conditions hold, a variation of it, or a new one."""
    for template in drawn_templates(around, simple_operators(around.weights), blueprint, rng):
        made = carry_out(template, blueprint, around, rng)
        if made is None:
            continue
        if around._replace(train=trained(around.train, made.steps)).key(made.child) != around.key(blueprint):
            return made
    return None


for _act in (graph_jitter, template_mutation):
    compound_operator(_act.__name__, (_act.__doc__ or "").split("\n")[0], _act)
