"""Operators that make one edit in all blocks at once, each generated from the operator that makes it in one.

What is changed in one block of many often drowns in the noise of a short training.
"""

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
from pydantic import JsonValue

import morphogen.variation.structure  # noqa: F401  (registers those that are made everywhere of blocks)
from morphogen.blueprint.schema import Block, Blueprint
from morphogen.candidate import Edit
from morphogen.parts.contract.operator import OPERATORS, compound_operator
from morphogen.variation.act import Aim, CompoundEdit, Surroundings, apply_operator

#: Operator on one place -> the fields, below a block, by which all blocks come to agree: what the first draws, the
#: others get, and who has it already is left alone.
AGREED: Mapping[str, tuple[str, ...]] = {
    "change_activation": ("ffn.activation",),
    "toggle_ffn_gate": ("ffn.activation",),
    "change_expert_activation": ("ffn.activation",),
    "toggle_expert_gate": ("ffn.activation",),
    "dense_to_moe": ("ffn.kind", "ffn.n_experts"),
    "toggle_parallel": ("parallel",),
    "toggle_qk_norm": ("attn.qk_norm",),
    "tune_attn_gating": ("attn.gating_pos", "attn.gating_op"),
    "make_gqa": ("attn.kv_groups",),
    "split_kv": ("attn.kv_groups",),
    "change_rope": ("attn.rope",),
    "toggle_alibi": ("attn.alibi",),
    "tune_attn_sparsity": (
        *("attn.sparsity", "attn.sliding_window", "attn.block_size", "attn.block_stride"),
        *("attn.global_stride", "attn.dilation"),
    ),
    "toggle_selector": ("attn.selector", "attn.selector_topk", "attn.selector_heads", "attn.selector_dim"),
    "toggle_kv_policy": ("attn.kv_policy",),
    "toggle_linear_attention": ("attn.kind", "attn.decay"),
    "toggle_mla_attention": ("attn.kind",),
    "toggle_ssm": ("attn.kind", "ssm.kind"),
    "change_ssm_kind": ("ssm.kind",),
    "insert_short_conv": (),
}
#: Draws in a block until it agrees with the first; one that never does is left alone.
DRAWS = 16


def everywhere(name: str, blueprint: Blueprint, around: Surroundings, rng: np.random.Generator) -> CompoundEdit | None:
    """The edits of operator `name` in all blocks where it applies, alike; None where those are fewer than two, or the
    operator has no weight."""
    if around.weights.get(name, OPERATORS[name].weight) <= 0:
        return None
    seed, fields = int(rng.integers(2**63)), AGREED[name]
    child, steps, wanted = blueprint, list[Edit](), None
    for i in rng.permutation(len(blueprint.blocks)):
        block = blueprint.blocks[i]
        if wanted is not None and fields and _values(block, fields) == wanted:
            continue
        for draw in range(DRAWS):
            # the same numbers for every block, so that like blocks come out alike at the first draw
            made = apply_operator(child, name, np.random.default_rng([seed, draw]), around, Aim(block=block.id))
            if made is None:
                continue
            values = _values(made[0].blocks[i], fields)
            if wanted is None or values == wanted:
                child, wanted, steps = made[0], values, [*steps, made[1]]
                break
    if len(steps) < 2:
        return None
    return CompoundEdit(child, tuple(steps), target=", ".join(sorted(step.target for step in steps)))


def _values(block: Block, fields: Sequence[str]) -> tuple[JsonValue, ...]:
    """Of each field its value as data; None where the block has no such part, or the part does not read it."""
    return tuple(_value(block, *field.partition(".")[::2]) for field in fields)


def _value(block: Block, slot: str, name: str) -> JsonValue:
    if slot == "parallel":
        return block.parallel
    part = next((part for _, path, part in block.parts() if path == slot), None)
    return None if part is None else part.model_dump(mode="json", exclude=set(part.inert())).get(name)


for _name in AGREED:
    _summary = f"{OPERATORS[_name].summary.split(' Ref: ')[0].rstrip('.')}: in all blocks at once, alike."
    compound_operator(f"{_name}_everywhere", _summary, partial(everywhere, _name))
