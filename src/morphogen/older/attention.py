"""The older system's attention as a part of ours."""

from typing import Any

from morphogen.older.fields import Fields

#: What of them the older system's models never read.
UNWIRED = ("stencil", "softmax", "projection", "value_glu")
KINDS = ("MHA", "GQA", "MQA", "LINEAR", "MLA")
FEATURE_MAPS = ("elu",)
PATTERNS = ("none", "sliding", "block", "local_global", "dilated", "local_block")
#: Pattern -> the knobs that it reads there.
KNOBS = {
    "sliding": ("sw",),
    "block": ("block_size", "block_stride"),
    "local_global": ("sw", "global_stride"),
    "dilated": ("dilation",),
    "local_block": ("sw", "block_size", "block_stride"),
}
#: What is read only where the rest of the part asks for it.
UNREAD = (
    *("linear_feature_map", "kv_latent_dim", "rope_theta", "rope_factor", "qk_norm_max", "gating_op"),
    *("block_size", "block_stride", "global_stride", "dilation", "sw", "sliding_window"),
)
NO_ROPE = ("", "none", "off", "false", "0")
ALWAYS_CAUSAL = "attention here is causal always"


def attention(old: Fields, to: str, seq_len: int) -> dict[str, Any]:
    """One attention. to: where it goes."""
    kind = older = old.one_of("kind", "MHA", KINDS)
    heads, head_dim = old.needed("heads"), old.needed("head_dim")
    old.kept("kind", f"{to}.kind")
    old.kept("heads", f"{to}.heads")
    old.kept("head_dim", f"{to}.head_dim")
    pattern = _pattern(old, to, head_dim, seq_len)
    selector = _selector(old, to, heads, head_dim)
    if selector and pattern:
        for name in ("sparsity", "sw", "sliding_window", *KNOBS[pattern["sparsity"]]):
            old.retell(name, "dropped", "", "a selector stands alone here; there the union of both was read")
        pattern = {}
    if kind == "LINEAR" and (pattern or selector or old.truth("alibi", False)):
        why = "with a pattern, a selector or ALiBi the older system ran softmax attention in its place"
        old.retell("kind", "translated", f"{to}.kind", why)
        kind = "GQA"
    found: dict[str, Any] = {"kind": kind, "heads": heads, "head_dim": head_dim}
    if kind == "LINEAR":
        found |= _linear(old, to)
        found |= _groups(old, to, kind, heads, older)
    elif kind == "MLA":
        found |= _latent(old, to, heads, head_dim) | pattern | selector
    else:
        found |= _groups(old, to, kind, heads, older)
        found |= _positions(old, to, head_dim) | pattern | selector | _rest(old, to)
    found |= _dropout(old, to, kind)
    _account(old)
    return found


def _account(old: Fields) -> None:
    """What is left."""
    if old.truth("causal", True):
        old.idle("causal", ALWAYS_CAUSAL)
    else:
        old.drop("causal", f"false there; {ALWAYS_CAUSAL}")
    for name in UNWIRED:
        if old.has(name):
            old.idle(name, "the older system's models never read it")
    for name in ("gating_pos", "gated", "alibi"):
        if old.has(name):
            old.idle(name, "asks for nothing")
    for name in UNREAD:
        if old.has(name):
            old.idle(name, "nothing reads it as the rest of the part stands")
    for name in ("selector_topk", "selector_heads", "selector_dim", "selector_rope", "selector_detach"):
        if old.has(name):
            old.idle(name, "nothing reads it without a selector")
    old.rest()


def _groups(old: Fields, to: str, kind: str, heads: int, older: str) -> dict[str, Any]:
    """Query heads per key and value head, with the older defaults. older: the kind there, which they are of."""
    default = {"MQA": heads, "GQA": max(1, heads // 4)}.get(older, 1)
    groups = old.whole("kv_groups", default, least=1)
    fitting = max(n for n in range(1, heads + 1) if heads % n == 0 and n <= groups)
    if not old.has("kv_groups") and older == "GQA":
        old.implied(f"{to}.kv_groups", fitting, "a quarter of the heads")
    if fitting == groups:
        old.kept("kv_groups", f"{to}.kv_groups")
    else:
        old.near("kv_groups", f"{to}.kv_groups", f"{groups} does not divide {heads} heads; {fitting} does")
    if kind == "LINEAR":
        return {"kv_groups": fitting}
    fits = {"MHA": fitting == 1, "MQA": fitting == heads}.get(kind, True)
    if not fits:
        old.retell("kind", "translated", f"{to}.kind", f"GQA: its kv_groups is {fitting}")
    return {"kind": kind if fits else "GQA", "kv_groups": fitting}


def _positions(old: Fields, to: str, head_dim: int) -> dict[str, Any]:
    """RoPE: null is none there. All but `linear`, `ntk` and `yarn` with a factor are plain RoPE."""
    rope = old.text("rope").lower()
    if rope in NO_ROPE:
        if old.present("rope"):
            old.kept("rope", f"{to}.rope", "no positions: none")
        else:
            old.implied(f"{to}.rope", "none", "no positions")
        return {"rope": "none"}
    if head_dim % 2:
        old.drop("rope", f"head_dim is {head_dim}, and RoPE needs an even number")
        return {"rope": "none"}
    theta, factor = old.number("rope_theta") or 10000.0, old.number("rope_factor") or 1.0
    scaled = factor != 1.0 and rope in ("linear", "ntk", "yarn")
    found: dict[str, Any] = {"rope": "standard"}
    if scaled and rope in ("ntk", "yarn"):
        theta *= factor ** (head_dim / max(1, head_dim - 2))
    said = ""
    if rope != "standard":
        said = f"{rope} there is " + (f"scaling by {factor:g}: the same here" if scaled else "plain RoPE")
    old.kept("rope", f"{to}.rope", said)
    if old.has("rope_theta") or theta != 10000.0:
        found["rope_theta"] = theta
        old.kept("rope_theta", f"{to}.rope_theta")
    if scaled:
        to_factor = f"{to}.rope_theta" if rope == "ntk" else f"{to}.rope_factor"
        old.kept("rope_factor", to_factor, f"as {rope} uses it")
        if rope != "ntk":
            found["rope_factor"] = factor
    elif old.has("rope_factor"):
        old.idle("rope_factor", f"{rope} does not read it there" if factor != 1.0 else "1 scales nothing")
    return found


def _pattern(old: Fields, to: str, head_dim: int, seq_len: int) -> dict[str, Any]:
    """Which earlier tokens are seen, with the older defaults; nothing for all of them."""
    pattern = old.one_of("sparsity", "none", PATTERNS)
    name = "sliding_window" if old.has("sliding_window") else "sw"
    window = old.whole(name, least=1)
    if pattern == "block" and not old.has("block_size"):
        old.kept(
            "sparsity",
            f"{to}.sparsity",
            "without block_size the older system saw every token, or a window where sw was set",
        )
        pattern = "none"
    elif pattern == "dilated" and not old.has("dilation"):
        old.kept("sparsity", f"{to}.sparsity", "without dilation the older system saw every token")
        return {}
    if pattern == "none":
        if old.raw("sparsity") == "none":
            old.kept("sparsity", f"{to}.sparsity")
        if not window:
            return {}
        old.kept(name, f"{to}.sliding_window", "a window without a pattern is sparsity sliding")
        return {"sparsity": "sliding", "sliding_window": window}
    old.kept("sparsity", f"{to}.sparsity")
    found: dict[str, Any] = {"sparsity": pattern}
    if "sw" in KNOBS[pattern]:
        if window:
            old.kept(name, f"{to}.sliding_window")
        else:
            old.implied(f"{to}.sliding_window", head_dim, "as long as a head is wide")
        found["sliding_window"] = window or head_dim
    if pattern == "dilated":
        found["dilation"] = old.whole("dilation", least=1)
        old.kept("dilation", f"{to}.dilation")
    if pattern == "local_global":
        found["global_stride"] = old.whole("global_stride", seq_len, least=1)
        if old.has("global_stride"):
            old.kept("global_stride", f"{to}.global_stride")
        else:
            old.implied(f"{to}.global_stride", seq_len, "token 0 alone")
    if pattern in ("block", "local_block"):
        found |= _blocks(old, to, pattern, int(found.get("sliding_window", 0)))
    return found


def _blocks(old: Fields, to: str, pattern: str, window: int) -> dict[str, Any]:
    """Blocks: there a stride is in tokens and from position 0, here in blocks and from the query's own."""
    size = old.whole("block_size", window, least=1)
    stride = old.whole("block_stride", size, least=1)
    if old.has("block_size"):
        old.kept("block_size", f"{to}.block_size")
    else:
        old.implied(f"{to}.block_size", size, "as large as the window")
    if pattern == "block":
        if stride == size:
            old.kept("block_stride", f"{to}.block_stride", "every token sees its own block: 0 here")
        else:
            old.near("block_stride", f"{to}.block_stride", f"{stride} tokens between blocks of {size}; 0: its own only")
        return {"block_size": size, "block_stride": 0}
    blocks = max(1, round(stride / size))
    said = f"{stride} tokens from position 0 there; here every {blocks} blocks of {size} from the query's own"
    if old.has("block_stride"):
        old.near("block_stride", f"{to}.block_stride", said)
    else:
        old.implied(f"{to}.block_stride", blocks, "one after the other")
    return {"block_size": size, "block_stride": blocks}


def _selector(old: Fields, to: str, heads: int, head_dim: int) -> dict[str, Any]:
    """The learned choice of tokens, with the older defaults."""
    if old.one_of("selector", "none", ("none", "dsa")) == "none":
        if old.has("selector"):
            old.kept("selector", f"{to}.selector")
        return {}
    topk = old.whole("selector_topk", 64, least=1)
    asked = min(old.whole("selector_heads", 1, least=1), heads)
    width = min(old.whole("selector_dim", min(head_dim, 32), least=1), head_dim)
    even = max(4, width - width % 2)
    old.kept("selector", f"{to}.selector")
    for name, value, found in (
        ("selector_topk", topk, max(2, topk)),
        ("selector_heads", asked, asked),
        ("selector_dim", width, even),
    ):
        if not old.has(name):
            old.implied(f"{to}.{name}", found, "the older default")
        elif found == old.whole(name):
            old.kept(name, f"{to}.{name}")
        elif found == value:
            old.kept(name, f"{to}.{name}", f"{found}, the most that the older system took")
        else:
            old.near(name, f"{to}.{name}", f"{found} is the nearest that there is")
    if old.has("selector_rope"):
        asked_rope = old.one_of("selector_rope", "none", ("none", "partial", "full"))
        follows = asked_rope == ("none" if old.text("rope").lower() in NO_ROPE else "full")
        (old.kept if follows else old.near)("selector_rope", f"{to}.rope", "the indexer follows rope here")
    if old.truth("selector_detach", False):
        old.kept("selector_detach", f"{to}.selector", "the indexer's input is detached always")
    elif old.has("selector_detach"):
        old.near(
            "selector_detach", f"{to}.selector", "the indexer's input is detached always; it has a loss of its own"
        )
    return {"selector": "dsa", "selector_topk": max(2, topk), "selector_heads": asked, "selector_dim": even}


def _linear(old: Fields, to: str) -> dict[str, Any]:
    """Linear attention has neither positions nor gates here."""
    feature_map = old.one_of("linear_feature_map", "elu", FEATURE_MAPS)
    old.kept("linear_feature_map", f"{to}.feature_map")
    if old.text("rope").lower() not in NO_ROPE:
        old.drop("rope", "linear attention has no positions here; there q and k were rotated before the feature map")
    else:
        old.kept("rope", to, "no positions, as always with linear attention")
    if old.has("qk_norm_max"):
        old.drop("qk_norm_max", "linear attention has no qk_norm")
    if old.text("gating_pos", "none") != "none":
        old.drop("gating_pos", "linear attention has no such gate here")
    if old.truth("gated", False):
        old.drop("gated", "linear attention has no such gate here")
    return {"feature_map": feature_map}


def _latent(old: Fields, to: str, heads: int, head_dim: int) -> dict[str, Any]:
    """Multi-head latent attention: every head has keys and values of its own, and rotated channels apart."""
    groups = old.whole("kv_groups", 1, least=1)
    if groups > 1:
        old.near("kv_groups", to, "every head has keys and values of its own, made of the latent")
    else:
        old.kept("kv_groups", to, "as always with MLA")
    latent = old.whole("kv_latent_dim", max(1, heads // groups) * head_dim, least=1)
    if old.has("kv_latent_dim"):
        old.kept("kv_latent_dim", f"{to}.kv_latent_dim")
    else:
        old.implied(f"{to}.kv_latent_dim", latent, "as wide as keys are")
    found: dict[str, Any] = {"kv_latent_dim": latent, "rope_head_dim": 0}
    if old.text("rope").lower() in NO_ROPE:
        old.kept("rope", f"{to}.rope_head_dim", "0")
    else:
        rotated = max(2, head_dim // 2 // 2 * 2)
        said = f"there whole heads were rotated; here {rotated} channels apart, with a key that heads share"
        old.near("rope", f"{to}.rope_head_dim", said)
        found["rope_head_dim"] = rotated
        if old.has("rope_theta"):
            found["rope_theta"] = old.number("rope_theta") or 10000.0
            old.kept("rope_theta", f"{to}.rope_theta")
    for name, is_asked in (
        ("alibi", old.truth("alibi", False)),
        ("gating_pos", old.text("gating_pos", "none") != "none"),
        ("gated", old.truth("gated", False)),
        ("qk_norm_max", old.has("qk_norm_max")),
    ):
        if is_asked:
            old.drop(name, "MLA has none here")
    return found


def _rest(old: Fields, to: str) -> dict[str, Any]:
    """ALiBi, gates, and the clamp that is nearest to a norm of queries and keys."""
    found: dict[str, Any] = {}
    if old.truth("alibi", False):
        found["alibi"] = True
        old.kept("alibi", f"{to}.alibi")
    if old.has("qk_norm_max"):
        found["qk_norm"] = "rms"
        old.near("qk_norm_max", f"{to}.qk_norm", "rms; there the norm of the branch's input was clamped")
    gate = old.one_of("gating_pos", "none", ("none", "output", "value"))
    if old.truth("gated", False):
        gate = gate if old.has("gating_pos") else "output"
        old.kept("gated", f"{to}.gating_pos", gate)
    elif old.has("gated"):
        old.idle("gated", "false, which asks for nothing")
    if gate != "none":
        found["gating_pos"], found["gating_op"] = gate, old.one_of("gating_op", "dense", ("dense", "diagonal"))
        old.kept("gating_pos", f"{to}.gating_pos")
        old.kept("gating_op", f"{to}.gating_op")
    return found


def _dropout(old: Fields, to: str, kind: str) -> dict[str, Any]:
    share = old.number("dropout", least=0.0)
    if kind == "LINEAR" or share >= 1.0:
        if share:
            old.drop("dropout", "linear attention has none here" if share < 1.0 else "1 would drop everything")
        else:
            old.idle("dropout", "0, which drops nothing")
        return {}
    old.kept("dropout", f"{to}.dropout")
    return {"dropout": share} if share else {}


def cache(policy: Fields, kind: str, to: str) -> dict[str, Any]:
    """The model's kv_policy as that of one attention; its notes are made by the model, once."""
    if kind == "LINEAR" or not policy.names():
        return {}
    form, quant = _cached(policy)
    found: dict[str, Any] = {"kind": "latent" if kind == "MLA" and form in ("none", "latent") else "full"}
    if form in ("window", "ring"):
        found = {"kind": "window", "window": policy.whole("window", least=1)}
    if quant != "none":
        found["quant"] = "int8"
    return {"kv_policy": found}


def _cached(policy: Fields) -> tuple[str, str]:
    """What is kept of keys and values, and in which form."""
    form = policy.one_of("cache", "full", ("full", "window", "ring", "none", "latent"))
    if form in ("window", "ring"):
        policy.needed("window")
    return form, policy.one_of("quant", "none", ("none", "fp8", "nf4", "int8"))


def tell_cache(policy: Fields, is_read: bool) -> None:
    """What became of the model's kv_policy. is_read: whether any attention keeps keys and values."""
    to = "model.blocks[*].attn.kv_policy"
    form, quant = _cached(policy)
    if not is_read:
        for name in policy.names():
            policy.idle(name, "no attention of the model keeps keys and values")
        policy.rest()
        return
    if form in ("full", "window"):
        policy.kept("cache", f"{to}.kind", "of every attention by itself")
    else:
        said = {
            "ring": "a ring is a window here",
            "latent": "attention through a latent keeps it; the others keep keys and values",
            "none": "a decoder here keeps all that it needs",
        }[form]
        policy.near("cache", f"{to}.kind", said)
    if form in ("window", "ring"):
        policy.kept("window", f"{to}.window")
    elif policy.has("window"):
        policy.idle("window", f"cache {form} reads none")
    if quant in ("fp8", "nf4"):
        policy.near("quant", f"{to}.quant", f"int8 in place of {quant}")
    else:
        policy.kept("quant", f"{to}.quant")
    if policy.has("latent_dim"):
        policy.drop("latent_dim", "that of each attention is its kv_latent_dim")
    policy.rest()
