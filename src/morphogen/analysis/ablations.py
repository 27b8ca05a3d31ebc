"""What can be taken out of an architecture by name, to see what it was good for. No weights here.

An ablation gives another blueprint, or None where the model has nothing of the sort: it is then said, and never run.
"""

from collections.abc import Callable
from typing import NamedTuple

from morphogen.blueprint.schema import Block, Blueprint
from morphogen.errors import InputError, unknown
from morphogen.experiment import Priors
from morphogen.parts.attention.sparsity import KNOBS, Sparse, seen_pairs
from morphogen.parts.contract.part import Part
from morphogen.parts.ffn.mlp import MLP
from morphogen.parts.ffn.moe import MoE
from morphogen.variation.structure import kept_extras


class Surrounding(NamedTuple):
    """What an ablation may ask of the run: tokens of a sequence, and what counts as ordinary."""

    seq_len: int
    priors: Priors


#: The model without what it is about, or None.
Act = Callable[[Blueprint, Surrounding], Blueprint | None]


class Ablation(NamedTuple):
    """One that has a name. absent: what is said of a model that has nothing of the sort."""

    summary: str
    absent: str
    act: Act


def find_ablation(name: str) -> tuple[str, Ablation]:
    """An ablation and its own name, by that or by one the older system had for it. InputError with the nearest name."""
    own = OLDER.get(name, name)
    if own not in ABLATIONS:
        raise InputError(unknown("--ablation", name, [*ABLATIONS, "undo"]))
    return own, ABLATIONS[own]


# --------------------------------------------------------------------------------------------------- parts of blocks

#: A part to what stands in its place; None takes it out.
Change = Callable[[Part], Part | None]


def with_parts(blueprint: Blueprint, change: Change) -> Blueprint | None:
    """The blueprint with every part, the listed experts of mixtures among them, put to a change.

    What acted on a branch that is gone goes too, and so does a block without any branch. None where nothing differs, or
    nothing would be left.
    """
    blocks = [block for each in blueprint.blocks if (block := _changed(each, change)) is not None]
    return blueprint.with_blocks(blocks) if blocks else None


def _changed(block: Block, change: Change) -> Block | None:
    slots = {
        name: None if part is None else _whole(part, change)
        for name, part in (("attn", block.attn), ("ssm", block.ssm), ("ffn", block.ffn))
    }
    changed = [part for extra in block.extras if (part := _whole(extra, change)) is not None]
    extras = kept_extras(changed, slots)
    if all(part is None for part in slots.values()) and not extras:
        return None
    return block.evolve(**slots, extras=extras) or block


def _whole(part: Part, change: Change) -> Part | None:
    """The part changed, and of a mixture its listed experts: a plain one stands in for one that is taken out."""
    if not isinstance(part, MoE) or not part.experts:
        return change(part)
    kept = [expert for each in part.experts if (expert := change(each)) is not None]
    gone = len(part.experts) - len(kept)
    inside = part.evolve(experts=tuple(kept), n_experts=part.n_experts - gone) if gone else part.evolve(experts=kept)
    if gone:
        whole = part if inside is None else inside
        inside = whole.with_places(whole.own_places + gone)
    return change(part if inside is None else inside)


def _without(goes: Callable[[Part], bool]) -> Act:
    """Takes out the parts that are meant."""
    return lambda blueprint, around: with_parts(blueprint, lambda part: None if goes(part) else part)


def _with_fields(change: Callable[[Part, Surrounding], dict[str, object]]) -> Act:
    """Gives parts other fields; none where a part has nothing of the sort."""

    def act(blueprint: Blueprint, around: Surrounding) -> Blueprint | None:
        def changed(part: Part) -> Part:
            fields = change(part, around)
            return part.evolve(**fields) or part if fields else part

        return with_parts(blueprint, changed)

    return act


# ------------------------------------------------------------------------------------------------------- one by one


def _own_keys(part: Part, around: Surrounding) -> dict[str, object]:
    """MHA is GQA with groups of one head."""
    if dict(part).get("kv_groups", 1) == 1:
        return {}
    return {"kv_groups": 1} | ({"kind": "MHA"} if part.label == "MQA" else {})


def _sliding(part: Part, around: Surrounding) -> dict[str, object]:
    """The window of its own pattern; of one without a window that which reads as many keys."""
    if not isinstance(part, Sparse) or part.sparsity in ("none", "sliding"):
        return {}
    if "sliding_window" in KNOBS[part.sparsity]:
        return {"sparsity": "sliding"}
    pairs, length = seen_pairs(part.pattern, around.seq_len), around.seq_len
    sliding = part.model_copy(update={"sparsity": "sliding"})
    sizes = range(1, length)
    enough = (
        size
        for size in sizes
        if seen_pairs(sliding.model_copy(update={"sliding_window": size}).pattern, length) >= pairs
    )
    return {"sparsity": "sliding", "sliding_window": next(enough, length)}


def _all_keys(part: Part, around: Surrounding) -> dict[str, object]:
    return {"sparsity": "none"} if isinstance(part, Sparse) and part.sparsity != "none" else {}


def _usual_rope(part: Part, around: Surrounding) -> dict[str, object]:
    """All channels rotated, by the usual wavelengths; a part without positions stays without."""
    fields, known = dict(part), type(part).model_fields
    if "rope_theta" not in fields or fields.get("rope") == "none":
        return {}
    usual = {"rope": "standard", "rope_factor": None, "rope_theta": around.priors.rope_theta_default}
    if "rope_context" in known:
        usual["rope_context"] = known["rope_context"].default
    return {name: value for name, value in usual.items() if name in fields and fields[name] != value}


def _no_selector(part: Part, around: Surrounding) -> dict[str, object]:
    return {"selector": "none"} if dict(part).get("selector", "none") != "none" else {}


def _dense(part: Part) -> Part:
    """A mixture's place taken by a layer of as many units as a token runs there, so of its FLOPs but for the router."""
    if not isinstance(part, MoE):
        return part
    return MLP(hidden=part.k * part.hidden + part.shared * part.shared_width, activation=part.activation)


def _other_norm(blueprint: Blueprint, around: Surrounding) -> Blueprint | None:
    return blueprint.evolve(norm="layernorm" if blueprint.norm == "rmsnorm" else "rmsnorm")


def _is_memory(part: Part) -> bool:
    return part.slot == "extra" and "memory" in part.counts_as()


ABLATIONS: dict[str, Ablation] = {
    "retro_off": Ablation(
        "No memory of the kind retro.",
        "it has no retro memory",
        _without(lambda part: part.label == "retro"),
    ),
    "memory_off": Ablation("No memory of any kind.", "it has no memory", _without(_is_memory)),
    "ssm_off": Ablation("No state-space layer.", "it has no state-space layer", _without(lambda p: p.slot == "ssm")),
    "foreign_off": Ablation(
        "No layer taken from another model.",
        "it has no foreign layer",
        _without(lambda part: part.label == "foreign"),
    ),
    "extras_off": Ablation(
        "Nothing but attention, state-space and feed-forward layers.",
        "it has no extras",
        _without(lambda part: part.slot == "extra"),
    ),
    "kv_groups_to_dense": Ablation(
        "Keys and values of its own for every query head.",
        "every query head has keys and values of its own",
        _with_fields(_own_keys),
    ),
    "sparsity_to_sliding": Ablation(
        "A sliding window in the place of every other sparse pattern.",
        "it has no sparse pattern but sliding windows",
        _with_fields(_sliding),
    ),
    "sparsity_off": Ablation("Attention over all tokens.", "its attention is over all tokens", _with_fields(_all_keys)),
    "selector_off": Ablation("No selector of the tokens to read.", "it has no selector", _with_fields(_no_selector)),
    "rope_reset": Ablation(
        "RoPE of all channels with the usual base.",
        "its rotation is the usual one, or it has none",
        _with_fields(_usual_rope),
    ),
    "norm_swap": Ablation("LayerNorm for RMSNorm, or the other way round.", "", _other_norm),
    "moe_to_dense": Ablation(
        "A dense layer of as many units as a token runs, in the place of every mixture.",
        "it has no mixture of experts",
        lambda blueprint, around: with_parts(blueprint, _dense),
    ),
    "recurrence_off": Ablation(
        "Every block run once.",
        "it has no recurrence",
        lambda blueprint, around: blueprint.evolve(recurrences=()),
    ),
}
#: What the older system called some of them.
OLDER = {
    "local_global_to_sliding": "sparsity_to_sliding",
    "rope_theta_default": "rope_reset",
    "remove_ssm": "ssm_off",
}
