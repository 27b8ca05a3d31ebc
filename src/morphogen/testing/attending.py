"""Attention of every kind, drawn by hypothesis: small parts over every field of theirs."""

from typing import Any

from hypothesis import strategies as st

from morphogen.ops.linear_attention import FEATURE_MAPS
from morphogen.parts.attention.attention import Attention
from morphogen.parts.attention.kv_policy import KVPolicy
from morphogen.parts.attention.latent_attention import LatentAttention
from morphogen.parts.attention.linear_attention import DECAYS, LinearAttention
from morphogen.parts.attention.sparsity import SPARSITIES


@st.composite
def kv_policies(draw: st.DrawFn, kinds: tuple[str, ...] = ("full", "window")) -> KVPolicy:
    """What a decoder caches, with windows small against 16 tokens."""
    kind = draw(st.sampled_from(kinds))
    window = draw(st.integers(1, 12)) if kind == "window" else None
    return KVPolicy(kind=kind, window=window, quant=draw(st.sampled_from(["none", "int8"])))


def selectors() -> st.SearchStrategy[dict[str, Any]]:
    """The fields of a selector, mostly none; it picks from few tokens to more than there are."""
    return st.fixed_dictionaries(
        {
            "selector": st.sampled_from(["none", "none", "dsa"]),
            "selector_topk": st.sampled_from([2, 5, 16, 100]),
            "selector_heads": st.integers(1, 3),
            "selector_dim": st.sampled_from([4, 6, 8]),
            "selector_loss": st.sampled_from(["align", "task"]),
        }
    )


@st.composite
def attentions(draw: st.DrawFn, kind: str = "GQA") -> Attention:
    """Attention of one kind: every RoPE, bias, norm, gate and sparsity pattern, with knobs small against 16 tokens."""
    kv_heads = 1 if kind == "MQA" else draw(st.integers(1, 3))
    groups = 1 if kind == "MHA" else draw(st.sampled_from([1, 2, 3, 4]))
    rope = draw(st.sampled_from(["none", "standard", "yarn", "partial"]))
    factors = {"standard": [None, 1.0, 4.0], "yarn": [None, 1.0, 2.0, 8.0], "partial": [None, 0.5, 1.0]}
    selector = draw(selectors())
    sparsity = draw(st.sampled_from(SPARSITIES)) if selector["selector"] == "none" else "none"
    return Attention(
        kind=kind,
        heads=kv_heads * groups,
        kv_groups=groups,
        head_dim=draw(st.sampled_from([3, 4, 8, 10] if rope == "none" else [4, 6, 8, 12])),
        rope=rope,
        rope_theta=draw(st.sampled_from([100.0, 10_000.0])),
        rope_factor=draw(st.sampled_from(factors.get(rope, [None]))),
        rope_context=draw(st.sampled_from([16, 2048])),
        alibi=draw(st.booleans()),
        qk_norm=draw(st.sampled_from(["none", "rms", "layer"])),
        # scores do not tell a bias of keys that are not turned
        bias=draw(st.sampled_from(["none", "qkv", "all"] if rope in ("standard", "yarn") else ["none"])),
        softcap=draw(st.sampled_from([None, 5.0, 50.0])),
        gating_pos=draw(st.sampled_from(["none", "output", "value"])),
        gating_op=draw(st.sampled_from(["dense", "diagonal"])),
        sparsity=sparsity,
        sliding_window=draw(st.integers(1, 12)),
        block_size=draw(st.integers(2, 8)),
        block_stride=draw(st.integers(1 if sparsity == "local_block" else 0, 3)),
        global_stride=draw(st.integers(1, 6)),
        dilation=draw(st.integers(1, 4)),
        kv_policy=draw(kv_policies()),
        **selector,
    )


@st.composite
def latent_attentions(draw: st.DrawFn) -> LatentAttention:
    """MLA with and without a rotated head, of every sparsity pattern."""
    selector = draw(selectors())
    sparsity = draw(st.sampled_from(SPARSITIES)) if selector["selector"] == "none" else "none"
    return LatentAttention(
        heads=draw(st.integers(1, 4)),
        head_dim=draw(st.sampled_from([3, 4, 8])),
        kv_latent_dim=draw(st.sampled_from([3, 5, 8, 12])),
        rope_head_dim=draw(st.sampled_from([0, 2, 4, 6])),
        rope_theta=draw(st.sampled_from([100.0, 10_000.0])),
        sparsity=sparsity,
        sliding_window=draw(st.integers(1, 12)),
        block_size=draw(st.integers(2, 8)),
        block_stride=draw(st.integers(1 if sparsity == "local_block" else 0, 3)),
        global_stride=draw(st.integers(1, 6)),
        dilation=draw(st.integers(1, 4)),
        kv_policy=draw(kv_policies(("full", "window", "latent"))),
        **selector,
    )


@st.composite
def linear_attentions(draw: st.DrawFn) -> LinearAttention:
    """Linear attention with every decay and feature map."""
    groups = draw(st.sampled_from([1, 2, 3]))
    return LinearAttention(
        heads=groups * draw(st.integers(1, 3)),
        kv_groups=groups,
        head_dim=draw(st.sampled_from([3, 4, 8])),
        value_dim=draw(st.sampled_from([None, 2, 5, 12])),
        feature_map=draw(st.sampled_from(sorted(FEATURE_MAPS))),
        decay=draw(st.sampled_from(DECAYS)),
        gate=draw(st.sampled_from(["none", "swish"])),
    )
