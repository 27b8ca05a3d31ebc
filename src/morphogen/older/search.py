"""The older system's search in our terms."""

from collections.abc import Mapping
from typing import Any

from morphogen.figures import find
from morphogen.older.fields import Fields

#: Older figure -> ours, where it has another name; None where there is none.
FIGURES: Mapping[str, str | None] = {
    "ppl_code": "ppl",
    "ppl_eval": "ppl",
    "ram": "params",
    "passkey_loss": "nll_passkey",
    "passkey_acc": "acc_passkey",
    "flops_per_token_est": "flops_per_token",
    "capacity_overflow": "router_overflow",
    "ppl_math": None,
    "ppl_math_proxy": None,
    "selector_topk_avg": None,
}
#: Why there is none, where more can be said.
WHY = {
    "ppl_math": "there it was ppl, and a hundredth more for each mixture; probe:math measures it here",
    "ppl_math_proxy": "there it was ppl, and a hundredth more for each mixture",
    "selector_topk_avg": "it is a field of the blueprint",
}
#: Composites that the older system had ready-made: name -> divided, divisor, epsilon.
READY_MADE = {
    "ppl_per_long_recall": ("ppl", "long_recall", 1e-3),
    "ppl_per_param": ("ppl", "params", 1e-6),
    "ppl_per_throughput": ("ppl", "throughput", 1e-6),
}
#: Objectives of a file that names none.
OBJECTIVES = ("ppl_code", "ppl_math", "long_recall", "throughput", "ram")
#: Bounds on costs -> ours.
THRESHOLDS = {
    "max_params": "params",
    "max_kv_bytes_per_token": "kv_bytes_per_token",
    "max_flops_per_token": "flops_per_token",
}
GATES = ("min_layers", "min_moe_blocks", "min_selector_blocks", "min_memory_blocks", "min_recurrences")
MINIMISED = ("ppl", "loss", "ram", "params", "bytes", "flops", "time", "seconds", "instability")
SELECTIONS = ("weighted", "pareto_uniform", "lexicase", "map_elites")
#: What adaptive mutation took where a file says nothing.
ADAPTIVE = {
    "adaptive_mutation_eta": 0.1,
    "adaptive_mutation_min_weight": 0.05,
    "adaptive_mutation_max_weight": 5.0,
}


def figure(name: str, composites: Mapping[str, Any]) -> str | None:
    """What an older figure is called here; None where there is none."""
    if name in composites:
        return name
    own = FIGURES.get(name, name)
    return own if own is not None and find(own) is not None else None


def evolution(old: Fields) -> dict[str, Any]:
    """The section `evolution`."""
    found: dict[str, Any] = {}
    found |= _sizes(old) | _rungs(old) | _promotion(old)
    found["parent_selection"] = old.one_of("parent_selection", "weighted", SELECTIONS)
    if old.has("parent_selection"):
        old.kept("parent_selection", "evolution.parent_selection")
    else:
        old.implied("evolution.parent_selection", "weighted", "the older default")
    found["mutation_steps"] = [1, 1]
    old.implied("evolution.mutation_steps", [1, 1], "exactly as many as --mutation-steps said, by default one")
    if old.has("adaptive_mutation"):
        found["adaptive_mutation"] = old.truth("adaptive_mutation", False)
        old.kept("adaptive_mutation", "evolution.adaptive_mutation")
    for name, default in ADAPTIVE.items():
        value = old.number(name, default, least=0.0)
        if old.has(name):
            found[name] = value
            old.kept(name, f"evolution.{name}")
        elif found.get("adaptive_mutation"):
            found[name] = value
            old.implied(f"evolution.{name}", value, "the older default")
    if old.has("weight_inheritance"):
        found["weight_inheritance"] = old.one_of("weight_inheritance", "parent", ("parent", "init", "scratch"))
        old.kept("weight_inheritance", "evolution.weight_inheritance")
    if found.get("weight_inheritance") == "init":
        found["weight_inheritance"] = "scratch"
        said = "scratch: the checkpoint of other names that candidates began with cannot be read"
        old.retell("weight_inheritance", "approximated", "evolution.weight_inheritance", said)
    found |= _thresholds(old)
    composites = _composites(old)
    composites |= _ready_made(old, composites)
    found["objectives"] = _objectives(old, composites)
    found["composite_metrics"] = composites
    return {name: value for name, value in found.items() if value != {}}


def _sizes(old: Fields) -> dict[str, Any]:
    """There a pool from which one child a generation was bred; here so many children a generation."""
    found: dict[str, Any] = {}
    population = old.whole("population", 12, least=1)
    share = old.number("topk_keep", 0.33, least=0.0)
    found["population"] = population
    found["topk_keep"] = max(1, round(population * share) if share <= 1.0 else round(share))
    kept = f"{found['topk_keep']} survivors, which breed: {share:g} of {population}"
    if old.has("population"):
        said = "offspring of a generation; there the size of a pool to which one child was added at a time"
        old.near("population", "evolution.population", said)
    else:
        old.implied("evolution.population", population, "the older default")
    if old.has("topk_keep"):
        old.near("topk_keep", "evolution.topk_keep", kept)
    else:
        old.absent("approximated", "topk_keep", "evolution.topk_keep", kept)
    if old.has("crossover_prob"):
        found["crossover_prob"] = old.number("crossover_prob", 0.2, least=0.0)
        old.kept("crossover_prob", "evolution.crossover_prob")
    if old.whole("archive_max_elites"):
        found["archive_max_elites"] = old.whole("archive_max_elites")
        old.kept("archive_max_elites", "evolution.archive_max_elites")
    elif old.has("archive_max_elites"):
        old.idle("archive_max_elites", "0: as many as the older system chose itself")
    if old.has("structural_elite_k"):
        found["structural_elite_k"] = old.whole("structural_elite_k")
        said = "the most novel of the others; there those of the most blocks of some kinds"
        if found["structural_elite_k"]:
            old.near("structural_elite_k", "evolution.structural_elite_k", said)
        else:
            old.kept("structural_elite_k", "evolution.structural_elite_k")
    if old.has("generations"):
        found["generations"] = max(1, round(old.whole("generations") / population))
        said = f"{found['generations']} of {population} children each; there one child a generation"
        old.near("generations", "evolution.generations", said)
    return found


def _rungs(old: Fields) -> dict[str, Any]:
    """Rung 2's tokens were those of both."""
    first, both = old.whole("rung1_tokens", 200_000), old.whole("rung2_tokens", 1_000_000)
    for name, value in (("rung1_tokens", first), ("rung2_tokens", max(0, both - first))):
        if old.has(name):
            said = f"{value:,} beyond rung 1; there {both:,} in all" if name == "rung2_tokens" else ""
            old.kept(name, f"evolution.{name}", said)
        else:
            old.implied(f"evolution.{name}", value, "the older default")
    return {"rung1_tokens": first, "rung2_tokens": max(0, both - first)}


def _promotion(old: Fields) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in ("promotion_prob", "promotion_steps_multiplier", "promotion_tokens_multiplier"):
        if old.has(name):
            found[name] = old.number(name, least=0.0)
            old.kept(name, f"evolution.{name}")
    for name in ("promotion_min_layers", "promotion_min_moe_blocks"):
        if old.has(name):
            found[name] = old.whole(name)
            old.kept(name, f"evolution.{name}")
    for name in ("promotion_min_router_entropy", "promotion_min_recurrence_gain", "promotion_max_instability"):
        if not old.has(name):
            continue
        if name.startswith("promotion_min") and old.number(name) <= 0.0:
            old.kept(name, f"evolution.{name}", "null: 0 asked for nothing")
            continue
        found[name] = old.number(name, least=0.0)
        old.kept(name, f"evolution.{name}")
    return found


def _thresholds(old: Fields) -> dict[str, Any]:
    """Bounds on costs, and gates on structure."""
    inner, bounds, found = old.inner("rung0_thresholds"), {}, {}
    for name in inner.names():
        if name in THRESHOLDS:
            bounds[THRESHOLDS[name]] = inner.number(name, least=0.0)
            inner.kept(name, f"evolution.rung0_thresholds.{THRESHOLDS[name]}")
        elif name in GATES:
            found[name] = inner.whole(name)
            inner.kept(name, f"evolution.{name}")
        elif name.startswith("gate_entropy"):
            inner.idle(name, "only the simulator read it")
        elif name.startswith(("min_", "max_")):
            inner.drop(name, "there is no such cost here")
    inner.rest()
    for name in GATES:
        if old.has(name):
            found[name] = old.whole(name)
            old.kept(name, f"evolution.{name}")
    if found.get("min_layers") == 0:
        del found["min_layers"]
    return {"rung0_thresholds": bounds, **found}


def _composites(old: Fields) -> dict[str, Any]:
    """A list there, by name here."""
    found: dict[str, Any] = {}
    for item in old.listed("composite_metrics"):
        name, op = item.text("name"), item.one_of("op", "ratio", ("ratio", "product", "weighted_sum"))
        to = f"evolution.composite_metrics.{name}"
        terms = item.inner("terms")
        if op == "weighted_sum":
            parts = {term: terms.number(term, 1.0) for term in terms.names()}
        else:
            both = [item.text(field) for field in ("numerator", "denominator") if item.has(field)]
            parts = dict.fromkeys(both or terms.names(), 1.0)
        own = {part: figure(part, found) for part in parts}
        lacking = [part for part, name_here in own.items() if name_here is None]
        if lacking or not name or not parts or (op != "weighted_sum" and len(parts) < 2):
            said = f"there is no figure {', '.join(lacking)} here" if lacking else "it says too little"
            for field in item.names():
                item.drop(field, said)
            for term in terms.names():
                terms.drop(term, said)
            continue
        values = {str(own[part]): weight for part, weight in parts.items()}
        found[name] = {"op": op, "of": values if op == "weighted_sum" else list(values)}
        found[name]["better"] = _better(name)
        for field in ("name", "op", "numerator", "denominator"):
            item.kept(field, to)
        for term in terms.names():
            terms.kept(term, f"{to}.of")
        if op == "ratio":
            found[name]["epsilon"] = item.number("epsilon", 1e-6, least=0.0)
            item.kept("epsilon", f"{to}.epsilon", "the least that a divisor counts")
        else:
            item.idle("epsilon", f"{op} reads none")
        terms.rest()
        item.rest()
    if old.present("composite_metrics") and not found:
        old.idle("composite_metrics", "none are left")
    return found


def _ready_made(old: Fields, composites: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the older system's own that are objectives."""
    asked = old.inner("objectives").names() or old.words("pareto_objectives")
    found = {}
    for name, (divided, divisor, epsilon) in READY_MADE.items():
        if name in asked and name not in composites:
            found[name] = {"op": "ratio", "of": [divided, divisor], "epsilon": epsilon, "better": "min"}
            old.implied(f"evolution.composite_metrics.{name}", f"{divided} / {divisor}", "ready-made there")
    return found


def _better(name: str) -> str:
    """Which way the older system took a figure to be better that it was not told of."""
    return "min" if any(part in name for part in MINIMISED) else "max"


def _objectives(old: Fields, composites: Mapping[str, Any]) -> dict[str, Any]:
    """A mapping goes before the list; both name older figures."""
    found: dict[str, Any] = {}
    given, listed = old.inner("objectives"), old.words("pareto_objectives")
    for name in given.names():
        own = figure(name, composites)
        if own is None:
            given.drop(name, WHY.get(name, "there is no such figure here"))
            continue
        found[own] = given.one_of(name, "min", ("min", "max"))
        given.kept(name, f"evolution.objectives.{own}", _said(name))
    if given.names():
        given.rest()
        if old.has("pareto_objectives"):
            old.idle("pareto_objectives", "objectives stand in their place")
        return found
    given.rest()
    names = listed or list(OBJECTIVES)
    gone = []
    for name in names:
        own = figure(name, composites)
        known = None if own is None else find(own)
        if own is None:
            gone.append(name)
        elif known is not None and known.better != "none":
            found[own] = known.better
        else:
            found[own] = _better(name)
    said = ", ".join(f"{name}: {way}" for name, way in found.items())
    if old.has("pareto_objectives"):
        old.kept("pareto_objectives", "evolution.objectives", said)
    else:
        old.implied("evolution.objectives", said, "the older default")
    for name in gone:
        why = WHY.get(name, "there is no such figure here")
        old.absent("dropped", f"the objective {name}", "", why)
    return found


def _said(name: str) -> str:
    return {
        "long_recall": "measured by a probe; there reckoned from the number of memory blocks",
        "passkey_loss": "of the probe in data",
        "ram": "there two bytes a parameter",
    }.get(name, "")
