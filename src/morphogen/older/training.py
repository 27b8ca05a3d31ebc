"""How the older system trained, and on what text, in our terms."""

import math
import re
from typing import Any

from morphogen.older.fields import Fields

#: What the older system took where a file says nothing, and we would not.
DEFAULTS: dict[str, Any] = {"warmup": 2000, "bf16": True, "grad_ckpt": True, "weight_decay": 0.01}
#: AdamW's and Lion's own.
BETAS = {"adamw": (0.9, 0.999), "lion": (0.9, 0.99)}
PPL_STOP = 2.5
#: Data sets whose text is in another column than ours would find alone -> that column, by a part of their names.
COLUMNS = {"gsm8k": "question", "mgsm": "question", "github-code": "code"}
_ROUTERS = (
    "there this is of routers: nearest is evolution.rung1_gates.router_entropy, which models without a mixture fail"
)


def train(old: Fields, vocab: int | None, has_moe: bool) -> dict[str, Any]:
    """The section `train`."""
    to = "train"
    found: dict[str, Any] = {"lr": old.number("lr", least=0.0)}
    if not found["lr"]:
        raise old.refuse("lr", "a number above 0")
    old.kept("lr", "train.lr")
    if old.has("grad_checkpoint"):
        found["grad_ckpt"] = old.truth("grad_checkpoint", True)
        old.kept("grad_checkpoint", "train.grad_ckpt")
    for name in ("bf16", "grad_ckpt"):
        if old.has(name):
            found[name] = old.truth(name, True)
            old.kept(name, f"{to}.{name}")
    for name in ("warmup", "seed"):
        if old.has(name):
            found[name] = old.whole(name)
            old.kept(name, f"{to}.{name}")
    for name in ("clip", "weight_decay", "router_entropy_coeff"):
        if old.has(name):
            found[name] = old.number(name, least=0.0)
            old.kept(name, f"{to}.{name}")
    for name, value in DEFAULTS.items():
        if name not in found:
            found[name] = value
            old.implied(f"train.{name}", value, "the older default")
    if not found.get("clip", 1.0):
        del found["clip"]
        old.retell("clip", "dropped", "", "0 clipped nothing; gradients are clipped always here")
    found |= _budget(old) | _guards(old, vocab) | _balance(old, has_moe) | _optimizer(old)
    if old.has("init_checkpoint"):
        old.drop("init_checkpoint", "weights here are safetensors of other names; no pickle is ever loaded")
    return found


def _budget(old: Fields) -> dict[str, Any]:
    if old.whole("max_tokens"):
        old.kept("max_tokens", "train.max_tokens")
        return {"max_tokens": old.whole("max_tokens")}
    old.idle("max_tokens", "none: as many as the rungs have")
    return {}


def _guards(old: Fields, vocab: int | None) -> dict[str, Any]:
    """What ends a training early. The older entropy was that of routers; ours, of predictions, is switched off."""
    found: dict[str, Any] = {"entropy_threshold": 0.0}
    for name in ("entropy_threshold", "entropy_patience"):
        if old.number(name) > 0.0:
            old.drop(name, _ROUTERS)
        elif old.has(name):
            old.idle(name, "0, which asks for nothing")
    old.implied("train.entropy_threshold", 0, "the older system asked nothing of predictions")
    if old.number("instability_threshold", least=0.0):
        found["instability_threshold"] = old.number("instability_threshold")
        old.kept("instability_threshold", "train.instability_threshold")
    else:
        old.drop("instability_threshold", "0 ended every training at its first step; the default stands in its place")
    if old.has("no_improve_patience"):
        found["no_improve_patience"] = old.whole("no_improve_patience", least=1)
        old.kept("no_improve_patience", "train.no_improve_patience")
    start = math.log(vocab or 50_257)
    tolerance = old.number("improvement_tolerance", 1e-3, least=0.0)
    found["improvement_tolerance"] = float(f"{tolerance / start:.3g}")
    said = f"{tolerance:g} nats there; here a share of the loss, {found['improvement_tolerance']:g} of ln(vocab)"
    if old.has("improvement_tolerance"):
        old.near("improvement_tolerance", "train.improvement_tolerance", said)
    else:
        old.absent("translated", "improvement_tolerance", "train.improvement_tolerance", said)
    if old.number("ppl_stop_threshold"):
        found["ppl_stop_threshold"] = old.number("ppl_stop_threshold")
        old.kept("ppl_stop_threshold", "train.ppl_stop_threshold")
    elif old.present("ppl_stop_threshold"):
        old.kept("ppl_stop_threshold", "train.ppl_stop_threshold", "none")
    else:
        found["ppl_stop_threshold"] = PPL_STOP
        old.implied("train.ppl_stop_threshold", PPL_STOP, "the older default")
    return found


def _balance(old: Fields, has_moe: bool) -> dict[str, Any]:
    """There one coefficient stood in place of every layer's; here it multiplies them."""
    coeff = old.number("router_lb_coeff", least=0.0)
    if old.has("router_lb_coeff"):
        said = "there it stood in place of a layer's balance, without a gradient; here it multiplies that"
        (old.near if has_moe else old.kept)("router_lb_coeff", "train.router_lb_coeff", said)
        return {"router_lb_coeff": coeff}
    if has_moe:
        old.implied("train.router_lb_coeff", 0.0, "the older default: no load-balance loss")
        return {"router_lb_coeff": 0.0}
    return {}


def _optimizer(old: Fields) -> dict[str, Any]:
    inner = old.inner("optimizer")
    name = inner.one_of("name", "adamw", ("adamw", "lion", "muon"))
    found: dict[str, Any] = {"name": name}
    inner.kept("name", "train.optimizer.name")
    for field in ("lr", "weight_decay", "eps"):
        if inner.has(field):
            found[field] = inner.number(field, least=0.0)
            inner.kept(field, f"train.optimizer.{field}")
    if name == "lion" and found.pop("eps", None) is not None:
        inner.retell("eps", "dropped", "", "lion has none")
    betas = tuple(inner.numbers("betas"))
    if inner.has("betas"):
        if len(betas) != 2:
            raise inner.refuse("betas", "two numbers")
        inner.kept("betas", "train.optimizer.betas")
    elif name in BETAS:
        betas = BETAS[name]
        inner.idle("betas", "null: the older default, which stands in our file")
        inner.implied("train.optimizer.betas", list(betas), "the older default")
    inner.rest()
    return {"optimizer": {**found, **({"betas": list(betas)} if betas else {})}}


PASSKEY = re.compile("passkey_eval_.*")


def passkey(old: Fields, seq_len: int) -> int | None:
    """The length at which the probe is asked that stands in for the older copy task; None where there was none."""
    names = [name for name in old.names() if PASSKEY.fullmatch(name)]
    if not old.whole("passkey_eval_steps"):
        for name in names:
            old.idle(name, "without passkey_eval_steps nothing was asked")
        return None
    length = old.whole("passkey_eval_seq_len", seq_len, least=8)
    said = "probe:passkey, a share of the training sequences; there a copy of the model trained apart for so many steps"
    old.near("passkey_eval_steps", "data.shards", said)
    if old.has("passkey_eval_seq_len"):
        old.kept("passkey_eval_seq_len", "data.shards[].lengths")
    for name in names:
        old.drop(name, "the probe has a rule of its own for it")
    return length


# -------------------------------------------------------------------------------------------------------------- data


def data(old: Fields) -> dict[str, Any]:
    """The section `data`."""
    found: dict[str, Any] = {"tokenizer": old.text("tokenizer")}
    if not found["tokenizer"]:
        raise old.refuse("tokenizer", "the name of a tokenizer")
    old.kept("tokenizer", "data.tokenizer")
    revision = old.text("hf_revision", "main")
    for name, default in (("seq_len", 2048), ("batch_size", 1)):
        found[name] = old.whole(name, default, least=1)
        if old.has(name):
            old.kept(name, f"data.{name}")
        else:
            old.implied(f"data.{name}", default, "the older default")
    for role in ("shards", "eval_shards", "healing_shards"):
        shards = [_shard(shard, f"data.{role}", revision) for shard in old.listed(role)]
        if shards:
            found[role] = _named(shards)
        elif old.present(role):
            old.idle(role, "none")
    if not found.get("shards"):
        raise old.refuse("shards", "at least one source of text")
    if revision == "main":
        old.idle("hf_revision", "main, as always where a shard names no revision")
    else:
        old.kept("hf_revision", "data.shards[].revision", "of every shard without one; not of the tokenizer")
    for name in ("workers", "streaming"):
        old.idle(name, "how text is read changes nothing of it")
    if old.whole("healing_tokens") and found.get("healing_shards"):
        found["healing_tokens"] = old.whole("healing_tokens")
        said = "only of children whose splice was not exact; there of every candidate"
        old.kept("healing_tokens", "data.healing_tokens", said)
    elif old.has("healing_tokens"):
        asks = old.whole("healing_tokens")
        old.idle("healing_tokens", "there are no healing_shards" if asks else "0, which asks for nothing")
    if old.whole("eval_tokens"):
        found["eval_tokens"] = old.whole("eval_tokens")
        old.kept("eval_tokens", "data.eval_tokens")
    else:
        old.idle("eval_tokens", "none: the default stands in its place")
    old.rest()
    return found


def _shard(old: Fields, to: str, revision: str) -> dict[str, Any]:
    name, split = old.text("name"), old.text("split", "train")
    if not name:
        raise old.refuse("name", "the name of a data set")
    config, colon, rest = split.partition(":")
    if not colon or "[" in config:
        config, rest = "", split
    found: dict[str, Any] = {"source": f"hf:{name}" + (f":{config}" if config else "")}
    old.kept("name", f"{to}[].source", found["source"])
    if rest and rest != "train":
        found["split"] = rest
    old.kept("split", f"{to}[].split", f"of the configuration {config}" if config else "")
    if old.has("weight"):
        found["weight"] = old.above("weight", 1.0, f"{to}[].weight")
    own = old.text("revision") or (revision if revision != "main" else "")
    if own:
        found["revision"] = own
    for field in ("revision", "cache_path"):
        if old.has(field):
            old.kept(field, f"{to}[].{field}")
    if old.has("cache_path"):
        found["cache_path"] = old.text("cache_path")
    column = next((column for part, column in COLUMNS.items() if part in name.lower()), None)
    if column is not None:
        found["text_field"] = column
        old.absent("translated", "text_field", f"{to}[].text_field", f"{column}: the column of such a data set")
    old.rest()
    return found


def _named(shards: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Figures are called after sources: where two shards have the same, each further one has a name of its own."""
    seen: dict[str, int] = {}
    for shard in shards:
        number = seen[shard["source"]] = seen.get(shard["source"], 0) + 1
        if number > 1:
            plain = re.sub("[^a-z0-9]+", "_", shard["source"].removeprefix("hf:").lower()).strip("_")
            shard["name"] = f"{plain}_{number}"
    return shards
