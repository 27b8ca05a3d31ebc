"""State-space scans and the short convolution against their loops.

B batch, T tokens, H heads, P head width, F channels, N state size, K taps
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from morphogen.ops import naive_scan
from morphogen.ops.causal_conv import causal_conv
from morphogen.ops.scan import selective_scan
from morphogen.ops.ssd import ssd
from morphogen.testing import assert_agree, outcome, relative_error

LENGTHS = (1, 7, 63, 130)
PRECISIONS = [(torch.float32, 1e-5), (torch.float64, 1e-10)]
Scan = Callable[..., tuple[Tensor, Tensor]]


def noise(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def ssd_inputs(tokens: int, batch: int = 2, heads: int = 3, width: int = 5, size: int = 7) -> list[Tensor]:
    """x, dt, a, b, c, d and a state to start from; steps from 0.01 to 10, so that some decays are strong."""
    draw = torch.Generator().manual_seed(tokens)
    dt_BTH = noise(draw, batch, tokens, heads).exp()
    x, b, c = (
        noise(draw, batch, tokens, heads, width),
        noise(draw, batch, tokens, size),
        noise(draw, batch, tokens, size),
    )
    a, d = -noise(draw, heads).exp(), noise(draw, heads)
    return [x, dt_BTH, a, b, c, d, noise(draw, batch, size, heads, width)]


def selective_inputs(tokens: int, batch: int = 2, channels: int = 11, size: int = 7) -> list[Tensor]:
    draw = torch.Generator().manual_seed(tokens)
    x, dt = noise(draw, batch, tokens, channels), noise(draw, batch, tokens, channels).exp()
    b, c = noise(draw, batch, tokens, size), noise(draw, batch, tokens, size)
    a, d = -noise(draw, size, channels).exp(), noise(draw, channels)
    return [x, dt, a, b, c, d, noise(draw, batch, size, channels)]


SCANS = [
    pytest.param(ssd, naive_scan.ssd, ssd_inputs, "chunk", id="ssd"),
    pytest.param(selective_scan, naive_scan.selective_scan, selective_inputs, "tile", id="selective_scan"),
]
NAMES = ("y", "state", "dx", "ddt", "da", "db", "dc", "dd", "dstart")


def assert_close(want: list[Tensor], got: list[Tensor], rtol: float) -> None:
    assert_agree(want, got, rtol, NAMES)


@pytest.mark.parametrize(("fast", "slow", "inputs_of", "knob"), SCANS)
@pytest.mark.parametrize("tokens", LENGTHS)
@pytest.mark.parametrize(("dtype", "rtol"), PRECISIONS)
def test_a_scan_equals_its_loop_in_output_state_and_all_gradients(
    fast: Scan, slow: Scan, inputs_of: Any, knob: str, tokens: int, dtype: torch.dtype, rtol: float
) -> None:
    inputs = [x.to(dtype) for x in inputs_of(tokens)]
    want = outcome(slow, [x.double() for x in inputs])
    for block in (1, 5, 32, 64):
        assert_close(want, outcome(partial(fast, **{knob: block}), inputs), rtol)


@pytest.mark.parametrize(("fast", "slow", "inputs_of", "knob"), SCANS)
def test_no_state_is_a_state_of_zeros(fast: Scan, slow: Scan, inputs_of: Any, knob: str) -> None:
    *inputs, start = inputs_of(37)
    want = outcome(lambda *xs: slow(*xs, torch.zeros_like(start)), inputs)
    assert_close(want, outcome(fast, inputs), 1e-10)


@pytest.mark.parametrize(("fast", "slow", "inputs_of", "knob"), SCANS)
@pytest.mark.parametrize("strength", [1e-4, 30.0, 3e3])
def test_decays_from_weak_to_total_cost_no_digits(
    fast: Scan, slow: Scan, inputs_of: Any, knob: str, strength: float
) -> None:
    """Differences of cumulative sums lose four digits here, cumulative sums of logarithms are not even finite."""
    inputs = inputs_of(130)
    inputs[2] = inputs[2] * strength
    want, got = outcome(slow, inputs), outcome(fast, [x.float() for x in inputs])
    for name, a, b in zip(NAMES, want, got, strict=True):
        assert bool(b.isfinite().all()), name
        # the gradient of total decays is itself almost nothing: what counts is its size beside the others
        assert relative_error(a, b) <= 1e-5 or float((a - b).abs().max()) <= 1e-6, f"{name}: {relative_error(a, b):.2e}"


@pytest.mark.parametrize(("fast", "slow", "inputs_of", "knob"), SCANS)
def test_a_sequence_in_pieces_is_the_sequence(fast: Scan, slow: Scan, inputs_of: Any, knob: str) -> None:
    inputs = inputs_of(63)
    whole_y, whole_state = fast(*inputs)
    state, pieces = inputs[-1], []
    for tokens in torch.arange(63).split([1, 1, 33, 28]):
        x, dt, b, c = (inputs[i][:, tokens] for i in (0, 1, 3, 4))
        y, state = fast(x, dt, inputs[2], b, c, inputs[5], state)
        pieces.append(y)
    assert relative_error(whole_y, torch.cat(pieces, 1)) <= 1e-14
    assert relative_error(whole_state, state) <= 1e-14


@pytest.mark.parametrize(("fast", "slow", "inputs_of", "knob"), SCANS)
def test_bf16_inputs_are_summed_in_fp32(fast: Scan, slow: Scan, inputs_of: Any, knob: str) -> None:
    """The same numbers in fp64 differ by the rounding of what comes out, no more."""
    inputs = inputs_of(130)
    for i in (0, 3, 4):
        inputs[i] = inputs[i].bfloat16()
    inputs = [x.float() if x.dtype == torch.float64 else x for x in inputs]
    with torch.autocast("cpu", torch.bfloat16):
        got = outcome(fast, inputs)
    assert [t.dtype for t in got[:4]] == [torch.bfloat16, torch.float32, torch.bfloat16, torch.float32]
    want = outcome(slow, [x.double() for x in inputs])
    for name, a, b in zip(NAMES, want, got, strict=True):
        # dy is rounded to bf16 as well, so the gradients are compared loosely
        assert relative_error(a, b) <= (1e-2 if name[0] == "d" else 3e-3 if name == "y" else 1e-5), name


@pytest.mark.parametrize("tokens", LENGTHS)
@pytest.mark.parametrize("taps", [1, 2, 4, 9])
@pytest.mark.parametrize(("dtype", "rtol"), PRECISIONS)
def test_a_convolution_equals_its_loop(tokens: int, taps: int, dtype: torch.dtype, rtol: float) -> None:
    draw = torch.Generator().manual_seed(taps)
    inputs = [noise(draw, 2, tokens, 11), noise(draw, 11, taps), noise(draw, 11)]
    inputs = [x.to(dtype) for x in inputs]

    def convolved(convolve: Callable[..., Tensor]) -> Scan:
        return lambda *xs: (convolve(*xs),)  # type: ignore[return-value]

    want = outcome(convolved(naive_scan.causal_conv), [x.double() for x in inputs])
    got = outcome(convolved(causal_conv), inputs)
    for a, b in zip(want, got, strict=True):
        assert float((a - b).abs().max()) <= rtol * max(1.0, float(a.abs().max()))


@pytest.mark.parametrize("tile_bytes", [1, 4 * 11 * 3, 4 * 11 * 100])
@pytest.mark.parametrize("taps", [1, 4, 9])
def test_a_convolution_in_tiles_and_through_silu_equals_its_loop(
    taps: int, tile_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("morphogen.ops.causal_conv.CPU_TILE_BYTES", tile_bytes)
    draw = torch.Generator().manual_seed(taps)
    inputs = [noise(draw, 5, 31, 11), noise(draw, 11, taps), noise(draw, 11)]
    want = outcome(lambda *xs: (F.silu(naive_scan.causal_conv(*xs)),), inputs)
    got = outcome(lambda *xs: (causal_conv(*xs, silu=True),), inputs)
    for a, b in zip(want, got, strict=True):
        assert float((a - b).abs().max()) <= 1e-12 * max(1.0, float(a.abs().max()))


def test_a_view_of_wider_rows_scans_as_its_copy() -> None:
    """The projections' outputs come as slices of one matmul's."""
    x, dt, a, b, c, d, start = ssd_inputs(40)
    wide = torch.cat([x.flatten(2), b, c], -1)
    x_view, b_view, c_view = wide.split([15, 7, 7], -1)
    want = outcome(ssd, [x, dt, a, b, c, d, start])
    y, state = ssd(x_view.view(2, 40, 3, 5), dt, a, b_view, c_view, d, start)
    assert torch.equal(want[0], y)
    assert torch.equal(want[1], state)
