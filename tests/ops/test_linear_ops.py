"""Chunked linear attention and delta rule against their loops. B batch, K kv heads, G group, T tokens, E, V widths."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from morphogen.errors import InputError
from morphogen.ops import naive_linear
from morphogen.ops.linear_attention import FEATURE_MAPS, gated_delta, linear_attention, unit
from morphogen.ops.names import POSITIVE

LENGTHS = (1, 7, 63, 64, 130)
SHAPES = ((2, 3, 1, 8, 8), (1, 3, 2, 5, 12), (2, 1, 3, 1, 1))  # B, K, G, E, V
NAMES = ("y", "state", "dq", "dk", "dv", "dstate", "dg", "dbeta")


def leaves_of(length: int, shape: tuple[int, ...], dtype: torch.dtype, decay: float = 1.0) -> list[Tensor]:
    """q, k, v, state, log decays, beta; keys of unit length. decay: its mean rate per token."""
    B, K, G, E, V = shape
    draw = torch.Generator().manual_seed(length)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=draw, dtype=torch.float64)

    q, k, v = normal(B, K, G, length, E), unit(normal(B, K, length, E)), normal(B, K, length, V)
    log_decay = -decay * torch.rand(B, K, length, generator=draw, dtype=torch.float64)
    beta = torch.rand(B, K, length, generator=draw, dtype=torch.float64)
    return [x.to(dtype).requires_grad_() for x in (q, k, v, normal(B, K, E, V), log_decay, beta)]


def outputs(function: Callable[..., Any], leaves: list[Tensor], delta: bool) -> list[Tensor]:
    """y, the last state, and the gradients of all inputs under fixed random gradients of both."""
    q, k, v, state, log_decay, beta = leaves
    rest = (log_decay, beta) if delta else (log_decay,)
    y, last = function(q, k, v, *rest, state)
    draw = torch.Generator().manual_seed(1)
    d_out = [torch.randn(x.shape, generator=draw, dtype=torch.float64).to(x.dtype) for x in (y, last)]
    wanted = leaves if delta else leaves[:-1]
    return [y.detach(), last.detach(), *torch.autograd.grad((y, last), wanted, d_out)]


def errors(want: list[Tensor], got: list[Tensor]) -> dict[str, float]:
    """Relative RMS error per tensor."""
    return {
        name: float(
            (a.double() - b.double()).square().mean().sqrt() / a.double().square().mean().sqrt().clamp(min=1e-3)
        )
        for name, a, b in zip(NAMES, want, got, strict=False)
    }


FUNCTIONS = [
    pytest.param(naive_linear.linear_attention, linear_attention, False, id="linear"),
    pytest.param(naive_linear.gated_delta, gated_delta, True, id="delta"),
]


@pytest.mark.parametrize(("slow", "fast", "delta"), FUNCTIONS)
def test_chunks_equal_the_loop_in_outputs_state_and_all_gradients(slow: Any, fast: Any, delta: bool) -> None:
    for length, shape in itertools.product(LENGTHS, SHAPES):
        for dtype, bound in ((torch.float32, 1e-5), (torch.float64, 1e-10)):
            leaves = leaves_of(length, shape, dtype)
            reference = [x.detach().double().requires_grad_() for x in leaves]
            off = errors(outputs(slow, reference, delta), outputs(fast, leaves, delta))
            assert max(off.values()) <= bound, (length, shape, dtype, off)


@pytest.mark.parametrize(("slow", "fast", "delta"), FUNCTIONS)
@pytest.mark.parametrize("decay", [0.0, 1e-3, 30.0, 300.0])
def test_decays_of_any_size_keep_their_digits(slow: Any, fast: Any, delta: bool, decay: float) -> None:
    """At 300 per token a chunk's sum of logarithms is about −10,000: differences of running sums would be noise."""
    leaves = leaves_of(130, SHAPES[0], torch.float32, decay)
    reference = [x.detach().double().requires_grad_() for x in leaves]
    off = errors(outputs(slow, reference, delta), outputs(fast, leaves, delta))
    assert max(off.values()) <= 1e-5, off


def plain(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None) -> tuple[Tensor, Tensor]:
    return linear_attention(q, k, v, log_decay)


@pytest.mark.parametrize("length", LENGTHS)
def test_no_decay_and_one_decay_for_all_tokens_are_special_cases(length: int) -> None:
    q, k, v, state, log_decay, _ = (x.detach() for x in leaves_of(length, SHAPES[1], torch.float64))
    fixed_BK1 = log_decay[:1, :, :1]
    for given, whole in ((None, torch.zeros_like(log_decay)), (fixed_BK1, fixed_BK1.expand_as(log_decay))):
        y, last = linear_attention(q, k, v, given, state)
        want_y, want_last = naive_linear.linear_attention(q, k, v, whole, state)
        torch.testing.assert_close(y, want_y, rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(last, want_last, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(("slow", "fast", "delta"), FUNCTIONS)
def test_bf16_stays_near_fp64_by_dtype_and_by_autocast(slow: Any, fast: Any, delta: bool) -> None:
    exact = outputs(slow, leaves_of(130, SHAPES[1], torch.float64), delta)
    q, k, v, *rest = leaves_of(130, SHAPES[1], torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        cast = outputs(fast, [q, k, v, *rest], delta)
    assert cast[0].dtype == torch.bfloat16
    assert {x.dtype for x in cast[1:]} == {torch.float32}
    assert max(errors(exact, cast).values()) <= 2e-2
    half = [x.detach().bfloat16().requires_grad_() for x in (q, k, v)]
    got = outputs(fast, [*half, *rest], delta)
    assert [x.dtype for x in got[:3]] == [torch.bfloat16, torch.float32, torch.bfloat16]
    assert max(errors(exact, got).values()) <= 2e-2


@pytest.mark.parametrize("length", [7, 63, 130])
def test_the_delta_rule_equals_an_independent_implementation(length: int) -> None:
    from transformers.models.qwen3_next.modeling_qwen3_next import torch_chunk_gated_delta_rule

    q, k, v, state, log_decay, beta = leaves_of(length, (2, 3, 1, 8, 12), torch.float32)
    ours = outputs(gated_delta, [q, k, v, state, log_decay, beta], True)

    def theirs(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        turned = [x.transpose(1, 2) for x in (q[:, :, 0] * q.shape[-1] ** 0.5, k, v, g, beta)]
        y, last = torch_chunk_gated_delta_rule(*turned, initial_state=state, output_final_state=True)
        return y.transpose(1, 2)[:, :, None], last

    off = errors(outputs(theirs, [q, k, v, state, log_decay, beta], True), ours)
    assert off["y"] <= 1e-5
    assert max(off.values()) <= 1e-4, off


def test_feature_maps_that_are_weights_are_not_negative() -> None:
    x = torch.linspace(-3, 3, 60).view(6, 10)
    for name, feature in FEATURE_MAPS.items():
        assert feature(x).shape == x.shape
        assert (float(feature(x).min()) >= 0.0) == (name in POSITIVE)


@pytest.mark.parametrize(
    ("change", "words"),
    [({"q": (2, 3, 4, 5)}, "expected (B, K, G, T, E)"), ({"state": (2, 3, 5, 4)}, "expected (2, 3, 4, 6)")],
)
def test_what_does_not_fit_is_refused(change: dict[str, tuple[int, ...]], words: str) -> None:
    shapes = {"q": (2, 3, 1, 5, 4), "k": (2, 3, 5, 4), "v": (2, 3, 5, 6), "state": (2, 3, 4, 6), **change}
    q, k, v, state = (torch.zeros(shape) for shape in shapes.values())
    with pytest.raises(InputError) as caught:
        linear_attention(q, k, v, None, state)
    assert words in str(caught.value)
