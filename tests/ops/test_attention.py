"""Every sparsity pattern, fast against the reference. B batch, H heads, K kv heads, T tokens, E width."""

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from examples import up_to
from morphogen.errors import InputError
from morphogen.ops import naive, sparse_attention, tiled_attention
from morphogen.ops.patterns import Pattern, alibi_slopes
from morphogen.ops.sparse_attention import attend

PATTERNS = [
    Pattern(),
    Pattern("sliding", window=0),
    Pattern("sliding", window=5),
    Pattern("sliding", window=70),
    Pattern("sliding", window=200),
    Pattern("block", block_size=8),
    Pattern("block", block_size=5, block_stride=3),
    Pattern("block", block_size=64, block_stride=1),
    Pattern("local_global", window=9, global_stride=4),
    Pattern("local_global", window=0, global_stride=7),
    Pattern("local_global", window=40, global_stride=500),
    Pattern("dilated", dilation=3),
    Pattern("dilated", dilation=200),
    Pattern("local_block", window=6, block_size=5, block_stride=2),
    Pattern("local_block", window=0, block_size=8, block_stride=3),
    Pattern("local_block", window=20, block_size=16, block_stride=2),
    Pattern("local_block", window=3, block_size=70, block_stride=1),
]
KINDS = [
    Pattern(),
    Pattern("sliding", window=40),
    Pattern("block", block_size=32, block_stride=2),
    Pattern("local_global", window=20, global_stride=8),
    Pattern("dilated", dilation=3),
    Pattern("local_block", window=20, block_size=16, block_stride=2),
]
LENGTHS = (1, 7, 63, 130)
HEADS = ((3, 3, 8, 8), (6, 2, 20, 12))  # H, K, width of q and k, width of v


def slopes(heads: int) -> Tensor:
    return torch.tensor(alibi_slopes(heads), dtype=torch.float64)


def inputs(length: int, heads: tuple[int, int, int, int], dtype: torch.dtype, batch: int = 2) -> list[Tensor]:
    """Random q, k, v in the layout projections give: heads are a transposed view."""
    draw = torch.Generator().manual_seed(length)
    sizes = ((heads[0], heads[2]), (heads[1], heads[2]), (heads[1], heads[3]))
    return [
        torch.randn(batch, length, h, e, generator=draw, dtype=dtype).transpose(1, 2).requires_grad_() for h, e in sizes
    ]


def outputs(function: Any, leaves: list[Tensor], *args: Any, **options: Any) -> list[Tensor]:
    """y and the gradients of all leaves under a fixed random gradient of y."""
    y = function(*leaves, *args, **options)
    draw = torch.Generator().manual_seed(1)
    dy = torch.randn(y.shape, generator=draw, dtype=torch.float64).to(y.dtype)
    return [y.detach(), *torch.autograd.grad(y, leaves, dy)]


def assert_close(want: list[Tensor], got: list[Tensor], rtol: float) -> None:
    """Relative RMS error per tensor; the floor is for gradients that are zero but for rounding (one visible key)."""
    for name, a, b in zip(("y", "dq", "dk", "dv"), want, got, strict=True):
        error = (a.double() - b.double()).square().mean().sqrt() / a.double().square().mean().sqrt().clamp(min=1e-2)
        assert error <= rtol, f"{name}: relative RMS error {float(error):.2e}"


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_every_pattern_equals_the_reference_in_output_and_all_gradients(pattern: Pattern) -> None:
    for length, heads in itertools.product(LENGTHS, HEADS):
        for dtype, rtol in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
            leaves = inputs(length, heads, dtype)
            assert_close(outputs(naive.attention, leaves, pattern), outputs(attend, leaves, pattern), rtol)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_softcap_alibi_and_scale_work_in_every_pattern(pattern: Pattern) -> None:
    for length, heads in itertools.product((7, 130), HEADS):
        options = {"softcap": 2.0, "slopes_H": slopes(heads[0]), "scale": 0.7}
        leaves = inputs(length, heads, torch.float64)
        assert_close(
            outputs(naive.attention, leaves, pattern, **options), outputs(attend, leaves, pattern, **options), 1e-12
        )


@pytest.mark.parametrize("pattern", KINDS, ids=lambda p: p.kind)
def test_long_sequences_cross_every_choice_of_kernel(pattern: Pattern) -> None:
    for length in (300, 1030):
        leaves = inputs(length, (2, 1, 8, 8), torch.float32, batch=1)
        assert_close(outputs(naive.attention, leaves, pattern), outputs(attend, leaves, pattern), 1e-5)


@pytest.mark.parametrize("pattern", KINDS, ids=lambda p: p.kind)
def test_bf16_stays_near_fp64_by_dtype_and_by_autocast(pattern: Pattern) -> None:
    leaves = inputs(130, HEADS[1], torch.bfloat16)
    exact = outputs(naive.attention, [x.detach().double().requires_grad_() for x in leaves], pattern)
    got = outputs(attend, leaves, pattern)
    assert {x.dtype for x in got} == {torch.bfloat16}
    assert_close(exact, got, 2e-2)
    single = [x.detach().float().requires_grad_() for x in leaves]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = outputs(attend, single, pattern)
    assert [x.dtype for x in cast] == [torch.bfloat16] + [torch.float32] * 3
    assert_close(exact, cast, 2e-2)


@given(
    kind=st.sampled_from(["none", "sliding", "block", "local_global", "dilated", "local_block"]),
    length=st.integers(1, 90),
    window=st.integers(0, 100),
    block_size=st.integers(1, 40),
    block_stride=st.integers(1, 5),
    own_block_only=st.booleans(),
    global_stride=st.integers(1, 40),
    dilation=st.integers(1, 100),
)
@settings(max_examples=up_to(150), deadline=None)
def test_exactly_the_keys_of_the_definition_are_read(
    kind: Any, length: int, window: int, block_size: int, block_stride: int, own_block_only: bool, global_stride: int,
    dilation: int,
) -> None:  # fmt: skip
    """With equal scores and one-hot values, row i of the output is 1/n at each of the n keys that query i reads."""
    stride = 0 if kind == "block" and own_block_only else block_stride
    pattern = Pattern(kind, window, block_size, stride, global_stride, dilation)
    zeros_BHTE = torch.zeros(1, 1, length, 2, dtype=torch.float64)
    y_TT = attend(zeros_BHTE, zeros_BHTE, torch.eye(length, dtype=torch.float64)[None, None], pattern)[0, 0]
    mask_TT = naive.mask(pattern, length)
    torch.testing.assert_close(y_TT, mask_TT / mask_TT.sum(-1, keepdim=True, dtype=torch.float64), rtol=1e-12, atol=0)


@pytest.mark.parametrize("pattern", KINDS, ids=lambda p: p.kind)
def test_the_future_and_the_neighbour_leave_no_trace(pattern: Pattern) -> None:
    q, k, v = (x.detach() for x in inputs(130, HEADS[0], torch.float32))
    before = attend(q, k, v, pattern)
    for token in (0, 40, 129):
        changed = [x.clone() for x in (q, k, v)]
        for x in changed:
            x[0, :, token] += 3.0
        after = attend(changed[0], changed[1], changed[2], pattern)
        torch.testing.assert_close(after[0, :, :token], before[0, :, :token], rtol=0, atol=0)
        torch.testing.assert_close(after[1], before[1], rtol=0, atol=0)
        assert (after[0, :, token] - before[0, :, token]).abs().max() > 1e-3


@pytest.mark.parametrize("pattern", KINDS, ids=lambda p: p.kind)
def test_tiles_do_not_change_with_the_cache_that_they_are_cut_for(
    pattern: Pattern, monkeypatch: pytest.MonkeyPatch
) -> None:
    leaves = inputs(130, HEADS[1], torch.float64)
    whole = outputs(attend, leaves, pattern)
    monkeypatch.setattr(tiled_attention, "CPU_TILE_BYTES", 1)
    assert_close(whole, outputs(attend, leaves, pattern), 1e-14)


@pytest.mark.parametrize(
    "pattern",
    [
        Pattern("sliding", window=32),
        Pattern("block", block_size=32),
        Pattern("local_global", window=32, global_stride=64),
        Pattern("dilated", dilation=16),
        Pattern("local_block", window=32, block_size=32, block_stride=16),
    ],
    ids=lambda p: p.kind,
)
def test_scores_computed_are_near_those_visible(pattern: Pattern, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sparse cost, counted: at most 3 scores are computed for one that is used, where a dense mask has 8 to 80."""
    length, counted = 2048, 0
    original = tiled_attention._probabilities

    def counting(*args: Any) -> Any:
        nonlocal counted
        result = original(*args)
        counted += result[0].numel()
        return result

    monkeypatch.setattr(tiled_attention, "_probabilities", counting)
    monkeypatch.setattr(sparse_attention, "_fused", lambda *_: False)
    x = torch.zeros(1, 1, length, 4)
    attend(x, x, x, pattern)
    at_T = torch.arange(length)
    apart_TT = at_T[:, None] - at_T
    same_TT = at_T[:, None] // 32 == at_T // 32
    by_kind = {"block": same_TT & (apart_TT >= 0), "dilated": (apart_TT >= 0) & (apart_TT % 16 == 0)}
    used = by_kind.get(pattern.kind, sparse_attention.visible(pattern, at_T[:, None], at_T)).sum()
    assert used <= counted <= 3 * used


@pytest.mark.parametrize("pattern", KINDS, ids=lambda p: p.kind)
def test_dropout_has_the_right_mean_the_right_gradient_and_repeats_from_its_generator(pattern: Pattern) -> None:
    q, k, v = inputs(70, HEADS[0], torch.float64)

    def drop(q: Tensor, k: Tensor, v: Tensor, seed: int = 0) -> Tensor:
        return attend(q, k, v, pattern, dropout=0.4, generator=torch.Generator().manual_seed(seed))

    assert torch.equal(drop(q, k, v), drop(q, k, v))
    assert not torch.equal(drop(q, k, v), drop(q, k, v, seed=1))
    assert torch.equal(attend(q, k, v, pattern, dropout=0.4, training=False), attend(q, k, v, pattern))
    mean = torch.stack([drop(q, k, v, seed) for seed in range(200)]).mean(0)
    assert (mean - attend(q, k, v, pattern)).square().mean().sqrt() < 0.06
    small = [x[:1, :1, :20].detach().requires_grad_() for x in (q, k, v)]
    assert torch.autograd.gradcheck(drop, small, fast_mode=True)


def test_gradcheck_of_the_plain_and_the_capped_tiles() -> None:
    small = [x[:1, :, :6].detach().requires_grad_() for x in inputs(7, HEADS[1], torch.float64)]
    pattern = Pattern("sliding", window=2)
    assert torch.autograd.gradcheck(lambda q, k, v: attend(q, k, v, pattern), small, fast_mode=True)
    assert torch.autograd.gradcheck(
        lambda q, k, v: attend(q, k, v, pattern, softcap=1.5, slopes_H=slopes(6)),
        small,
        fast_mode=True,
    )


def test_shapes_alone_can_be_computed_on_the_meta_device() -> None:
    for pattern in KINDS:
        q, k, v = (x.detach().to("meta") for x in inputs(130, HEADS[1], torch.float32))
        assert attend(q, k, v, pattern).shape == (2, 6, 130, 12)


def test_alibi_slopes_are_the_published_ones() -> None:
    assert alibi_slopes(8) == [2.0**-i for i in range(1, 9)]
    twelve = [2.0**-i for i in range(1, 9)] + [2.0 ** -(i / 2) for i in (1, 3, 5, 7)]
    assert alibi_slopes(12) == pytest.approx(twelve)
    assert alibi_slopes(1) == [2.0**-8]
    assert len(alibi_slopes(3)) == 3


def qkv(heads: int, length: int) -> Tensor:
    """Ones in the shape of a q, k or v."""
    return torch.ones(1, heads, length, 2)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Pattern("slidng"), "did you mean 'sliding'"),  # type: ignore[arg-type]
        (lambda: Pattern("sliding", window=-1), "Pattern.window: got -1"),
        (lambda: Pattern("block"), "Pattern.block_size: got 0, expected at least 1"),
        (lambda: Pattern("local_block", block_size=4), "Pattern.block_stride: got 0"),
        (lambda: Pattern("local_global"), "Pattern.global_stride: got 0"),
        (lambda: Pattern("dilated", dilation=0), "Pattern.dilation: got 0"),
        (lambda: alibi_slopes(0), "got 0 heads"),
        (lambda: attend(qkv(3, 4), qkv(2, 4), qkv(2, 4), Pattern()), "3 query heads"),
        (lambda: attend(qkv(2, 4), qkv(2, 5), qkv(2, 5), Pattern()), "expected (B, H"),
        (lambda: attend(*[qkv(2, 4)] * 3, Pattern(), slopes_H=torch.ones(3)), "one per query head"),
        (lambda: attend(*[qkv(2, 4)] * 3, Pattern(), dropout=1.0), "got dropout 1.0"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_with_one_clear_message(make: Any, words: str) -> None:
    with pytest.raises(InputError) as caught:
        make()
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
