"""Parts beside the slow references: whole branches from the loops of `morphogen.ops.naive*` and plain formulas.

B batch, T tokens, D model dim, H query heads, K kv heads, G query heads per kv head, E width of q and k, V width of v,
F features of a key, S slots, N tokens of all sequences
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from morphogen.network import assemble
from morphogen.ops import naive, naive_linear, naive_memory, naive_routing, naive_scan, naive_selection
from morphogen.ops.elementwise import ACTIVATIONS, GATES, rope_frequencies
from morphogen.ops.fast_weights import features
from morphogen.ops.linear_attention import FEATURE_MAPS, unit
from morphogen.ops.naive_recurrence import looped
from morphogen.parts.attention.attention import Attention
from morphogen.parts.attention.linear_attention import LinearAttention
from morphogen.parts.attention.linear_attention_layer import NORMALISER_EPS
from morphogen.parts.contract.part import Context, Modifier
from morphogen.parts.ffn.mlp import MLP
from morphogen.parts.ffn.moe import MoE
from morphogen.parts.memory.associative_memory import AssocMemory
from morphogen.parts.memory.chunk_memory import ChunkMemory
from morphogen.parts.memory.memory_tokens import MemoryTokens
from morphogen.parts.memory.readers import SlotReader
from morphogen.parts.memory.retro import AGGREGATORS, Retro
from morphogen.parts.mixing.branch_router import BranchRouter
from morphogen.parts.mixing.custom import Custom
from morphogen.parts.mixing.gated import Gated
from morphogen.parts.mixing.layer_scale import LayerScale
from morphogen.parts.mixing.linear_silu import LinearSiLU
from morphogen.parts.recurrence.recurrence import Recurrence
from morphogen.parts.ssm.mamba import Mamba
from morphogen.parts.ssm.mamba2 import Mamba2
from peers import DIM, Case, Weights, blueprint_of, case, stirred, tensors

LOOP, FORMULA = "naive loop", "formula"
EPS = torch.tensor(1e-5)


def heads(x_BTF: Tensor, count: int) -> Tensor:
    """(B, T, H·E) to (B, H, T, E)."""
    return x_BTF.unflatten(2, (count, -1)).transpose(1, 2)


def merged(y_BHTE: Tensor) -> Tensor:
    """(B, H, T, E) to (B, T, H·E)."""
    return y_BHTE.transpose(1, 2).flatten(2)


def attention(x_BTD: Tensor, w: Weights, part: Attention) -> Tensor:
    """Every variant of softmax attention, by the dense masked formula or the selector's loop."""
    q, k, v = (x_BTD @ w[f"{name}.weight"].T for name in ("q", "k", "v"))
    v = gate(x_BTD, v, w, "value_gate")
    q_BHTE, k_BKTE, v_BKTE = heads(q, part.heads), heads(k, part.kv_heads), heads(v, part.kv_heads)
    if part.qk_norm == "rms":
        q_BHTE, k_BKTE = (
            naive.rms_norm(y, w[f"{n}.weight"], w[f"{n}.eps"]) for y, n in ((q_BHTE, "q_norm"), (k_BKTE, "k_norm"))
        )
    elif part.qk_norm == "layer":
        q_BHTE, k_BKTE = (
            naive.layer_norm(y, w[f"{n}.weight"], w[f"{n}.bias"], w[f"{n}.eps"])
            for y, n in ((q_BHTE, "q_norm"), (k_BKTE, "k_norm"))
        )
    if part.rope != "none":
        freqs_F, factor = rope_frequencies(
            part.head_dim, part.rope_theta, part.rope, part.rope_scale, part.rope_context
        )
        q_BHTE, k_BKTE = factor * naive.rope(q_BHTE, freqs_F), factor * naive.rope(k_BKTE, freqs_F)
    scoring: dict[str, Any] = {"softcap": part.softcap, "slopes_H": w.get("slopes")}
    if part.selector == "none":
        y_BHTE = naive.attention(q_BHTE, k_BKTE, v_BKTE, part.pattern, **scoring)
    else:
        index = indexer(x_BTD, w, part)
        y_BHTE, _ = naive_selection.attention(q_BHTE, k_BKTE, v_BKTE, index, part.selector_topk, **scoring)
    return gate(x_BTD, merged(y_BHTE), w, "out_gate") @ w["o.weight"].T


def gate(x_BTD: Tensor, y_BTF: Tensor, w: Weights, name: str) -> Tensor:
    """2σ(W x) ⊙ y or 2σ(w ⊙ y) ⊙ y, where there is such a gate."""
    if f"{name}.weight" in w:
        return 2 * torch.sigmoid(x_BTD @ w[f"{name}.weight"].T) * y_BTF
    return 2 * torch.sigmoid(w[f"{name}.diagonal"] * y_BTF) * y_BTF if f"{name}.diagonal" in w else y_BTF


def indexer(x_BTD: Tensor, w: Weights, part: Attention) -> tuple[Tensor, Tensor, Tensor]:
    """Indexer queries, keys and weights."""
    k_norm = [w[f"selector.k_norm.{name}"] for name in ("weight", "bias", "eps")]
    q_BATI = heads(x_BTD @ w["selector.q.weight"].T, part.selector_heads)
    k_B1TI = naive.layer_norm(x_BTD @ w["selector.k.weight"].T, *k_norm)[:, None]
    if part.rope != "none":
        stretch = part.rope_scale if part.rope == "standard" else 1.0
        freqs_F = rope_frequencies(part.selector_dim, part.rope_theta)[0] / stretch
        q_BATI, k_B1TI = naive.rope(q_BATI, freqs_F), naive.rope(k_B1TI, freqs_F)
    return q_BATI, k_B1TI, (x_BTD @ w["selector.w.weight"].T).mT


def linear_attention(x_BTD: Tensor, w: Weights, part: LinearAttention) -> Tensor:
    """Token by token, for every decay."""
    phi = FEATURE_MAPS[part.feature_map]
    q_BKGTE = phi(heads(x_BTD @ w["q.weight"].T, part.heads)).unflatten(1, (part.kv_heads, -1))
    k_BKTE = phi(heads(x_BTD @ w["k.weight"].T, part.kv_heads))
    v_BKTV = heads(x_BTD @ w["v.weight"].T, part.kv_heads)
    if part.decay == "delta":
        q_BKGTE, k_BKTE = unit(q_BKGTE), unit(k_BKTE)
    if part.normalised:
        v_BKTV = torch.cat([v_BKTV, torch.ones_like(v_BKTV[..., :1])], -1)
    else:
        q_BKGTE = q_BKGTE / part.head_dim**0.5
    log_BKT = torch.zeros_like(k_BKTE[..., 0])
    if part.decay == "retention":
        log_BKT = log_BKT - w["slopes"][:, None]
    elif part.decay in ("gated", "delta"):
        rate_BTK = w["alpha_log"].exp() * F.softplus(x_BTD @ w["alpha.weight"].T + w["alpha_bias"])
        log_BKT = -rate_BTK.mT
    state_BKEV = k_BKTE.new_zeros(*k_BKTE.shape[:2], k_BKTE.shape[3], v_BKTV.shape[3])
    if part.decay == "delta":
        beta_BKT = torch.sigmoid(x_BTD @ w["beta.weight"].T).mT
        y_BKGTV, _ = naive_linear.gated_delta(q_BKGTE, k_BKTE, v_BKTV, log_BKT, beta_BKT, state_BKEV)
    else:
        y_BKGTV, _ = naive_linear.linear_attention(q_BKGTE, k_BKTE, v_BKTV, log_BKT, state_BKEV)
    if part.normalised:
        y_BKGTV = y_BKGTV[..., :-1] / (y_BKGTV[..., -1:] + NORMALISER_EPS)
    else:
        y_BKGTV = naive.rms_norm(y_BKGTV, w["out_norm.weight"], w["out_norm.eps"])
    y_BTF = merged(y_BKGTV.flatten(1, 2))
    return (y_BTF * F.silu(x_BTD @ w["gate.weight"].T) if part.gate == "swish" else y_BTF) @ w["o.weight"].T


def mamba(x_BTD: Tensor, w: Weights, part: Mamba | Mamba2) -> Tensor:
    """Either state-space layer, without a gate."""
    names = "xbc" if isinstance(part, Mamba2) else "x"
    out = [
        F.silu(naive_scan.causal_conv(x_BTD @ w[f"{n}.weight"].T, w[f"conv_{n}.weight"], w[f"conv_{n}.bias"]))
        for n in names
    ]
    if isinstance(part, Mamba2):
        dt_BTH = F.softplus(x_BTD @ w["dt.weight"].T + w["dt_bias"])
        x_BTHP = out[0].unflatten(2, (dt_BTH.shape[2], -1))
        y_BTHP, _ = naive_scan.ssd(x_BTHP, dt_BTH, -w["a_log"].exp(), out[1], out[2], w["d"])
        return naive.rms_norm(y_BTHP.flatten(2), w["out_norm.weight"], w["out_norm.eps"]) @ w["out.weight"].T
    dt_BTF = F.softplus(out[0] @ w["dt_down.weight"].T @ w["dt_up.weight"].T + w["dt_bias"])
    a_NF = -w["a_log"].exp().view(part.d_state, -1)
    b_BTN, c_BTN = (out[0] @ w[f"{name}.weight"].T for name in "bc")
    return naive_scan.selective_scan(out[0], dt_BTF, a_NF, b_BTN, c_BTN, w["d"])[0] @ w["out.weight"].T


def mlp(x_BTD: Tensor, w: Weights, activation: str, prefix: str = "") -> Tensor:
    """A dense layer."""
    up = x_BTD @ w[f"{prefix}up.weight"].T
    gated = f"{prefix}gate.weight" in w
    h = GATES[activation](x_BTD @ w[f"{prefix}gate.weight"].T) * up if gated else ACTIVATIONS[activation](up)
    return h @ w[f"{prefix}down.weight"].T


def moe(x_BTD: Tensor, w: Weights, part: MoE) -> Tensor:
    """One token and one expert at a time, within capacity; the experts of `experts` on every token, then chosen."""
    x_ND, biased, stacked = x_BTD.flatten(0, 1), part.router_bias == "aux_free", part.stacked
    routers = ["router", *(["other_router"] if part.experts else [])]
    logits_NF = x_ND @ torch.cat([w[f"{name}.weight"] for name in routers]).T
    bias_F = torch.cat([w[f"{name}.bias"] for name in routers]) if biased else None
    places_NK, weights_NK = naive_routing.choose(logits_NF, part.k, part.router_type, part.router_temperature, bias_F)
    kept_NK = torch.ones_like(places_NK, dtype=torch.bool)
    if part.drop_policy == "greedy":
        places_BTK = places_NK.view(*x_BTD.shape[:2], -1)
        kept_NK = naive_routing.within_capacity(places_BTK, part.n_experts, part.capacity_factor or 1.0).flatten(0, 1)
    own_NK = kept_NK & (places_NK < stacked)
    stack = (w["up.weight"], w.get("gate.weight"), w["down.weight"])
    y_ND = naive_routing.experts(x_ND, places_NK, weights_NK, own_NK, *stack, part.activation)
    for i, other in enumerate(part.experts):
        share_N1 = (weights_NK * (kept_NK & (places_NK == stacked + i))).sum(1, keepdim=True)
        y_ND = y_ND + share_N1 * mlp(x_ND, w, dict(other)["activation"], f"others.{i}.")
    return (y_ND + mlp(x_ND, w, part.activation, "shared_") if part.shared else y_ND).view(x_BTD.shape)


def slots(x_BTD: Tensor, w: Weights, part: SlotReader) -> Tensor:
    """Retro and chunk memory: summaries slot by slot, read query by query."""
    size, stride = part.slots.size, part.slots.stride
    if isinstance(part, Retro) and part.aggregator != "mean":
        score_BT = (x_BTD @ w["pool.weight"].T)[..., 0]
        s_BSD = naive_memory.weighted_slots(x_BTD, score_BT, size, part.aggregator)
    else:
        s_BSD = naive_memory.mean_slots(x_BTD, size, stride)
    q, k, v = (heads(y @ w[f"{n}.weight"].T, part.heads) for y, n in ((x_BTD, "q"), (s_BSD, "k"), (s_BSD, "v")))
    y_BTD = merged(naive_memory.attend_slots(q, k, v, size, stride, part.slots.keep)) @ w["o.weight"].T
    return y_BTD * torch.tanh(w["strength"]) if isinstance(part, Retro) else y_BTD


def memory_tokens(x_BTD: Tensor, w: Weights, part: MemoryTokens) -> Tensor:
    """Token by token over the learned slots."""
    q_BTHE = (x_BTD @ w["q.weight"].T).unflatten(2, (part.heads, -1))
    return naive_memory.attend_learned(q_BTHE, w["keys"], w["values"]).flatten(2) @ w["o.weight"].T


def assoc_memory(x_BTD: Tensor, w: Weights, part: AssocMemory) -> Tensor:
    """Token by token."""
    q, k, v = (heads(x_BTD @ w[f"{name}.weight"].T, part.heads) for name in "qkv")
    q_BHTF, k_BHTF = features(q, part.feature_map), features(k, part.feature_map)
    beta_BHT = (x_BTD @ w["beta.weight"].T).sigmoid().mT
    state_BHFV = k_BHTF.new_zeros(*k_BHTF.shape[:2], k_BHTF.shape[3], v.shape[3])
    return merged(naive_memory.delta_memory(q_BHTF, k_BHTF, v, beta_BHT, state_BHFV)[0]) @ w["o.weight"].T


def modified(x_BTD: Tensor, w: Weights, part: Modifier) -> Tensor:
    """A block of attention and a dense layer, each branch's output times what the modifier gives it."""
    for i, slot in enumerate(("attn", "ffn")):
        own = {name.removeprefix(f"{slot}."): y for name, y in w.items() if name.startswith(f"{slot}.")}
        y_BTD = naive.rms_norm(x_BTD, own["norm.weight"], own["norm.eps"])
        y_BTD = attention(y_BTD, own, ATTN) if slot == "attn" else mlp(y_BTD, own, "swiglu")
        if isinstance(part, BranchRouter):
            if slot == "attn":
                share = shares(x_BTD, w, part)
            y_BTD = y_BTD * share[..., i, None]
        else:
            y_BTD = y_BTD * w[f"extras.0.{slot}"]
        x_BTD = x_BTD + y_BTD
    return x_BTD


def shares(x_BTD: Tensor, w: Weights, part: BranchRouter) -> Tensor:
    """n · softmax of the logits over n targets, from the block's input."""
    logits = w["extras.0.bias"]
    if part.router_type == "token":
        y_BTD = naive.rms_norm(x_BTD, w["extras.0.norm.weight"], w["extras.0.norm.eps"])
        logits = logits + F.silu(y_BTD @ w["extras.0.up.weight"].T) @ w["extras.0.out.weight"].T
    return 2 * torch.softmax(logits / part.temperature, -1)


ATTN = Attention(kind="MHA", heads=3, head_dim=8)


def modifier(name: str, part: Modifier) -> Case:
    """A whole block, because a modifier alone does nothing."""
    blueprint = blueprint_of({"attn": ATTN, "ffn": MLP(hidden=40), "extras": [part]})
    block = assemble(blueprint, stirred(blueprint)).eval().blocks[0]
    return Case(name, FORMULA, block, lambda x_BTD, w: modified(x_BTD, w, part), tensors(block))


def recurrence(adapter: Any, concat: bool) -> Case:
    """Three steps around a core that is x + tanh(x)."""
    part = Recurrence(id="r0", start=0, end=1, adapter=adapter, concat_prelude=concat, max_train_recurrence=3)
    loop, draw = part.build(Context(DIM, "rmsnorm", 37, 0.02, 2)), torch.Generator().manual_seed(0)
    loop.load_state_dict({n: EPS if n.endswith("eps") else 0.3 * torch.randn(t.shape, generator=draw)
                          for n, t in loop.state_dict().items()})  # fmt: skip

    def core(x: Tensor) -> Tensor:
        return x + torch.tanh(x)

    def ours(x_BTD: Tensor) -> Tensor:
        state_BTD = torch.zeros_like(x_BTD)
        for _ in range(3):
            state_BTD = core(loop(state_BTD, x_BTD))
        return state_BTD

    def theirs(x_BTD: Tensor, w: Weights) -> Tensor:
        return torch.stack([looped(core, x_TD, torch.zeros_like(x_TD), 3, w) for x_TD in x_BTD])

    return Case(f"recurrence {adapter}{' with prelude' if concat else ''}", LOOP, ours, theirs, tensors(loop))


def bound(reference: Callable[..., Tensor], part: Any) -> Callable[[Tensor, Weights], Tensor]:
    """The reference of one part."""
    return lambda x_BTD, weights: reference(x_BTD, weights, part)


def attentions() -> Iterator[Case]:
    """The variants of softmax attention that no library has, each with RoPE and groups."""
    base: Mapping[str, Any] = {"kind": "GQA", "heads": 4, "head_dim": 8, "kv_groups": 2}
    variants: dict[str, dict[str, Any]] = {
        "GQA qk_norm layer": {"qk_norm": "layer"},
        "GQA gate output dense": {"gating_pos": "output"},
        "GQA gate output diagonal": {"gating_pos": "output", "gating_op": "diagonal"},
        "GQA gate value dense": {"gating_pos": "value"},
        "GQA gate value diagonal": {"gating_pos": "value", "gating_op": "diagonal"},
        "GQA dsa top 12": {"selector": "dsa", "selector_topk": 12, "selector_heads": 3, "selector_dim": 6},
        "GQA sliding alibi softcap": {"sparsity": "sliding", "sliding_window": 9, "alibi": True, "softcap": 2.0},
    }
    for name, more in variants.items():
        part = Attention(**base, **more)
        yield case(name, LOOP, part, bound(attention, part))


def linears() -> Iterator[Case]:
    """Every decay, and feature maps that are normalised by their sum and that are not."""
    for decay, feature_map in (
        ("none", "elu"), ("none", "softmax"), ("none", "identity"), ("retention", "silu"), ("gated", "relu"),
        ("delta", "silu"),
    ):  # fmt: skip
        part = LinearAttention(
            heads=4, kv_groups=2, head_dim=8, value_dim=12, decay=decay, feature_map=feature_map, gate="swish"
        )
        yield case(f"LINEAR {decay} {feature_map}", LOOP, part, bound(linear_attention, part))


def memories() -> Iterator[Case]:
    """Retro by its aggregators, chunk memory, learned slots, fast weights by their features."""
    for aggregator in AGGREGATORS:
        retro = Retro(memory_tokens=3, stride=8, aggregator=aggregator, heads=3, head_dim=8)
        yield case(f"retro {aggregator}", LOOP, retro, bound(slots, retro))
    chunks = ChunkMemory(chunk_size=9, stride=6, heads=3, head_dim=8)
    yield case("chunk_memory", LOOP, chunks, bound(slots, chunks))
    learned = MemoryTokens(tokens=7, heads=3, head_dim=8)
    yield case("memory_tokens", LOOP, learned, bound(memory_tokens, learned))
    for feature_map in ("elu", "relu", "dpfp"):
        fast = AssocMemory(heads=3, head_dim=8, feature_map=feature_map)
        yield case(f"assoc_memory {feature_map}", LOOP, fast, bound(assoc_memory, fast))


def mixtures() -> Iterator[Case]:
    """What the peers' mixtures do not have: a capacity, other kinds of experts, a single choice, a temperature."""
    parts = {
        "moe greedy capacity": MoE(hidden=8, n_experts=5, k=2, capacity_factor=0.8, drop_policy="greedy"),
        "moe other experts": MoE(
            hidden=8, n_experts=5, k=2, experts=(MLP(hidden=20, activation="gelu"),), shared=1, activation="geglu"
        ),
        "moe softmax top 1": MoE(hidden=8, n_experts=4, k=1, router_temperature=0.5, router_bias="aux_free"),
    }
    for name, part in parts.items():
        yield case(name, LOOP, part, bound(moe, part))


def linear_silu(x_BTD: Tensor, w: Weights) -> Tensor:
    """Two maps with biases, and a SiLU between them."""
    up_BTF = x_BTD @ w["up.weight"].T + w["up.bias"]
    return (up_BTF * torch.sigmoid(up_BTF)) @ w["down.weight"].T + w["down.bias"]


def cases() -> Iterator[Case]:
    """Every one."""
    yield from attentions()
    yield from linears()
    for name, ssm in (("mamba2 ungated", Mamba2(head_dim=8, gate=False)), ("mamba ungated", Mamba(gate=False))):
        yield case(name, LOOP, ssm, bound(mamba, ssm))
    yield from mixtures()
    yield from memories()
    yield modifier("layer_scale", LayerScale(init=0.5))
    yield modifier("gated", Gated())
    yield modifier("branch_router token", BranchRouter(hidden=6, temperature=0.7))
    yield modifier("branch_router static", BranchRouter(router_type="static"))
    yield from (recurrence(adapter, concat) for adapter in ("linear", "gated") for concat in (True, False))
    yield case("linear_silu", FORMULA, LinearSiLU(hidden=9), linear_silu)
    plugin = Custom(name="plugins:Bottleneck", params={"width": 9})
    yield case("custom", FORMULA, plugin, lambda x, w: F.silu(x @ w["up.weight"].T) @ w["down.weight"].T)
