"""A whole experiment of the older system."""

from collections import Counter
from typing import Any

from morphogen.older.attention import tell_cache
from morphogen.older.blocks import block
from morphogen.older.fields import Fields
from morphogen.older.search import evolution
from morphogen.older.training import data, passkey, train

#: Pairs of a recall probe at most, and the tokens that each needs, twice.
PAIRS, PAIR_TOKENS = 8, 4
#: Tokens of a passkey at most; it stands in a sequence twice, each time after a mark.
KEY_TOKENS = 5
#: Probe -> figures that only it gives.
NEEDED = {"mqar": ("long_recall", "recall_nll"), "passkey": ("nll_passkey", "acc_passkey")}
#: A probe's share of the training sequences.
PROBE_SHARE = 0.05
MOST_STEPS = 64
PENALTY = "compute_penalty_weight"
#: Prior -> what it is above.
PRIORS = {"tokens_per_param": 0.0, "window_scale": 0.0, "rope_theta_default": 1.0, PENALTY: 0.0}


def experiment(old: Fields) -> dict[str, Any]:
    """All sections. old: the whole file."""
    found: dict[str, Any] = {}
    section = old.inner("data")
    found["data"] = data(section)
    model, sizes = old.inner("model"), {"seq_len": found["data"]["seq_len"]}
    found["model"] = _model(model, **sizes)
    blocks = found["model"]["blocks"]
    training = old.inner("train")
    has_moe = any(each.get("ffn", {}).get("kind") == "moe" for each in blocks)
    found["train"] = train(training, found["model"]["emb"].get("vocab"), has_moe)
    found["evolution"] = evolution(search := old.inner("evolution"))
    asked = passkey(training, sizes["seq_len"])
    training.rest()
    budget = found["evolution"]["rung1_tokens"] + found["evolution"]["rung2_tokens"]
    found["train"].setdefault("max_tokens", max(1, budget))
    _probes(search, found, asked)
    search.rest()
    found["priors"] = _priors(old.inner("priors"))
    old.rest()
    return {name: found[name] for name in ("model", "train", "data", "evolution", "priors") if found[name]}


def _probes(search: Fields, found: dict[str, Any], asked: int | None) -> None:
    """Probes, where an objective needs one or the older copy task was asked for."""
    evolution, data = found["evolution"], found["data"]
    figures = [*evolution["objectives"]]
    figures += [name for each in evolution.get("composite_metrics", {}).values() for name in each["of"]]
    shortest = min(data["seq_len"], asked or data["seq_len"])
    sizes = {"mqar": min(PAIRS, (data["seq_len"] + 1) // PAIR_TOKENS), "passkey": min(KEY_TOKENS, (shortest - 1) // 2)}
    weight = float(f"{PROBE_SHARE * sum(shard.get('weight', 1.0) for shard in data['shards']):.3g}")
    made = {
        "mqar": {"source": f"probe:mqar:{sizes['mqar']}", "weight": weight},
        "passkey": {"source": "probe:passkey", "weight": weight, **({"lengths": [asked]} if asked else {})},
    }
    if sizes["passkey"] < KEY_TOKENS:
        made["passkey"]["source"] = f"probe:passkey:{sizes['passkey']}"
    for kind, shard in made.items():
        needs = dict.fromkeys(name for name in figures if name in NEEDED[kind])
        if needs or (kind == "passkey" and asked):
            data["shards"] = [*data["shards"], shard]
        if needs:
            said = f"{shard['source']}, a small share of the training: it measures {' and '.join(needs)}"
            search.absent("approximated", f"the probe {kind}", "data.shards", said)


def _model(old: Fields, seq_len: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if old.has("name"):
        found["name"] = old.text("name")
        old.kept("name", "model.name")
    head = old.inner("head")
    found["emb"] = _embedding(old.inner("emb"), head)
    if old.has("norm"):
        old.kept("norm", "model.norm")
    else:
        old.implied("model.norm", "layernorm", "the older default")
    found["norm"] = old.one_of("norm", "layernorm", ("layernorm", "rmsnorm"))
    policy, ids = old.inner("kv_policy"), Counter[str]()
    blocks = old.listed("blocks")
    if not blocks:
        raise old.refuse("blocks", "at least one block")
    dim = found["emb"]["dim"]
    places = [f"model.blocks[{i}]" for i in range(len(blocks))]
    made = [block(each, to, ids, seq_len, policy, dim) for each, to in zip(blocks, places, strict=True)]
    found["blocks"] = made
    tell_cache(policy, is_read=any("kv_policy" in each.get("attn", {}) for each in made))
    if loops := _recurrences(old.listed("recurrences"), len(made)):
        found["recurrences"] = loops
    elif old.present("recurrences") and not old.listed("recurrences"):
        old.idle("recurrences", "none")
    if head.has("tie_embeddings"):
        head.kept("tie_embeddings", "model.head.tie_embeddings")
        found["head"] = {"tie_embeddings": head.truth("tie_embeddings", True)}
    head.rest()
    if old.has("macro"):
        old.drop("macro", "the older system's models never read it")
    old.rest()
    return found


def _embedding(emb: Fields, head: Fields) -> dict[str, Any]:
    found: dict[str, Any] = {"dim": emb.needed("dim")}
    emb.kept("dim", "model.emb.dim")
    out, table = head.whole("vocab"), emb.whole("vocab")
    if not (out or table):
        said = "a number of tokens, which every file of the older system has (is this one of morphogen's own?)"
        raise head.refuse("vocab", said)
    found["vocab"] = max(out, table)
    head.kept("vocab", "model.emb.vocab", "" if out in (0, found["vocab"]) else f"{found['vocab']}, that of emb")
    emb.kept("vocab", "model.emb.vocab", "" if table in (0, found["vocab"]) else f"{found['vocab']}, that of head")
    emb.idle("rope", "the older system never read it; positions are the attention's")
    if emb.has("dropout"):
        share = emb.number("dropout", least=0.0)
        if share < 1.0:
            emb.kept("dropout", "model.emb.dropout")
        else:
            emb.drop("dropout", "1 would drop everything")
        found |= {"dropout": share} if 0.0 < share < 1.0 else {}
    if emb.has("init_std"):
        found["init_std"] = emb.above("init_std", 0.02, "model.emb.init_std")
    emb.rest()
    return found


def _recurrences(loops: list[Fields], blocks: int) -> list[dict[str, Any]]:
    """Loops in order of their starts, as the older model ran them: ends cut off, and one that begins within another, or
    past the end, never entered."""
    found: list[dict[str, Any]] = []
    free = 0
    for old in sorted(loops, key=lambda loop: loop.whole("start")):
        start, end = old.whole("start"), min(old.whole("end", blocks, least=1), blocks)
        lost = ""
        if start >= blocks:
            lost = f"it starts past the model's {blocks} blocks: the older model never entered it"
        elif start < free:
            lost = f"it starts before the one ahead of it ends at {free}: the older model never entered it"
        elif end <= start:
            lost = "it is empty"
        if lost:
            for name in old.names():
                old.idle(name, lost)
            old.rest()
            continue
        free = end
        to = f"model.recurrences[{len(found)}]"
        if end - start == 1:
            said = "a loop of one block: the older model skipped the block; here it runs, once"
            old.near("start", "", said)
            old.near("end", "", said)
            for name in old.names():
                old.idle(name, said)
            old.rest()
            continue
        found.append(_recurrence(old, to, start, end))
    return found


def _recurrence(old: Fields, to: str, start: int, end: int) -> dict[str, Any]:
    found: dict[str, Any] = {"start": start, "end": end}
    old.kept("start", f"{to}.start")
    cut = old.whole("end", end) != end
    old.kept("end", f"{to}.end", f"{end}, the end of the model, as there" if cut else "")
    if old.has("adapter"):
        found["adapter"] = old.one_of("adapter", "linear", ("linear", "gated"))
        old.kept("adapter", f"{to}.adapter")
    if old.has("concat_prelude"):
        found["concat_prelude"] = old.truth("concat_prelude", True)
        old.kept("concat_prelude", f"{to}.concat_prelude")
    old.idle("adapter_dim", "the older system never read it")
    if old.one_of("init_state", "zeros", ("zeros", "noise")) == "noise":
        found["start_state"] = "noise"
        if not old.has("noise_std"):
            old.absent("approximated", "noise_std", f"{to}.start_state", "N(0, 1); 0.02 by default there")
    old.kept("init_state", f"{to}.start_state")
    if found.get("start_state") == "noise" and old.number("noise_std", 1.0) != 1.0:
        old.near("noise_std", f"{to}.start_state", "N(0, 1), whatever it was there")
    else:
        old.idle("noise_std", "a start of zeros has no noise" if "start_state" not in found else "1, as always here")
    return found | _steps(old, to)


def _steps(old: Fields, to: str) -> dict[str, Any]:
    """How often, within what is possible here: twice at least, 64 times at most."""
    found: dict[str, Any] = {}
    last = min(max(old.whole("max_train_recurrence", 4, least=1), 2), MOST_STEPS)
    first = min(old.whole("train_recurrence", 1, least=1), last)
    for name, value in (("train_recurrence", first), ("max_train_recurrence", last)):
        if old.has(name):
            found[name] = value
            if value == old.whole(name):
                old.kept(name, f"{to}.{name}")
            else:
                old.near(name, f"{to}.{name}", f"{value} is the nearest that there is")
    if old.has("curriculum_fraction"):
        share = old.number("curriculum_fraction", least=0.0)
        found["curriculum_fraction"] = min(1.0, share)
        if share <= 1.0:
            old.kept("curriculum_fraction", f"{to}.curriculum_fraction")
        else:
            old.near("curriculum_fraction", f"{to}.curriculum_fraction", "1, the whole training")
    asked = old.wholes("test_recurrences") if old.has("test_recurrences") else [1, 2, 4, 8]
    found["test_recurrences"] = list(dict.fromkeys(max(1, n) for n in asked if n <= MOST_STEPS))
    if not old.has("test_recurrences"):
        old.implied(f"{to}.test_recurrences", asked, "the older default")
    elif max(asked, default=0) > MOST_STEPS:
        old.near("test_recurrences", f"{to}.test_recurrences", f"without more than {MOST_STEPS} steps")
    else:
        ran = "1 where it says less, as there" if min(asked, default=1) < 1 else ""
        old.kept("test_recurrences", f"{to}.test_recurrences", ran)
    old.rest()
    return found


def _priors(old: Fields) -> dict[str, float]:
    """What is ordinary. There figures of the distance from it were weighed, by default with 0."""
    found: dict[str, float] = {}
    for name, least in PRIORS.items():
        if not old.has(name):
            continue
        value = old.number(name, least=0.0)
        if value > least:
            found[name] = value
            old.kept(name, f"priors.{name}")
        elif value:
            old.drop(name, f"it is above {least:g} here")
        else:
            old.idle(name, "0, which asks for nothing")
    if found.get(PENALTY):
        said = "the weight of FLOPs per token whenever parents are drawn; there a part of the distance from the priors"
        old.retell(PENALTY, "approximated", f"priors.{PENALTY}", said)
    if old.number("prior_weight"):
        old.drop("prior_weight", "the distance from the priors is no figure here")
    else:
        old.idle("prior_weight", "0, which asks for nothing")
    old.rest()
    return found
