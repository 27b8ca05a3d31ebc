"""Memories, fast against the references. B batch, H heads, T tokens, S slots, E width."""

import itertools
from collections.abc import Callable, Sequence
from functools import partial

import pytest
import torch
from torch import Tensor

from morphogen.errors import InputError
from morphogen.ops import naive_memory as naive
from morphogen.ops.fast_weights import FEATURES, delta_memory, features
from morphogen.ops.slot_attention import attend_learned, attend_slots, mean_slots, weighted_slots
from morphogen.ops.slots import ROWS, Slots, read_pairs

LENGTHS = (1, 7, 63, 130)
DTYPES = ((torch.float32, 1e-5), (torch.float64, 1e-10))
SLOTS = (
    Slots(8, 8, 3),
    Slots(8, 8, 40),
    Slots(5, 5, 1),
    Slots(12, 8),
    Slots(9, 4),
    Slots(7, 3),
    Slots(200, 1),
    Slots(1, 1),
)


def drawn(dtype: torch.dtype, *shapes: tuple[int, ...]) -> list[Tensor]:
    """Random leaves."""
    generator = torch.Generator().manual_seed(sum(map(sum, shapes)))
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for shape in shapes]


def results(function: Callable[..., Tensor | tuple[Tensor, ...]], leaves: Sequence[Tensor]) -> list[Tensor]:
    """All outputs, and the gradients of all leaves under fixed random gradients of the outputs."""
    out = function(*leaves)
    outs = out if isinstance(out, tuple) else (out,)
    generator = torch.Generator().manual_seed(1)
    loss = sum((y * torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y.dtype)).sum() for y in outs)
    loss = loss + sum(0 * x.sum() for x in leaves)  # so that what depends on no leaf has a gradient of zero
    return [*(y.detach() for y in outs), *torch.autograd.grad(loss, leaves)]


def exact(reference: Callable[..., Tensor | tuple[Tensor, ...]], leaves: Sequence[Tensor]) -> list[Tensor]:
    """The reference's results in fp64, so that what is bounded is the rounding of the fast one alone."""
    return results(reference, [x.detach().double().requires_grad_() for x in leaves])


def assert_close(want: list[Tensor], got: list[Tensor], rtol: float) -> None:
    """Relative RMS error of every output and gradient; the floor is for those that are zero."""
    for i, (a, b) in enumerate(zip(want, got, strict=True)):
        assert a.shape == b.shape
        if a.numel():
            error = (a.double() - b.double()).square().mean().sqrt() / a.double().square().mean().sqrt().clamp(min=1e-2)
            assert error <= rtol, f"tensor {i}: relative RMS error {float(error):.2e}"


@pytest.mark.parametrize("slots", SLOTS, ids=str)
def test_slots_equal_the_reference_in_output_and_all_gradients(slots: Slots) -> None:
    for length, (dtype, rtol) in itertools.product(LENGTHS, DTYPES):
        x = drawn(dtype, (2, length, 5))
        fast = results(partial(mean_slots, slots=slots), x)
        assert_close(exact(partial(naive.mean_slots, size=slots.size, stride=slots.stride), x), fast, rtol)
        count = slots.complete(length)
        assert fast[0].shape == (2, count, 5)
        qkv = drawn(dtype, (2, 3, length, 5), (2, 3, count, 5), (2, 3, count, 4))
        want = exact(partial(naive.attend_slots, size=slots.size, stride=slots.stride, keep=slots.keep), qkv)
        assert_close(want, results(partial(attend_slots, slots=slots), qkv), rtol)


def test_slots_across_several_tiles() -> None:
    for slots in (Slots(8, 8, 5), Slots(16, 8)):
        qkv = drawn(torch.float64, (1, 2, 400, 4), (1, 2, slots.complete(400), 4), (1, 2, slots.complete(400), 4))
        want = exact(partial(naive.attend_slots, size=slots.size, stride=slots.stride, keep=slots.keep), qkv)
        assert_close(want, results(partial(attend_slots, slots=slots), qkv), 1e-10)


@pytest.mark.parametrize("how", ["attention", "gate"])
def test_weighted_chunks_equal_the_reference(how: str) -> None:
    for length, size, (dtype, rtol) in itertools.product(LENGTHS, (1, 8, 13), DTYPES):
        leaves = drawn(dtype, (3, length, 5), (3, length))
        want = exact(partial(naive.weighted_slots, size=size, how=how), leaves)
        assert_close(want, results(partial(weighted_slots, size=size, how=how), leaves), rtol)
        plain = leaves[0].detach()
        even = weighted_slots(plain, torch.zeros_like(leaves[1]), size, how)
        assert torch.allclose(even, mean_slots(plain, Slots(size, size)), atol=1e-6)


def test_no_tokens_read_learned_slots() -> None:
    leaves = drawn(torch.float32, (1, 0, 3, 5), (3, 9, 5), (3, 9, 4))
    y_BTHV, *grads = results(attend_learned, leaves)
    assert y_BTHV.shape == (1, 0, 3, 4)
    assert not any(bool(grad.any()) for grad in grads)


def test_learned_slots_equal_the_reference() -> None:
    for length, (dtype, rtol) in itertools.product(LENGTHS, DTYPES):
        leaves = drawn(dtype, (2, length, 3, 5), (3, 9, 5), (3, 9, 4))
        assert_close(exact(naive.attend_learned, leaves), results(attend_learned, leaves), rtol)


@pytest.mark.parametrize("kind", FEATURES)
def test_fast_weights_equal_the_reference_in_output_state_and_all_gradients(kind: str) -> None:
    for length, (dtype, rtol) in itertools.product(LENGTHS, DTYPES):
        wide = 5 * (2 if kind == "dpfp" else 1)
        sizes = ((2, 3, length, 5), (2, 3, length, 5), (2, 3, length, 4), (2, 3, length), (2, 3, wide, 4))
        leaves = drawn(dtype, *sizes)

        def given(op: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., tuple[Tensor, ...]]:
            return lambda q, k, v, b, s: op(features(q, kind), features(k, kind), v, b.sigmoid(), s)

        assert_close(exact(given(naive.delta_memory), leaves), results(given(delta_memory), leaves), rtol)


def test_a_write_of_strength_one_is_read_back_and_overwritten() -> None:
    key = torch.eye(4, dtype=torch.float64)[:1].expand(1, 1, 2, 4)
    value = torch.tensor([[[[1.0, 2.0], [5.0, 7.0]]]], dtype=torch.float64)
    y, state = delta_memory(key, key, value, torch.ones(1, 1, 2, dtype=torch.float64))
    assert torch.allclose(y, value)
    assert torch.allclose(state[0, 0, 0], value[0, 0, 1])


def test_features_have_length_one_and_no_infinite_gradient_at_zero() -> None:
    for kind in FEATURES:
        x = drawn(torch.float32, (50, 6))[0].abs() + 0.1
        assert torch.allclose(features(x, kind).norm(dim=-1), torch.ones(50), atol=1e-2)
        zero = torch.zeros(2, 6, requires_grad=True)
        features(zero, kind).sum().backward()
        assert zero.grad is not None
        assert bool(zero.grad.isfinite().all())


@pytest.mark.parametrize("slots", SLOTS, ids=str)
def test_counts_of_slots_and_pairs(slots: Slots) -> None:
    for length in (1, 40, 1000):
        spans = [s for s in range(length) if s * slots.stride + slots.size <= length]
        assert slots.complete(length) == len(spans)
        read = [slots.complete(t) if slots.keep is None else min(slots.complete(t), slots.keep) for t in range(length)]
        waste = length * (ROWS // slots.stride + 1)  # slots that only some queries of a tile read
        assert sum(read) <= read_pairs(slots, length) <= sum(read) + waste


def test_bf16_stays_near_fp64_and_keeps_its_dtype() -> None:
    slots = Slots(8, 8, 5)
    qkv = drawn(torch.float64, (2, 3, 63, 8), (2, 3, 7, 8), (2, 3, 7, 8))
    learned = drawn(torch.float64, (2, 63, 3, 8), (3, 9, 8), (3, 9, 8))
    for op, leaves in ((partial(attend_slots, slots=slots), qkv), (attend_learned, learned)):
        exact = results(op, leaves)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            cast = results(op, [x.detach().float().requires_grad_() for x in leaves])
        assert cast[0].dtype == torch.bfloat16
        assert_close(exact, cast, 2e-2)
    delta = drawn(torch.float64, (2, 3, 63, 6), (2, 3, 63, 6), (2, 3, 63, 4), (2, 3, 63))

    def memory(q: Tensor, k: Tensor, v: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        return delta_memory(features(q, "elu"), features(k, "elu"), v, b.sigmoid())

    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = results(memory, [x.detach().bfloat16().requires_grad_() for x in delta])
    assert got[1].dtype == torch.float32
    assert_close(results(memory, delta), got, 2e-2)


def test_slots_that_leave_gaps_are_refused() -> None:
    for size, stride, keep in ((4, 5, None), (4, 0, None), (4, 4, 0)):
        with pytest.raises(InputError, match="stride"):
            Slots(size, stride, keep)
