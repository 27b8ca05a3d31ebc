"""The older system's blocks: feed-forward layers, state-space layers and extras as parts of ours."""

import re
from collections import Counter
from typing import Any

from morphogen.older.attention import FEATURE_MAPS, attention, cache
from morphogen.older.fields import Fields

ACTIVATIONS = ("silu", "gelu", "relu", "swiglu", "relu_squared")
#: Branches under their older names -> ours.
TARGETS = {"attn": "attn", "ssm": "ssm", "ffn": "ffn", "memory": "extra"}
#: Extras that are branches of their own.
MEMORIES = ("retro", "assoc_memory", "memory_tokens", "chunk_memory", "custom")
EXTRAS = (*MEMORIES, "gated", "branch_router", "layer_scale")
#: What a memory needs; for retro the default of what it may name.
SIZES = {
    "retro": (),
    "assoc_memory": ("heads", "head_dim"),
    "memory_tokens": ("tokens", "heads", "head_dim"),
    "chunk_memory": ("chunk_size", "heads", "head_dim"),
}
RETRO = {"memory_tokens": 1024, "stride": 64}
#: Memories whose output the older system multiplied by a constant.
WEIGHED = ("assoc_memory", "memory_tokens", "chunk_memory")
HIDDEN = 16
#: The factor on a state-space layer's output where none is given.
GATE = 0.1


def block(old: Fields, to: str, ids: Counter[str], seq_len: int, policy: Fields, dim: int) -> dict[str, Any]:
    """One block. ids: names that are given already. policy: the model's kv_policy."""
    found: dict[str, Any] = {}
    gate = 1.0
    if old.has("name"):
        found["id"] = _id(old.text("name"), ids)
        old.kept("name", f"{to}.id", found["id"])
    if old.has("attn"):
        part = old.inner("attn")
        found["attn"] = attention(part, f"{to}.attn", seq_len)
        found["attn"] |= cache(policy, found["attn"]["kind"], f"{to}.attn.kv_policy")
    if old.has("ssm"):
        found["ssm"] = ssm(layer := old.inner("ssm"), f"{to}.ssm")
        gate = _gate(layer, f"{to}.extras.gated")
    extras = old.listed("extras")
    branches = {slot for slot in ("attn", "ssm", "ffn") if old.has(slot)}
    branches |= {"extra"} if any(extra.text("type") in MEMORIES for extra in extras) else set()
    made = [new for extra in extras if (new := _extra(extra, f"{to}.extras", extras, branches, dim)) is not None]
    flat = [part for parts in made for part in parts]
    if gate != 1.0:
        flat.append({"kind": "gated", "targets": ["ssm"], "init_weight": gate, "learnable": False})
    if old.has("ffn"):
        found["ffn"] = ffn(old.inner("ffn"), f"{to}.ffn", dim)
    if flat:
        found["extras"] = flat
    elif old.present("extras"):
        old.idle("extras", "none of them are left" if extras else "none")
    old.rest()
    return found


def _id(name: str, ids: Counter[str]) -> str:
    """A gene id made of a label; the second of a name has a number."""
    plain = re.sub("[^A-Za-z0-9_]+", "_", name).strip("_") or "block"
    ids[plain] += 1
    while ids[plain] > 1 and ids[f"{plain}_{ids[plain]}"]:
        ids[plain] += 1
    own = plain if ids[plain] == 1 else f"{plain}_{ids[plain]}"
    ids[own] += own != plain
    return own


# ---------------------------------------------------------------------------------------------- feed-forward layers


def ffn(old: Fields, to: str, dim: int) -> dict[str, Any]:
    """A dense layer or a mixture."""
    kind = old.one_of("type", "dense", ("dense", "moe"))
    old.kept("type", f"{to}.kind")
    hidden = old.needed("hidden")
    old.kept("hidden", f"{to}.hidden")
    if kind == "moe":
        return _mixture(old, to, hidden, dim)
    activation = _activation(old, to)
    if old.number("dropout"):
        old.drop("dropout", "feed-forward layers have none here")
    else:
        old.idle("dropout", "0, which drops nothing")
    old.rest()
    return {"kind": "dense", "hidden": hidden, "activation": activation}


def _activation(old: Fields, to: str) -> str:
    old.kept("activation", f"{to}.activation")
    return old.one_of("activation", "swiglu", ACTIVATIONS).replace("relu_squared", "relu2")


def _mixture(old: Fields, to: str, hidden: int, dim: int) -> dict[str, Any]:
    experts, k = old.needed("n_experts", least=2), old.whole("k", 2, least=1)
    found: dict[str, Any] = {"kind": "moe", "hidden": hidden, "n_experts": experts, "k": min(k, experts)}
    old.kept("n_experts", f"{to}.n_experts")
    if k > experts:
        old.near("k", f"{to}.k", f"{experts}: there are no more experts")
    else:
        old.kept("k", f"{to}.k")
    if old.has("router_temperature"):
        found["router_temperature"] = old.above("router_temperature", 1.0, f"{to}.router_temperature")
    found["router_type"] = old.one_of("router_type", "softmax", ("softmax", "sigmoid"))
    old.kept("router_type", f"{to}.router_type")
    found |= _shared(old, to) | _balance(old, to)
    found["drop_policy"] = old.one_of("drop_policy", "none", ("none", "greedy"))
    old.kept("drop_policy", f"{to}.drop_policy")
    if old.has("capacity_factor") or found["drop_policy"] == "greedy":
        found["capacity_factor"] = old.above("capacity_factor", 1.2, f"{to}.capacity_factor")
    if old.truth("router_bias_detached", False):
        old.drop("router_bias_detached", "routers have no such bias here")
    else:
        old.idle("router_bias_detached", "false, which asks for nothing")
    found |= _experts(old, to, found, dim)
    old.rest()
    return found


def _shared(old: Fields, to: str) -> dict[str, Any]:
    """However many were asked for, the older system ran one."""
    asked, flag = old.whole("shared"), old.truth("shared_expert", False)
    if asked > 1:
        old.kept("shared", f"{to}.shared", "1: the older system ran one, however many were asked for")
    else:
        old.kept("shared", f"{to}.shared")
    if flag:
        old.kept("shared_expert", f"{to}.shared", "1")
    else:
        old.idle("shared_expert", "false, which asks for nothing")
    return {"shared": 1} if asked or flag else {}


def _balance(old: Fields, to: str) -> dict[str, Any]:
    """The weight of a layer's own goes before the coefficient."""
    found = old.number("balance", 0.05, least=0.0)
    if old.has("router_lb_weight"):
        found = old.number("router_lb_weight", least=0.0)
        old.kept("router_lb_weight", f"{to}.balance")
        old.idle("balance", "router_lb_weight stands in its place")
    elif old.has("balance"):
        old.kept("balance", f"{to}.balance")
    else:
        old.implied(f"{to}.balance", found, "the older default")
    if old.has("router_aux_weight"):
        old.drop(
            "router_aux_weight", "a layer has no entropy weight of its own here; train.router_entropy_coeff is of all"
        )
    return {"balance": found}


def _experts(old: Fields, to: str, found: dict[str, Any], dim: int) -> dict[str, Any]:
    """The experts as they are listed, the last of them repeated; those that are alike are stacked."""
    given, count = old.listed("experts"), found["n_experts"]
    listed = [_expert(each, f"{to}.experts", found["hidden"], dim) for each in given[:count]]
    for each in given[count:]:
        for name in each.names():
            each.idle(name, f"one more than the {count} experts: the older system never built it")
        each.rest()
    if not listed:
        old.idle("experts", "none: all are alike")
        return {}
    listed += [listed[-1]] * (count - len(listed))
    dense = Counter((part["hidden"], part["activation"]) for part in listed if part["kind"] == "dense")
    if not dense:
        return {"experts": listed}
    (hidden, activation), _ = dense.most_common(1)[0]
    usual = {"kind": "dense", "hidden": hidden, "activation": activation}
    others = [part for part in listed if part != usual]
    return {"hidden": hidden, "activation": activation, **({"experts": others} if others else {})}


def _expert(old: Fields, to: str, hidden: int, dim: int) -> dict[str, Any]:
    kind = old.one_of("type", "dense", ("dense", "ssm", "custom"))
    old.kept("type", f"{to}.kind")
    if old.whole("hops", 1, least=1) > 1:
        old.drop("hops", "an expert runs once here")
    else:
        old.idle("hops", "1, as always here")
    if kind == "ssm":
        inner = old.inner("ssm")
        part = ssm(inner, f"{to}.ssm")
        gate, said = inner.number("gate", GATE, least=0.0), "an expert's output has no factor of its own here"
        if gate == 1.0:
            inner.idle("gate", "1, which changes nothing")
        elif inner.has("gate"):
            inner.drop("gate", said)
        else:
            inner.absent("dropped", "gate", "", f"{gate:g} by default; {said}")
        inner.rest()
    elif kind == "custom":
        part = {"kind": "dense", "hidden": _custom_width(old, to, dim), "activation": "silu"}
    else:
        part = {"kind": "dense", "hidden": old.whole("hidden", hidden, least=1), "activation": _activation(old, to)}
        old.kept("hidden", f"{to}.hidden")
    old.rest()
    return part


def ssm(old: Fields, to: str) -> dict[str, Any]:
    """A state-space layer, but for the constant that its output was multiplied by."""
    if old.one_of("kind", "mamba2", ("mamba2", "ssm")) == "ssm":
        old.near("kind", f"{to}.kind", "mamba2; both were the same short convolution there")
    else:
        old.kept("kind", f"{to}.kind")
    found: dict[str, Any] = {"kind": "mamba2"}
    for name in ("d_state", "d_conv", "chunk"):
        if old.has(name):
            found[name] = old.whole(name, least=1)
            old.kept(name, f"{to}.{name}")
    old.idle("dt_rank", "the older system's models never read it")
    return found


def _gate(old: Fields, to: str) -> float:
    """The constant on a state-space layer's output, as a gate that does not learn."""
    gate = old.number("gate", GATE, least=0.0)
    if old.has("gate"):
        old.kept("gate", to, "the output's constant factor: gated [ssm] that does not learn")
    else:
        old.implied(to, gate, "the output's constant factor by default")
    old.rest()
    return gate


# ------------------------------------------------------------------------------------------------------------ extras


def _extra(old: Fields, to: str, extras: list[Fields], branches: set[str], dim: int) -> list[dict[str, Any]]:
    kind = old.one_of("type", "", EXTRAS)
    old.kept("type", f"{to}.kind")
    if kind == "custom":
        found = [{"kind": "linear_silu", "hidden": _custom_width(old, to, dim)}]
    elif kind in MEMORIES:
        only = sum(extra.text("type") in MEMORIES for extra in extras) == 1
        found = _memory(old, kind, to, only)
    else:
        found = _modifier(old, kind, to, branches)
    old.rest()
    return found


def _custom_width(old: Fields, to: str, dim: int) -> int:
    """A module that nobody registered was Linear, SiLU, Linear, of params.dim units; nothing else was read of it."""
    old.kept("name", f"{to}.kind", "an unregistered module: linear, SiLU, linear")
    params = old.inner("params")
    width = params.whole("dim", dim, least=1)
    if params.has("dim"):
        params.kept("dim", f"{to}.hidden")
    else:
        params.implied(f"{to}.hidden", width, "as wide as the model")
    for name in params.names():
        params.idle(name, "an unregistered module never read it")
    params.rest()
    return width


def _memory(old: Fields, kind: str, to: str, only: bool) -> list[dict[str, Any]]:
    found: dict[str, Any] = {"kind": kind}
    for name in SIZES[kind]:
        found[name] = old.needed(name)
        old.kept(name, f"{to}.{name}")
    if kind == "chunk_memory":
        found["stride"] = old.whole("stride", found["chunk_size"], least=1)
        if old.has("stride"):
            old.kept("stride", f"{to}.stride")
        else:
            old.implied(f"{to}.stride", found["stride"], "as long as a chunk")
    if kind == "retro":
        for name, default in RETRO.items():
            found[name] = old.cut(name) if old.has(name) else default
            if old.has(name):
                whole = found[name] == old.number(name)
                old.kept(name, f"{to}.{name}", "" if whole else f"{found[name]}: the older system cut fractions off")
            else:
                old.implied(f"{to}.{name}", default, "the older default")
        found["aggregator"] = old.one_of("aggregator", "gate", ("mean", "attention", "gate"))
        old.kept("aggregator", f"{to}.aggregator")
        found |= retro_gate(old, to)
    if kind == "assoc_memory":
        found["feature_map"] = old.one_of("feature_map", "elu", FEATURE_MAPS)
        old.kept("feature_map", f"{to}.feature_map")
    if old.has("init_std"):
        old.drop("init_std", "learned keys and values start as every other part's here")
    if old.number("dropout"):
        old.drop("dropout", "memories have none here")
    else:
        old.idle("dropout", "0, which drops nothing")
    return [found, *(_weighed(old, to, only) if kind in WEIGHED else [])]


def retro_gate(old: Fields, to: str) -> dict[str, Any]:
    weight = old.number("gating_weight", 0.5, least=0.0)
    within = min(max(weight, 0.001), 0.999)
    if within == weight:
        old.kept("gating_weight", f"{to}.gating_weight")
    else:
        old.near("gating_weight", f"{to}.gating_weight", f"{within:g}: the gate is between 0 and 1")
    return {"gating_weight": within}


def _weighed(old: Fields, to: str, only: bool) -> list[dict[str, Any]]:
    """The constant factor on a memory's output; exact where no other extra shares the slot."""
    weight = old.number("gating_weight", 0.1, least=0.0)
    if weight == 1.0:
        old.idle("gating_weight", "1, which changes nothing")
        return []
    if not only:
        said = "a gate is of all extras of a block together, and there are several"
        if old.has("gating_weight"):
            old.drop("gating_weight", said)
        else:
            old.absent("dropped", "gating_weight", "", f"{weight:g} by default; {said}")
        return []
    if old.has("gating_weight"):
        old.kept("gating_weight", f"{to}.gated", "as gated [extra] that does not learn")
    else:
        old.implied(f"{to}.gated", weight, "the memory's constant factor, by default")
    return [{"kind": "gated", "targets": ["extra"], "init_weight": weight, "learnable": False}]


def _modifier(old: Fields, kind: str, to: str, branches: set[str]) -> list[dict[str, Any]]:
    default = ["attn", "ffn", "ssm", "memory"] if kind == "branch_router" else ["attn", "ffn"]
    asked = old.words("targets") or default
    targets = list(dict.fromkeys(TARGETS[name] for name in asked if TARGETS.get(name) in branches))
    gone = [name for name in asked if TARGETS.get(name) not in branches]
    least = 2 if kind == "branch_router" else 1
    if len(targets) < least:
        for name in old.names():
            old.retell(
                name, "dropped", "", f"a {kind} that has no {least} branches to act on in this block does nothing"
            )
        return []
    said = f"without {', '.join(gone)}, which the block has not" if gone else ""
    if old.has("targets"):
        old.kept("targets", f"{to}.targets", said or ("memory is extra here" if "memory" in asked else ""))
    else:
        old.implied(f"{to}.targets", ", ".join(targets), "the older default")
    found: dict[str, Any] = {"kind": kind, "targets": targets}
    if kind == "gated":
        found |= _start(old, to, "init_weight", 0.1) | {"learnable": old.truth("learnable", True)}
        old.kept("learnable", f"{to}.learnable")
    elif kind == "layer_scale":
        found |= _start(old, to, "init", 1e-5)
        if old.truth("learnable", True):
            old.idle("learnable", "true, as always here")
        else:
            old.drop("learnable", "false there; a layer's scale always learns here")
    else:
        found |= _router(old, to)
    return [found]


def _start(old: Fields, to: str, name: str, default: float) -> dict[str, Any]:
    if old.has(name):
        old.kept(name, f"{to}.{name}")
    else:
        old.implied(f"{to}.{name}", default, "the older default")
    return {name: old.number(name, default)}


def _router(old: Fields, to: str) -> dict[str, Any]:
    found: dict[str, Any] = {"temperature": old.above("temperature", 1.0, f"{to}.temperature")}
    if old.one_of("router_type", "token", ("token", "sequence")) == "sequence":
        said = "token; the mean over a whole sequence sees the future"
        old.near("router_type", f"{to}.router_type", said)
    else:
        old.kept("router_type", f"{to}.router_type")
    if old.has("hidden"):
        found["hidden"] = old.whole("hidden", least=1)
        old.kept("hidden", f"{to}.hidden")
    else:
        said = f"{HIDDEN} units; the older router was linear without any"
        if old.present("hidden"):
            old.near("hidden", f"{to}.hidden", said)
        else:
            old.absent("approximated", "hidden", f"{to}.hidden", said)
    if old.number("dropout"):
        old.drop("dropout", "routers have none here")
    else:
        old.idle("dropout", "0, which drops nothing")
    return found
