"""Attention over picked tokens, fast against the reference. B batch, H heads, K kv heads, T tokens, E width."""

import itertools

import pytest
import torch
from torch import Tensor

from morphogen.ops import naive_selection
from morphogen.ops.patterns import Pattern, alibi_slopes
from morphogen.ops.selection import (
    Scoring,
    attend_best,
    attend_picked,
    divergence,
    highest,
    index_scores,
    pick_tokens,
    picked_scores,
)
from morphogen.ops.sparse_attention import attend

LENGTHS, WIDTHS = (1, 7, 63, 130), (2, 16)
HEADS = ((3, 3, 8, 8), (6, 2, 20, 12))  # H, K, width of q and k, width of v
NAMES = ("y", "loss", "dq", "dk", "dv", "dq of the indexer", "dk of the indexer", "dw of the indexer")


def slopes(heads: int) -> Tensor:
    return torch.tensor(alibi_slopes(heads), dtype=torch.float64)


def leaves(length: int, heads: tuple[int, ...], dtype: torch.dtype, batch: int = 2) -> list[Tensor]:
    """q, k, v as projections give them, and an indexer of three heads of width 5."""
    draw = torch.Generator().manual_seed(length)
    h, k, e, v = heads
    sizes = ((h, e), (k, e), (k, v), (3, 5), (1, 5))
    made = [torch.randn(batch, length, n, w, generator=draw, dtype=torch.float64).transpose(1, 2) for n, w in sizes]
    made.append(torch.randn(batch, 3, length, generator=draw, dtype=torch.float64))
    return [x.to(dtype).requires_grad_() for x in made]


def fast(q: Tensor, k: Tensor, v: Tensor, *index: Tensor, width: int, scoring: Scoring) -> list[Tensor]:
    picks = pick_tokens(*index, width)
    y, p = attend_picked(q, k, v, picks, scoring)
    return [y, divergence(p.detach().mean(1), picked_scores(*index, picks), picks)]


def with_gradients(outputs: list[Tensor], inputs: list[Tensor]) -> list[Tensor]:
    y, loss = outputs
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(y.dtype)
    return [y.detach(), loss.detach(), *torch.autograd.grad([y, loss], inputs, [dy, torch.ones_like(loss)])]


def assert_close(want: list[Tensor], got: list[Tensor], rtol: float) -> None:
    """Relative RMS error per tensor; the floor is for what is zero but for rounding (one token to read)."""
    for name, a, b in zip(NAMES, want, got, strict=True):
        error = (a.double() - b.double()).square().mean().sqrt() / a.double().square().mean().sqrt().clamp(min=1e-2)
        assert error <= rtol, f"{name}: relative RMS error {float(error):.2e}"


@pytest.mark.parametrize("bent", [False, True])
@pytest.mark.parametrize("width", WIDTHS)
def test_outputs_loss_and_all_gradients_equal_the_reference(width: int, bent: bool) -> None:
    long = [(LENGTHS[2], HEADS[1]), (LENGTHS[3], HEADS[0])]  # which is slow
    for length, heads in [*itertools.product(LENGTHS[:2], HEADS), *long]:
        options = {"softcap": 2.0, "slopes_H": slopes(heads[0])} if bent else {}
        scoring = Scoring(heads[2] ** -0.5, **options)
        precise = (torch.float64, 1e-10)
        for dtype, rtol in (precise,) if length == LENGTHS[3] else (precise, (torch.float32, 1e-5)):
            inputs = leaves(length, heads, dtype, batch=2 if length == 7 else 1)
            y, loss = naive_selection.attention(*inputs[:3], tuple(inputs[3:]), width, **options)
            want = with_gradients([y, loss], inputs)
            assert_close(want, with_gradients(fast(*inputs, width=width, scoring=scoring), inputs), rtol)


def test_where_all_tokens_are_read_it_is_dense_attention() -> None:
    for length, width in ((63, 63), (63, 1000)):
        inputs = leaves(length, HEADS[1], torch.float64)
        y, _ = fast(*inputs, width=width, scoring=Scoring(20**-0.5))
        torch.testing.assert_close(y, attend(*inputs[:3], Pattern()), rtol=1e-12, atol=1e-12)


def test_of_equal_scores_the_later_token_wins() -> None:
    zeros = torch.zeros(1, 1, 9)
    assert highest(zeros, 3)[0, 0].sort().values.tolist() == [6, 7, 8]
    scores = torch.tensor([[[1.0, -1.0, 0.0, -0.0, 0.0, -torch.inf, 1.0, -3.0]]])
    assert highest(scores, 1)[0, 0].tolist() == [6]
    assert highest(scores, 3)[0, 0].sort().values.tolist() == [0, 4, 6]
    assert highest(scores, 5)[0, 0].sort().values.tolist() == [0, 2, 3, 4, 6]
    assert highest(scores, 7)[0, 0].sort().values.tolist() == [0, 1, 2, 3, 4, 6, 7]


def test_an_indexer_that_weighs_nothing_is_a_sliding_window() -> None:
    q, k, v, *index = leaves(63, HEADS[0], torch.float64)
    index[2] = torch.zeros_like(index[2])
    y, _ = fast(q, k, v, *index, width=8, scoring=Scoring(8**-0.5))
    torch.testing.assert_close(y, attend(q, k, v, Pattern("sliding", window=7)), rtol=1e-12, atol=1e-12)


def test_the_future_and_the_neighbour_leave_no_trace() -> None:
    inputs = [x.detach() for x in leaves(130, HEADS[0], torch.float32)]
    before, _ = fast(*inputs, width=16, scoring=Scoring(8**-0.5))
    for token in (0, 40, 129):
        changed = [x.clone() for x in inputs]
        for x in changed[:5]:
            x[0, :, token] += 3.0
        changed[5][0, :, token] += 3.0
        after, _ = fast(*changed, width=16, scoring=Scoring(8**-0.5))
        torch.testing.assert_close(after[0, :, :token], before[0, :, :token], rtol=0, atol=1e-6)
        torch.testing.assert_close(after[1], before[1], rtol=0, atol=0)
        assert (after[0, :, token] - before[0, :, token]).abs().max() > 1e-3


@pytest.mark.parametrize("gather_bytes", [1, 2**24])
def test_the_decoder_reads_what_training_reads(gather_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("morphogen.ops.selection.GATHER_BYTES", gather_bytes)
    q, k, v, *index = (x.detach() for x in leaves(63, HEADS[1], torch.float64))
    scoring = Scoring(0.3, 2.0, slopes(6))
    whole, _ = attend_picked(q, k, v, pick_tokens(*index, 9), scoring)
    age_TS = torch.arange(5, 63)[:, None] - torch.arange(63)
    scores_BTS = index_scores(index[0][:, :, 5:], index[1], index[2][..., 5:])
    tail = attend_best(q[:, :, 5:], k, v, scores_BTS, age_TS < 0, age_TS, 9, scoring)
    torch.testing.assert_close(tail, whole[:, :, 5:], rtol=1e-12, atol=1e-12)


def test_bf16_by_autocast_stays_near_fp64_and_keeps_dtypes() -> None:
    exact = leaves(130, HEADS[1], torch.float64, batch=1)
    single = [x.detach().float().requires_grad_() for x in exact]
    scoring = Scoring(20**-0.5)
    picks = pick_tokens(*exact[3:], 16)
    want = torch.autograd.grad(attend_picked(*exact[:3], picks, scoring)[0].sum(), exact[:3])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, _ = attend_picked(*single[:3], picks, scoring)
    assert y.dtype == torch.bfloat16
    got = torch.autograd.grad(y.float().sum(), single[:3])
    assert {g.dtype for g in got} == {torch.float32}
    for a, b in zip(want, got, strict=True):
        assert (a - b).square().mean().sqrt() <= 2e-2 * a.square().mean().sqrt().clamp(min=1e-2)


def test_dropout_scales_what_it_keeps() -> None:
    q, k, v, *index = (x.detach() for x in leaves(63, HEADS[0], torch.float64))
    ones = torch.ones_like(v)
    picks = pick_tokens(*index, 16)
    torch.manual_seed(0)
    y, _ = attend_picked(q, k, ones, picks, Scoring(8**-0.5), dropout=0.25)
    assert 0.95 < float(y.mean()) < 1.05
    assert float(y.std()) > 0.05
