"""Templates of compound edits of the older system as ours."""

from typing import Any

from morphogen.older.attention import FEATURE_MAPS
from morphogen.older.blocks import ACTIVATIONS, retro_gate
from morphogen.older.fields import Fields

#: Where an action acted, by what the block held -> what a blueprint must then have somewhere.
SELECTORS = {"random": "", "random_moe": "moe", "random_dense": "dense", "random_ssm": "ssm"}
#: Extra -> the operator that puts it in, and the fields of it that ours has too.
EXTRAS: dict[str, tuple[str, tuple[str, ...]]] = {
    "retro": ("insert_retro_module", ("memory_tokens", "stride", "aggregator")),
    "assoc_memory": ("insert_assoc_memory", ("heads", "head_dim", "feature_map")),
    "memory_tokens": ("insert_memory_tokens", ("tokens", "heads", "head_dim")),
    "chunk_memory": ("insert_chunk_memory", ("chunk_size", "stride", "heads", "head_dim")),
    "gated": ("toggle_gated_mix", ("init_weight", "learnable")),
    "branch_router": ("toggle_branch_router", ("hidden", "temperature")),
    "layer_scale": ("insert_layer_scale", ("init",)),
    "custom": ("insert_linear_silu", ()),
    "feedback": ("insert_linear_silu", ()),
}
#: Extras that the operators take away where they are already.
TOGGLED = ("gated", "branch_router")
#: Extra of a new block of that name, and the operators that make it so.
BLOCKS: dict[str, list[dict[str, Any]]] = {
    "dense_attn": [],
    "retro_moe": [
        {"operator": "dense_to_moe", "target": "same", "set": {"n_experts": 16, "k": 2, "balance": 0.05}},
        {"operator": "insert_retro_module", "target": "same"},
    ],
    "ssm_dense": [{"operator": "insert_ssm", "target": "same", "set": {"d_state": 16}}],
    "feedback_dense": [
        {"operator": "insert_linear_silu", "target": "same"},
        {"operator": "insert_retro_module", "target": "same"},
    ],
}
#: Knobs of a pattern, and those that each reads in our units.
SPARSE = ("sliding_window", "sw", "block_size", "block_stride", "global_stride", "dilation")
KNOBS: dict[str, tuple[str, ...]] = {
    "none": (),
    "sliding": ("sliding_window",),
    "block": ("block_size",),
    "local_global": ("sliding_window", "global_stride"),
    "dilated": ("dilation",),
    "local_block": ("sliding_window", "block_size"),
}
#: Fields that are words or truth values; of the others FRACTIONS are any numbers, the rest whole ones.
WORDS: dict[str, tuple[str, ...]] = {
    "activation": ACTIVATIONS,
    "adapter": ("linear", "gated"),
    "aggregator": ("mean", "attention", "gate"),
    "feature_map": FEATURE_MAPS,
    "gating_op": ("dense", "diagonal"),
    "gating_pos": ("none", "output", "value"),
    "qk_norm": ("none", "rms", "layer"),
}
TRUTHS = ("learnable", "concat_prelude")
FRACTIONS = ("balance", "capacity_factor", "init", "init_weight", "softcap", "temperature")


def templates(old: Fields) -> dict[str, Any]:
    """All templates of a file; those of which no action is left are left out."""
    found = [made for each in old.listed("templates") if (made := _template(each)) is not None]
    old.rest()
    return {"templates": found}


def _template(old: Fields) -> dict[str, Any] | None:
    found: dict[str, Any] = {"name": old.text("name")}
    if not found["name"]:
        raise old.refuse("name", "a name")
    old.kept("name", "templates[].name")
    if old.has("weight"):
        found["weight"] = old.number("weight", least=0.0)
        old.kept("weight", "templates[].weight")
    conditions = _conditions(old.inner("conditions"))
    actions: list[dict[str, Any]] = []
    for action in old.listed("actions"):
        for verb in action.names():
            inner = action.inner(verb)
            made, has, lacks = _action(verb, inner)
            inner.rest()
            actions += made
            conditions["has"] |= has
            conditions["lacks"] |= lacks
        action.rest()
    old.rest()
    if not actions:
        old.absent("dropped", "any action that is left", "", f"the template {found['name']} is left out")
        return None
    if not found.get("weight", 1.0):
        old.retell("weight", "dropped", "", f"0: it was never drawn; the template {found['name']} is left out")
        return None
    told = {name: sorted(value) if isinstance(value, set) else value for name, value in conditions.items() if value}
    return {**found, **({"conditions": told} if told else {}), "actions": actions}


def _conditions(old: Fields) -> dict[str, Any]:
    found: dict[str, Any] = {"has": set(), "lacks": set()}
    for name, (where, feature) in {
        "requires_ssm_block": ("has", "ssm"),
        "requires_dense_ffn": ("has", "dense"),
        "requires_recurrence": ("has", "recurrence"),
        "requires_no_recurrence": ("lacks", "recurrence"),
    }.items():
        if old.has(name):
            old.kept(name, f"conditions.{where}", feature)
            if old.truth(name, False):
                found[where].add(feature)
    for name in ("min_blocks", "max_blocks"):
        if old.whole(name):
            found[name] = old.whole(name)
            old.kept(name, f"conditions.{name}")
        else:
            old.idle(name, "0, which asks for nothing")
    for name in old.names():
        old.drop(name, "there is no such condition here")
    old.rest()
    return found


Made = tuple[list[dict[str, Any]], set[str], set[str]]


def _action(verb: str, old: Fields) -> Made:
    """Our actions in place of one, and what a blueprint then has to have and to lack."""
    makers = {
        "add_extra": _add_extra,
        "insert_block": _insert_block,
        "replace_ffn": _replace_ffn,
        "remove_block": _remove_block,
        "tune_attn": _tune_attn,
        "tune_ffn": _tune_ffn,
        "tune_router": _tune_router,
        "set_recurrence": _set_recurrence,
    }
    if verb not in makers:
        for name in old.names():
            old.drop(name, f"templates here change architectures, and {verb} is none of their edits")
        return [], set(), set()
    made, has, lacks = makers[verb](old)
    asked = old.text("selector", "random")
    wanted = SELECTORS.get(asked, "")
    if asked not in SELECTORS:
        said = f"any block, as there: the older system knew no such selector, but {', '.join(SELECTORS)}"
        old.near("selector", "actions[].target", said)
    elif wanted:
        said = f"a blueprint that has {wanted}; in which block is drawn among all where the edit applies"
        old.near("selector", "conditions.has", said)
        has = has | {wanted}
    else:
        old.kept("selector", "actions[].target", "any")
    for name in old.names():
        old.drop(name, f"{verb} has no such field here")
    return [action for action in made if action], has, lacks


def _step(operator: str, settings: dict[str, Any] | None = None, target: str = "any") -> dict[str, Any]:
    return {
        "operator": operator,
        **({"target": target} if target != "any" else {}),
        **({"set": settings} if settings else {}),
    }


def _taken(old: Fields, names: tuple[str, ...]) -> dict[str, Any]:
    """Those of the fields that are given."""
    found: dict[str, Any] = {}
    for name in names:
        if not old.has(name):
            continue
        if name in WORDS:
            found[name] = old.one_of(name, "", WORDS[name])
        elif name in TRUTHS:
            found[name] = old.truth(name, True)
        elif name in FRACTIONS:
            found[name] = old.number(name, least=0.0)
        else:
            found[name] = old.whole(name, least=1)
        old.kept(name, f"actions[].set.{name}")
    return found


def _add_extra(old: Fields) -> Made:
    kind = old.one_of("extra_type", "custom", tuple(EXTRAS))
    operator, names = EXTRAS[kind]
    old.kept("extra_type", "actions[].operator", operator)
    params = old.inner("params")
    if kind == "retro" and params.has("gating_weight"):
        settings = retro_gate(params, "actions[].set") | _taken(params, names)
    else:
        settings = _taken(params, names)
    if kind in ("custom", "feedback"):
        inner = params.inner("params")
        if inner.has("dim"):
            settings["hidden"] = inner.needed("dim")
            inner.kept("dim", "actions[].set.hidden")
        inner.rest()
    for name in params.names():
        params.drop(name, f"{operator} sets no such field")
    params.rest()
    return [_step(operator, settings)], set(), {kind} if kind in TOGGLED else set()


def _insert_block(old: Fields) -> Made:
    name = old.one_of("block_template", "dense_attn", tuple(BLOCKS))
    old.near("block_template", "actions", f"insert_block, made into a {name} by edits that follow")
    old.near("position", "actions[].target", "a new block is put in anywhere here")
    return [_step("insert_block"), *BLOCKS[name]], set(), set()


def _replace_ffn(old: Fields) -> Made:
    if old.one_of("new_type", "dense", ("dense", "moe")) == "dense":
        old.kept("new_type", "actions[].operator", "moe_to_dense")
        return [_step("moe_to_dense")], {"moe"}, set()
    old.kept("new_type", "actions[].operator", "dense_to_moe")
    return [_step("dense_to_moe", _taken(old, ("n_experts", "k", "balance", "capacity_factor")))], {"dense"}, set()


def _remove_block(old: Fields) -> Made:
    return [_step("delete_block")], set(), set()


def _tune_attn(old: Fields) -> Made:
    made: list[dict[str, Any]] = []
    if (settings := _sparsity(old)) is not None:
        made.append(_step("tune_attn_sparsity", settings))
    if old.has("qk_norm_max"):
        old.near("qk_norm_max", "actions[].set.qk_norm", "rms; there the branch's input was clamped")
        made.append(_step("toggle_qk_norm", {"qk_norm": "rms"}))
    if old.has("qk_norm"):
        made.append(_step("toggle_qk_norm", _taken(old, ("qk_norm",))))
    if old.has("softcap"):
        made.append(_step("tune_softcap", _taken(old, ("softcap",))))
    if old.has("gating_pos"):
        made.append(_step("tune_attn_gating", _taken(old, ("gating_pos", "gating_op"))))
    return made, {"attn"} if made else set(), set()


def _sparsity(old: Fields) -> dict[str, Any] | None:
    """The pattern and its knobs; a window alone slides. None where no pattern is named."""
    pattern = old.one_of("sparsity", "none", tuple(KNOBS))
    window = next((name for name in ("sliding_window", "sw") if old.has(name)), None)
    if window is not None and pattern == "none":
        pattern = "sliding"
    elif not old.has("sparsity"):
        for name in SPARSE:
            if old.has(name):
                old.drop(name, "an edit here sets a pattern with its knobs, and no sparsity is named")
        return None
    settings: dict[str, Any] = {"sparsity": pattern}
    if window is not None and "sliding_window" in KNOBS[pattern]:
        settings["sliding_window"] = old.whole(window, least=1)
        old.kept(window, "actions[].set.sliding_window")
    settings |= _taken(old, tuple(name for name in KNOBS[pattern] if name != "sliding_window"))
    old.kept("sparsity", "actions[].set.sparsity", "" if old.text("sparsity") == pattern else "a window alone slides")
    for name in SPARSE:
        if old.has(name):
            old.drop(name, f"sparsity {pattern} reads none, or in other units")
    return settings


def _tune_ffn(old: Fields) -> Made:
    made: list[dict[str, Any]] = []
    if old.has("activation"):
        settings = _taken(old, ("activation",))
        settings["activation"] = settings["activation"].replace("relu_squared", "relu2")
        made.append(_step("change_activation", settings))
    if old.has("hidden"):
        made.append(_step("widen_ffn", _taken(old, ("hidden",))))
    return made, {"dense"} if made else set(), set()


def _tune_router(old: Fields) -> Made:
    made: list[dict[str, Any]] = []
    if old.has("temperature"):
        made.append(_step("tune_router", {"router_temperature": old.number("temperature", least=0.0) or 1.0}))
        old.kept("temperature", "actions[].set.router_temperature")
    if old.has("lb_coeff"):
        made.append(_step("tune_router_coeffs", {"balance": old.number("lb_coeff", least=0.0)}))
        old.near("lb_coeff", "actions[].set.balance", "of one mixture; there of the whole training")
    return made, {"moe"} if made else set(), set()


def _set_recurrence(old: Fields) -> Made:
    names = ("adapter", "concat_prelude", "train_recurrence", "max_train_recurrence")
    settings = _taken(old, names)
    for name in ("start", "end", "start_fraction", "end_fraction"):
        if old.has(name):
            old.near(name, "actions[].operator", "over which blocks is drawn")
    return [_step("add_recurrence", settings)], set(), {"recurrence"}
