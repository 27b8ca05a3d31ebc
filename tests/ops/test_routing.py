"""Routing and running experts, fast against the reference. B sequences, T and N tokens, E experts, K choices."""

import itertools
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from examples import up_to
from morphogen.ops import naive_routing, routing

ACTIVATIONS = ["swiglu", "geglu", "gelu", "relu", "relu2", "silu"]


def rel_rms(want: Tensor, got: Tensor) -> float:
    """Relative RMS error; the floor is for tensors that are zero."""
    want, got = want.detach().double(), got.detach().double()
    return float((want - got).square().mean().sqrt() / want.square().mean().sqrt().clamp(min=1e-6))


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@given(
    tokens=st.integers(1, 40),
    places=st.integers(2, 7),
    k=st.integers(1, 4),
    kind=st.sampled_from(["softmax", "sigmoid"]),
    temperature=st.sampled_from([0.3, 1.0, 2.0]),
    biased=st.booleans(),
)
@settings(max_examples=up_to(60))
def test_the_choice_and_its_gradient_are_those_of_the_definition(
    tokens: int, places: int, k: int, kind: Any, temperature: float, biased: bool
) -> None:
    k = min(k, places)
    logits_NF = draw(tokens, places).requires_grad_()
    bias_F = draw(places, seed=1) if biased else None
    places_NK, weights_NK, _ = routing.choose(logits_NF, k, kind, temperature, bias_F)
    want_NK, want_weights_NK = naive_routing.choose(logits_NF, k, kind, temperature, bias_F)
    assert torch.equal(places_NK, want_NK)
    torch.testing.assert_close(weights_NK, want_weights_NK, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(weights_NK.sum(-1), torch.ones(tokens, dtype=torch.float64))
    dw_NK = draw(tokens, k, seed=2)
    got, want = (torch.autograd.grad(w, logits_NF, dw_NK)[0] for w in (weights_NK, want_weights_NK))
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)
    assert k == places or k > 1 or bool(got.any())


def test_the_choice_stands_logits_that_underflow() -> None:
    logits_NF = torch.tensor([[-400.0, -500.0, -450.0], [900.0, 0.0, 800.0]], requires_grad=True)
    for kind, k in itertools.product(("softmax", "sigmoid"), (1, 2)):
        places_NK, weights_NK, logp_NF = routing.choose(logits_NF, k, kind)  # type: ignore[arg-type]
        assert places_NK[:, 0].tolist() == [0, 0]
        weights_NK.square().sum().backward()  # type: ignore[no-untyped-call]
        assert bool(weights_NK.isfinite().all() and logits_NF.grad.isfinite().all())  # type: ignore[union-attr]
        assert bool(logp_NF.isfinite().all())


def test_twins_take_the_tokens_on_their_side() -> None:
    turn_NK = torch.tensor([[0.3, -0.2, 0.1]], requires_grad=True)
    lean_NK, split_NK = torch.tensor([[0.0, 0.5, -0.5]]), torch.tensor([[True, True, True]])
    second_NK, factor_NK = routing.between_twins(turn_NK, lean_NK, split_NK)
    assert second_NK.tolist() == [[True, True, False]]
    assert factor_NK.tolist() == [[1.0, 1.0, 1.0]]
    factor_NK.sum().backward()  # type: ignore[no-untyped-call]
    s = turn_NK.detach().sigmoid()
    torch.testing.assert_close(turn_NK.grad, torch.stack([1 - s[0, 0], 1 - s[0, 1], -s[0, 2]])[None])
    alone_NK, factor_NK = routing.between_twins(turn_NK, lean_NK, ~split_NK)
    assert not alone_NK.any()
    assert torch.equal(factor_NK, torch.ones(1, 3))


@given(
    length=st.integers(1, 50),
    n_experts=st.integers(2, 6),
    k=st.integers(1, 3),
    factor=st.sampled_from([0.25, 0.7, 1.0, 1.25, 3.0]),
    seed=st.integers(0, 99),
    cut=st.integers(0, 50),
)
@settings(max_examples=up_to(60))
def test_capacity_is_that_of_the_loop_whole_or_in_pieces(
    length: int, n_experts: int, k: int, factor: float, seed: int, cut: int
) -> None:
    k, cut = min(k, n_experts), min(cut, length)
    skew_E = torch.linspace(0, 2, n_experts, dtype=torch.float64)
    experts_BTK = (draw(2, length, n_experts, seed=seed) + skew_E).topk(k).indices
    want_BTK = naive_routing.within_capacity(experts_BTK, n_experts, factor)
    load_BE, pieces = torch.zeros(2, n_experts, dtype=torch.long), []
    for start, stop in ((0, cut), (cut, length)):
        if start < stop:
            ceiling_T = routing.ceilings(factor, k, n_experts, start, stop - start)
            kept_BTK, load_BE = routing.within_capacity(experts_BTK[:, start:stop], ceiling_T, load_BE)
            pieces.append(kept_BTK)
    assert torch.equal(torch.cat(pieces, 1), want_BTK)
    taken_BE = torch.stack([experts_BTK[b][want_BTK[b]].bincount(minlength=n_experts) for b in range(2)])
    assert torch.equal(load_BE, taken_BE)


def run_both(tokens: int, dim: int, hidden: int, activation: str, dtype: torch.dtype, share_kept: float) -> None:
    n_experts, k = 5, 2
    logits_NE = draw(tokens, n_experts) + torch.tensor([1.0, 0.0, 0.0, -9.0, 0.0])  # one expert gets nothing
    experts_NK = logits_NE.topk(k).indices
    kept_NK = torch.rand(tokens, k, generator=torch.Generator().manual_seed(3)) < share_kept
    gated = activation in ("swiglu", "geglu")
    sizes = [(tokens, dim), (tokens, k), (n_experts, hidden, dim), (n_experts, hidden, dim), (n_experts, hidden, dim)]
    leaves = [draw(*size, seed=i, dtype=dtype).requires_grad_() for i, size in enumerate(sizes)]
    x, weights, up, down, gate = leaves
    used = leaves if gated else leaves[:4]

    def fast() -> Tensor:
        dispatch = routing.dispatch(experts_NK, n_experts, None if share_kept >= 1 else kept_NK)
        return routing.expert_ffn(x, weights, dispatch, up, gate if gated else None, down, activation)

    def slow() -> Tensor:
        return naive_routing.experts(x, experts_NK, weights, kept_NK, up, gate if gated else None, down, activation)

    dy = draw(tokens, dim, seed=9, dtype=dtype)
    bound = {torch.float32: 1e-5, torch.float64: 1e-10, torch.bfloat16: 3e-2}[dtype]
    got, want = fast(), slow()
    grads, wants = (torch.autograd.grad(out, used, dy, materialize_grads=True) for out in (got, want))
    for name, a, b in zip(("y", "dx", "dw", "dup", "ddown", "dgate"), (want, *wants), (got, *grads), strict=False):
        assert rel_rms(a, b) <= bound, (name, rel_rms(a, b))
        assert a.dtype == b.dtype == dtype


@pytest.mark.parametrize(("dim", "hidden"), [(16, 24), (9, 7)], ids=["grouped", "sliced"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_experts_equal_the_loop_in_output_and_all_gradients(dim: int, hidden: int, dtype: torch.dtype) -> None:
    for i, tokens in enumerate((1, 7, 63, 130)):
        for share_kept in (1.0, 0.5):
            run_both(tokens, dim, hidden, ACTIVATIONS[i], dtype, share_kept)
    run_both(7, dim, hidden, "relu", dtype, 0.0)
    run_both(7, dim, hidden, "silu", dtype, 1.0)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_the_grouped_matmul_is_taken_where_torch_has_one_wherever_that_is_asked_first(
    context: Callable[[], AbstractContextManager[None]],
) -> None:
    routing.grouped_mm_works.cache_clear()
    with context():
        assert routing.grouped_mm_works("cpu", torch.float32) == hasattr(torch.nn.functional, "grouped_mm")
        assert not routing.grouped_mm_works("cpu", torch.float64)


def test_fp32_weights_are_cast_for_bf16_tokens_and_keep_fp32_gradients() -> None:
    x, weights = draw(63, 16, dtype=torch.bfloat16), draw(63, 2, seed=1, dtype=torch.float32).softmax(-1)
    stacks = [draw(5, 24, 16, seed=2 + i, dtype=torch.float32).requires_grad_() for i in range(3)]
    dispatch, dy = routing.dispatch(draw(63, 5).topk(2).indices, 5), draw(63, 16, seed=9, dtype=torch.bfloat16)
    got = routing.expert_ffn(x, weights, dispatch, *stacks, "swiglu")
    want = routing.expert_ffn(x, weights, dispatch, *(stack.bfloat16() for stack in stacks), "swiglu")
    assert torch.equal(got, want)
    for a, b in zip(*(torch.autograd.grad(y, stacks, dy) for y in (got, want)), strict=True):
        assert a.dtype == torch.float32
        assert torch.equal(a, b)


def test_the_balance_loss_pushes_down_the_probability_of_the_busy_expert() -> None:
    logits_NE = (draw(200, 4) + torch.tensor([2.0, 0.0, 0.0, 0.0])).requires_grad_()
    probs_NE = logits_NE.softmax(-1)
    load_E = probs_NE.argmax(-1).bincount(minlength=4).double()
    loss = routing.balance_loss(probs_NE, load_E)
    assert loss > 1.2
    loss.backward()  # type: ignore[no-untyped-call]
    assert logits_NE.grad is not None
    assert logits_NE.grad.sum(0)[0] > 0
    assert bool((logits_NE.grad.sum(0)[1:] < 0).all())
    even = torch.full((8, 4), 0.25, dtype=torch.float64)
    assert float(routing.balance_loss(even, torch.full((4,), 5.0))) == pytest.approx(1.0)


def test_entropy_and_z_loss_are_those_of_their_formulas() -> None:
    logits_NE = draw(6, 3)
    probs_NE = logits_NE.softmax(-1)
    assert float(routing.entropy(probs_NE)) == pytest.approx(float(-(probs_NE * probs_NE.log()).sum(-1).mean()))
    assert float(routing.z_loss(logits_NE)) == pytest.approx(float(logits_NE.exp().sum(-1).log().square().mean()))
    assert float(routing.entropy(torch.tensor([[1.0, 0.0]]))) == 0.0
