"""The incremental decoder: what a cache holds, what its policies leave out, and sampling. B batch, T tokens."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch.nn import functional as F

from examples import up_to
from morphogen.blueprint.schema import Blueprint
from morphogen.cost import costs
from morphogen.errors import DivergedError, InputError
from morphogen.metrics.decoding import lost_in_decoding, measure_decoding
from morphogen.network import Cache, LanguageModel, assemble, build, cache_bytes
from morphogen.ops import naive
from morphogen.ops.kv_cache import places, quantise
from morphogen.ops.patterns import Pattern, remembered
from morphogen.parts.attention.attention import Attention
from morphogen.parts.attention.kv_policy import KVPolicy
from morphogen.parts.attention.sparsity import SPARSITIES

VOCAB, HEADS, HEAD_DIM = 50, 4, 8
KNOBS = {"sliding_window": 6, "block_size": 5, "block_stride": 2, "global_stride": 4, "dilation": 3}


def blueprint(**attn: Any) -> Blueprint:
    """Two blocks of grouped attention, 16 bytes of fp16 per kv head, key or value and token."""
    part = {"kind": "GQA", "heads": HEADS, "head_dim": HEAD_DIM, "kv_groups": 2, **KNOBS, **attn}
    block = {"attn": part, "ffn": {"kind": "dense", "hidden": 24}}
    return Blueprint.model_validate({"emb": {"dim": 24, "vocab": VOCAB}, "blocks": [block, block]})


def shallow(**attn: Any) -> Blueprint:
    """The first of its blocks alone."""
    whole = blueprint(**attn)
    return whole.model_copy(update={"blocks": whole.blocks[:1]})


def model_of(**attn: Any) -> LanguageModel:
    """Its output projections are large enough for differences in the cache to be seen."""
    model = build(blueprint(**attn), seed=1).double().eval()
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if "o.weight" in name:
                tensor.mul_(3.0)
    return model


def ids_of(tokens: int, batch: int = 2) -> torch.Tensor:
    return torch.randint(VOCAB, (batch, tokens), generator=torch.Generator().manual_seed(tokens))


def fed(model: LanguageModel, ids_BT: torch.Tensor, chunk: int) -> tuple[torch.Tensor, Cache]:
    """Logits and the cache after feeding chunks of a size."""
    cache: Cache = {}
    with torch.no_grad():
        logits = [model.extend(part, cache) for part in ids_BT.split(chunk, 1)]
    return torch.cat(logits, 1), cache


@given(
    kind=st.sampled_from(SPARSITIES),
    count=st.integers(0, 70),
    window=st.none() | st.integers(1, 80),
    sizes=st.tuples(st.integers(0, 20), st.integers(1, 9), st.integers(0, 4), st.integers(1, 9), st.integers(1, 9)),
)
@settings(max_examples=up_to(200))
def test_a_cache_keeps_what_a_later_token_may_see_and_no_more(
    kind: Any, count: int, window: int | None, sizes: tuple[int, int, int, int, int]
) -> None:
    near, block, stride, every, dilation = sizes
    pattern = Pattern(kind, near, block, max(stride, 1) if kind == "local_block" else stride, every, dilation)
    kept = places(remembered(pattern, count, window), torch.device("cpu")).tolist()
    assert kept == sorted(set(kept))
    later = range(count, count + 200)  # longer than any period of the patterns drawn

    def needed(j: int) -> bool:
        return any(naive.sees(pattern, i, j) and (window is None or i - j < window) for i in later)

    own_block = range((count - 1) // block * block, count) if kind == "block" and stride == 0 and count else ()
    windowed = kind in ("block", "local_block", "dilated") and window is not None
    for j in range(count):
        if needed(j):
            assert j in kept
        elif j in kept:
            assert j in own_block or (windowed and j > count - window)


@pytest.mark.parametrize("sparsity", SPARSITIES)
def test_a_window_is_attention_to_the_last_tokens_whatever_the_chunks(sparsity: Any) -> None:
    """The same weights under the pattern and a window, every score computed."""
    ids_BT, window = ids_of(40), 9
    decoded, _ = fed(model_of(sparsity=sparsity, kv_policy={"kind": "window", "window": window}), ids_BT, 1)
    for chunk in (7, 40):
        again, cache = fed(model_of(sparsity=sparsity, kv_policy={"kind": "window", "window": window}), ids_BT, chunk)
        torch.testing.assert_close(again, decoded, rtol=0, atol=1e-12)
        assert cache["blocks.0.attn"]["k"].shape[2] < window
    whole, _ = fed(model_of(sparsity=sparsity), ids_BT, 40)
    assert torch.equal(decoded[:, :1], whole[:, :1]) or float((decoded - whole)[:, :1].abs().max()) < 1e-12
    sees_less = sparsity not in ("sliding", "block")  # their own keys are nearer than the window
    assert (float((decoded - whole).abs().max()) > 1e-6) == (sees_less or sparsity == "block")


def test_a_window_gives_what_sliding_attention_of_that_width_gives() -> None:
    ids_BT = ids_of(40)
    windowed, _ = fed(model_of(kv_policy={"kind": "window", "window": 9}), ids_BT, 5)
    sliding = model_of(sparsity="sliding", sliding_window=8)
    torch.testing.assert_close(windowed, sliding(ids_BT), rtol=0, atol=1e-12)
    exact, _ = fed(model_of(sparsity="sliding", kv_policy={"kind": "window", "window": 7}), ids_BT, 5)
    torch.testing.assert_close(exact, model_of(sparsity="sliding")(ids_BT), rtol=0, atol=1e-12)


def test_int8_rounds_every_vector_to_its_own_scale() -> None:
    x = (
        torch.randn(3, 4, 5, 16, generator=torch.Generator().manual_seed(0)).double()
        * torch.logspace(-3, 3, 5)[:, None]
    )
    x[0, 0, 0] = 0.0
    values, scale = quantise(x)
    assert values.dtype == torch.int8
    assert bool(((values * scale - x).abs() <= scale * 0.5000001).all())
    assert values.abs().amax(-1).unique().tolist() == [0, 127]


def test_an_int8_cache_is_near_the_full_one_and_does_not_depend_on_the_chunks() -> None:
    ids_BT = ids_of(40)
    exact, _ = fed(model_of(), ids_BT, 40)
    one, cache = fed(model_of(kv_policy={"quant": "int8"}), ids_BT, 1)
    whole, _ = fed(model_of(kv_policy={"quant": "int8"}), ids_BT, 40)
    torch.testing.assert_close(one, whole, rtol=0, atol=1e-10)
    error = float((one - exact).square().mean().sqrt() / exact.square().mean().sqrt())
    assert 1e-6 < error < 0.02
    assert cache["blocks.0.attn"]["k"].dtype == torch.int8


@pytest.mark.parametrize("policy", [{}, {"quant": "int8"}, {"kind": "window", "window": 9}], ids=str)
@pytest.mark.parametrize("sparsity", SPARSITIES)
def test_the_costs_are_the_bytes_of_the_real_cache_in_bf16(sparsity: Any, policy: dict[str, Any]) -> None:
    tokens, blocks = 61, 2
    plan = blueprint(sparsity=sparsity, kv_policy=policy)
    _, cache = fed(build(plan).bfloat16().eval(), ids_of(tokens, 1), 20)
    predicted = costs(plan, tokens)
    counters = 8 * blocks
    want = predicted["kv_bytes_per_token"] * tokens + predicted["state_bytes"]
    # with local_global the last stretch between two global tokens is in part counted
    slack = blocks * 2 * 2 * HEAD_DIM * 2 * (sparsity == "local_global")
    assert abs(cache_bytes(cache) - counters - want) <= slack


def test_bf16_autocast_caches_bf16_and_stays_near() -> None:
    model, ids_BT = build(blueprint(qk_norm="rms"), seed=1).eval(), ids_of(30)
    exact, cache = model(ids_BT).detach(), {}
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        logits = torch.cat([model.extend(part, cache) for part in ids_BT.split(4, 1)], 1)
    assert {x.dtype for x in cache["blocks.1.attn"].values()} == {torch.bfloat16, torch.int64}
    assert float((logits - exact).abs().max()) < 0.05 * float(exact.abs().max())


def test_measured_decoding_has_the_bytes_of_a_cache_and_leaves_the_mode() -> None:
    model = build(blueprint()).train()
    measured = measure_decoding(model, ids_of(32), 8)
    assert measured.tokens_per_second > 0
    assert measured.kv_bytes == pytest.approx(2 * 2 * 2 * HEAD_DIM * 4, rel=0.01)  # blocks, k and v, kv heads, fp32
    assert model.training
    with pytest.raises(ValueError, match="got 32 steps over 32 tokens"):
        measure_decoding(model, ids_of(32), 32)


def test_decoding_loses_nothing_where_the_cache_is_whole_and_else_what_it_no_longer_holds() -> None:
    """With one layer, a window of the cache, which counts the token itself, hides what a sliding window does."""
    ids, whole = ids_of(33).numpy(), model_of()
    whole.train()
    assert abs(lost_in_decoding(whole, ids, 9)).max() < 1e-9
    assert abs(lost_in_decoding(whole, ids, 32)).max() < 1e-9
    assert whole.training
    single = {name: x for name, x in whole.state_dict().items() if "blocks.1." not in name}
    nats = {}
    for name, attn in (("full", {}), ("sliding", {"sparsity": "sliding", "sliding_window": 7})):
        model = assemble(shallow(**attn), single).eval()
        with torch.no_grad():
            logits_BSV = model(torch.from_numpy(ids[:, :-1]))[:, -9:]
        nats[name] = F.cross_entropy(logits_BSV.mT, torch.from_numpy(ids[:, -9:]), reduction="none").numpy()
    windowed = assemble(shallow(kv_policy={"kind": "window", "window": 8}), single)
    lost_BS = lost_in_decoding(windowed, ids, 9)
    assert np.allclose(lost_BS, nats["sliding"] - nats["full"], atol=1e-9)
    assert abs(lost_BS).max() > 1e-3
    rounded = assemble(shallow(kv_policy={"kind": "full", "quant": "int8"}), single)
    assert 1e-6 < abs(lost_in_decoding(rounded, ids, 9)).max() < 0.1


def test_generation_repeats_by_seed_and_follows_the_model() -> None:
    model, prompt = model_of().train(), ids_of(5)
    ids = model.generate(prompt, 9, seed=3)
    assert ids.shape == (2, 14)
    assert torch.equal(ids[:, :5], prompt)
    assert torch.equal(ids, model.generate(prompt, 9, seed=3))
    assert not torch.equal(ids, model.generate(prompt, 9, seed=4))
    assert model.training
    assert torch.equal(model.generate(prompt, 0), prompt)
    greedy = model.generate(prompt, 9, temperature=0.0)
    assert torch.equal(greedy, model.generate(prompt, 9, top_k=1, seed=5))
    for t in range(5, 14):
        assert torch.equal(greedy[:, t], model.eval()(greedy[:, :t])[:, -1].argmax(-1))


def test_a_conversation_goes_on_from_its_cache() -> None:
    model, prompt, cache = model_of(), ids_of(5), {}
    first = model.generate(prompt, 4, temperature=0.0, cache=cache)
    again = model.generate(first[:, -1:], 4, temperature=0.0, cache=cache)
    assert torch.equal(torch.cat([first, again[:, 1:]], 1), model.generate(prompt, 8, temperature=0.0))


def test_samples_have_the_probabilities_of_the_logits() -> None:
    model, prompt = model_of(), ids_of(5, 1).expand(4000, 5)
    p_V = (model(prompt[:1]).detach()[0, -1].float() / 0.5).softmax(-1)
    counts_V = torch.bincount(model.generate(prompt, 1, temperature=0.5)[:, -1], minlength=VOCAB)
    assert float((counts_V / 4000 - p_V).abs().max()) < 4 * math.sqrt(0.25 / 4000)
    best = set(p_V.topk(3).indices.tolist())
    assert set(model.generate(prompt, 1, temperature=5.0, top_k=3)[:, -1].tolist()) == best


def test_a_temperature_near_zero_takes_the_likeliest() -> None:
    model, prompt = model_of(), ids_of(5, 2)
    for top_k in (None, 3):
        assert torch.equal(
            model.generate(prompt, 6, temperature=1e-300, top_k=top_k), model.generate(prompt, 6, temperature=0.0)
        )


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda m: m.generate(torch.zeros(1, 0, dtype=torch.long), 1), "expected (B, T) with T ≥ 1"),
        (lambda m: m.generate(ids_of(3), -1), "tokens: got -1"),
        (lambda m: m.generate(ids_of(3), 1, temperature=-0.1), "got temperature -0.1"),
        (lambda m: m.generate(ids_of(3), 1, top_k=0), "top_k: got 0"),
        (lambda m: m.generate(ids_of(3) + VOCAB, 1), f"expected 0 to {VOCAB - 1}"),
        (lambda m: m.generate(ids_of(3) - VOCAB, 1), f"expected 0 to {VOCAB - 1}"),
        (lambda m: build(m.blueprint, vocab=0), "got 0, expected at least 1"),
    ],
)
def test_sampling_out_of_range_is_refused(call: Any, words: str) -> None:
    with pytest.raises(InputError) as caught:
        call(model_of())
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        ({"kind": "window"}, "needs a size"),
        ({"kind": "full", "window": 8}, "window is 8, but kv_policy full has none"),
        ({"kind": "latent"}, "MHA has no latent"),
        ({"kind": "window", "window": 0}, "greater than 0"),
    ],
)
def test_policies_that_cannot_be_are_refused(policy: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Attention.model_validate({"kind": "MHA", "heads": 2, "head_dim": 8, "kv_policy": policy})
    assert KVPolicy() == KVPolicy(kind="full", quant="none")


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_weights_that_are_not_finite_are_told_by_name(temperature: float) -> None:
    model = model_of()
    with torch.no_grad():
        model.emb.weight[3, 0] = float("nan")
    with pytest.raises(DivergedError, match=r"first of them in emb\.weight"):
        model.generate(ids_of(4), 2, temperature=temperature)
    assert not model.training
