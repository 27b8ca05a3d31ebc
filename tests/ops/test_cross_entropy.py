"""Cross-entropy in tiles against torch's. N tokens, V vocabulary."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from morphogen.ops import cross_entropy as ops
from morphogen.ops.backends import Trial
from morphogen.ops.cross_entropy import cross_entropy, naive_cross_entropy


@pytest.mark.parametrize("tile_bytes", [1, 4 * 13 * 3, 2**20])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 2e-5), (torch.bfloat16, 1e-2)])
def test_losses_and_gradients_are_torchs(
    tile_bytes: int, dtype: torch.dtype, bound: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("morphogen.ops.cross_entropy.CPU_TILE_BYTES", tile_bytes)
    noise = torch.Generator().manual_seed(0)
    logits_NV = (30 * torch.randn(17, 13, generator=noise)).to(dtype).requires_grad_()
    targets_N = torch.randint(13, (17,), generator=noise)
    targets_N[[0, 5, 16]] = torch.tensor([-1, -14, -3])  # not scored
    weights_N = torch.randn(17, generator=noise, dtype=torch.float64)
    exact_NV = logits_NV.detach().double().requires_grad_()
    want_N = F.cross_entropy(exact_NV, targets_N.clamp_min(-1), ignore_index=-1, reduction="none")
    got_N = cross_entropy(logits_NV, targets_N)
    (want_NV,) = torch.autograd.grad(want_N @ weights_N, exact_NV)
    (got_NV,) = torch.autograd.grad(got_N.double() @ weights_N, logits_NV)
    assert got_NV.dtype == dtype
    assert got_N.dtype == torch.promote_types(dtype, torch.float32)
    torch.testing.assert_close(got_N.double(), want_N, rtol=1e-6, atol=1e-5)
    assert float((got_NV.double() - want_NV).abs().max()) <= bound * float(want_NV.abs().max())
    assert not bool(got_NV[[0, 5, 16]].any())


@pytest.mark.parametrize("off", [0.0, 0.01])
def test_a_librarys_kernel_is_taken_where_it_is_right_and_there_are_tokens_for_it(
    off: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[int] = []

    def kernel(logits_NV: Tensor, targets_N: Tensor) -> Tensor:
        taken.append(len(targets_N))
        return (1.0 + off) * naive_cross_entropy(logits_NV, targets_N)

    def trial(sizes: tuple[int, ...]) -> Trial:
        found = real.trial(sizes)
        assert found.inputs[0].shape == (ops.TRIED_TOKENS, sizes[0])
        return found._replace(kernel=lambda logits_NV: tuple((1.0 + off) * x for x in found.reference(logits_NV)))

    real = ops.FUSED
    monkeypatch.setattr(ops, "FUSED", replace(real, devices=frozenset({"cpu"}), library="", run=kernel, trial=trial))
    noise = torch.Generator().manual_seed(0)
    logits_NV, targets_N = torch.randn(40, 13, generator=noise), torch.randint(-2, 13, (40,), generator=noise)
    want_N = F.cross_entropy(logits_NV, targets_N.clamp_min(-1), ignore_index=-1, reduction="none")
    if off:
        with pytest.warns(RuntimeWarning, match="flash-linear-attention in float32 on cpu: its relative error is"):
            got_N = cross_entropy(logits_NV, targets_N)
    else:
        got_N = cross_entropy(logits_NV, targets_N)
        cross_entropy(logits_NV[:31], targets_N[:31])
        cross_entropy(logits_NV.double(), targets_N)
    assert taken == ([] if off else [40])
    torch.testing.assert_close(got_N, want_N, rtol=1e-5, atol=1e-5)
