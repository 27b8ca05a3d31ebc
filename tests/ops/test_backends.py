"""Kernels of libraries behind the ops: which one is taken, and that one that is wrong here is refused aloud."""

import importlib.util
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from morphogen.ops import backends, linear_attention, naive, naive_linear, paths
from morphogen.ops.backends import Backend, Trial, kernel
from morphogen.ops.flex import flex
from morphogen.ops.patterns import Pattern
from morphogen.ops.recurrent_kernels import LINEAR
from morphogen.ops.visibility import visible

CPU = torch.device("cpu")
KINDS = [
    Pattern(),
    Pattern("sliding", window=7),
    Pattern("block", block_size=8, block_stride=2),
    Pattern("block", block_size=8),
    Pattern("local_global", window=5, global_stride=9),
    Pattern("dilated", dilation=3),
    Pattern("local_block", window=5, block_size=8, block_stride=2),
]


def off_by(factor: float) -> Callable[..., tuple[Tensor, Tensor]]:
    """The reference, its outputs times a factor, as a library's kernel might have them."""

    def run(q: Tensor, k: Tensor, v: Tensor, decay: Tensor | None, state: Tensor | None) -> tuple[Tensor, Tensor]:
        decay = torch.zeros(k.shape[:3]) if decay is None else decay
        state = torch.zeros(*k.shape[:2], k.shape[3], v.shape[3]) if state is None else state
        y, last = naive_linear.linear_attention(q.float(), k.float(), v.float(), decay, state)
        return (factor * y).to(q.dtype), factor * last

    return run


def broken(*inputs: Any) -> Any:
    raise RuntimeError("no kernel image is available\nfor this device")


def fake(run: Callable[..., Any], library: str = "") -> Backend:
    """A back end of linear attention that runs on a CPU."""

    def trial(sizes: Any) -> Trial:
        return LINEAR.trial(sizes)._replace(kernel=run)

    return Backend("fake", library, frozenset({"cpu"}), run, trial, LINEAR.fits)


def inputs(length: int = 40) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    q = torch.randn(1, 2, 1, length, 8, generator=draw)
    return q, torch.randn(1, 2, length, 8, generator=draw), torch.randn(1, 2, length, 8, generator=draw)


def test_a_kernel_that_is_right_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def counted(*given: Any) -> Any:
        calls.append(1)
        return off_by(1.0)(*given)

    before = linear_attention.linear_attention(*inputs())[0]
    monkeypatch.setattr(linear_attention, "LINEAR", fake(counted))
    after = linear_attention.linear_attention(*inputs())[0]
    assert len(calls) == 2  # once to try it
    torch.testing.assert_close(before, after, rtol=1e-4, atol=1e-4)
    linear_attention.linear_attention(*inputs())
    assert len(calls) == 3
    linear_attention.linear_attention(*inputs(length=4))  # a decoder's few tokens
    linear_attention.linear_attention(*(x.double() for x in inputs()))
    assert len(calls) == 3


@pytest.mark.parametrize(
    ("run", "said"), [(off_by(1.01), "relative error is 1"), (broken, "RuntimeError: no kernel image is available;")]
)
def test_a_kernel_that_is_wrong_here_is_refused_with_one_warning(
    monkeypatch: pytest.MonkeyPatch, run: Callable[..., Any], said: str
) -> None:
    before = linear_attention.linear_attention(*inputs())[0]
    monkeypatch.setattr(linear_attention, "LINEAR", fake(run))
    with pytest.warns(RuntimeWarning) as heard:
        after = linear_attention.linear_attention(*inputs())[0]
    assert len(heard) == 1
    assert said in str(heard[0].message)
    assert torch.equal(before, after)
    linear_attention.linear_attention(*inputs())  # not said again: here a warning is an error


def test_bf16_is_held_to_its_own_bound() -> None:
    near = fake(off_by(1.005))
    assert kernel((near,), CPU, torch.bfloat16, 64, (2, 1, 8, 8)) is not None
    with pytest.warns(RuntimeWarning, match="more than 1e-04"):
        assert kernel((near,), CPU, torch.float32, 64, (2, 1, 8, 8)) is None


def test_numbers_that_are_not_finite_are_wrong() -> None:
    with pytest.warns(RuntimeWarning, match="inf"):
        assert kernel((fake(off_by(float("nan"))),), CPU, torch.float32, 64, (2, 1, 8, 8)) is None


def test_what_is_told_names_the_path_and_why(monkeypatch: pytest.MonkeyPatch) -> None:
    on_cpu = paths.paths(CPU)
    assert set(on_cpu) >= {"attention", "linear_attention", "gated_delta", "ssd", "selective_scan", "experts"}
    assert "flex_attention is for cuda" in on_cpu["attention"]
    assert on_cpu["ssd"].startswith("matmuls in chunks (")
    for library, run, said in (
        ("no_such_library", broken, "no_such_library is not installed (pip install 'morphogen[gpu]')"),
        ("", broken, "no kernel image"),
        ("", off_by(1.0), "fake (in bfloat16 and float32; matmuls in chunks elsewhere)"),
    ):
        monkeypatch.setitem(vars(paths), "BACKENDS", {"linear_attention": ((fake(run, library),), (2, 1, 8, 8))})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert said in str(paths.path("linear_attention", CPU))


@pytest.mark.parametrize("pattern", KINDS, ids=lambda p: f"{p.kind}{p.block_stride}")
def test_flex_attention_has_our_masks_and_scores(pattern: Pattern) -> None:
    """Uncompiled and forwards: on a CPU it has no more."""
    draw, length = torch.Generator().manual_seed(1), 63
    q = torch.randn(2, 4, length, 16, generator=draw)
    k, v = (torch.randn(2, 2, length, e, generator=draw) for e in (16, 24))
    at = torch.arange(length)
    assert torch.equal(visible(pattern, at[:, None], at), naive.mask(pattern, length))
    slopes = torch.tensor([0.5, 0.25, 0.125, 0.0625])
    for more in ({"softcap": 3.0, "slopes_H": slopes}, *([{}] if pattern.kind == "sliding" else [])):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it asks to be compiled
            got = flex(q, k, v, pattern, scale=0.3, compiled=False, **more)
        want = naive.attention(q, k, v, pattern, scale=0.3, **more)
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def test_attention_takes_flex_but_for_dropout_and_what_is_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    from morphogen.ops import sparse_attention

    calls: list[Pattern] = []

    def watched(q: Tensor, k: Tensor, v: Tensor, pattern: Pattern, **more: Any) -> Tensor:
        calls.append(pattern)
        return naive.attention(q, k, v, pattern, **more)

    real = sparse_attention.FLEX

    def trial(sizes: Any) -> Trial:
        return real.trial(sizes)._replace(
            kernel=lambda q, k, v: (
                naive.attention(
                    q,
                    k,
                    v,
                    sizes[4],
                    softcap=5.0 if sizes[5] else None,
                    slopes_H=torch.linspace(0.5, 0.01, sizes[0]) if sizes[6] else None,
                ),
            )
        )

    stand_in = replace(real, devices=frozenset({"cpu"}), run=watched, trial=trial)
    monkeypatch.setattr(sparse_attention, "FLEX", stand_in)
    q, k, v = (torch.randn(1, 2, 48, 16) for _ in range(3))
    sliding = Pattern("sliding", window=5)
    for more in ({}, {"softcap": 2.0}, {"slopes_H": torch.tensor([0.5, 0.25])}):
        got = sparse_attention.attend(q, k, v, sliding, **more)
        torch.testing.assert_close(got, naive.attention(q, k, v, sliding, **more), rtol=1e-5, atol=1e-5)
    assert calls == [sliding] * 3
    sparse_attention.attend(q, k, v, sliding, dropout=0.5)
    for pattern in (Pattern(), Pattern("dilated", dilation=2)):
        sparse_attention.attend(q, k, v, pattern)
    assert len(calls) == 3
    sparse_attention.attend(q, k, v, Pattern(), softcap=2.0)
    assert len(calls) == 4


@pytest.mark.slow
@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("triton", "fla")),
    reason="triton and flash-linear-attention are not installed",
)
def test_triton_kernels_agree_with_the_references_under_the_interpreter() -> None:
    """Those of flash-linear-attention, in fp32: outputs, last states and every gradient."""
    script = Path(__file__).parent / "interpreted.py"
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    told = dict(line.split() for line in done.stdout.splitlines())
    assert set(told) == {"linear_attention", "gated_delta", "ssd", "cross_entropy"}
    assert max(map(float, told.values())) <= backends.BOUNDS[torch.float32]
