"""Cross-entropy in tiles against torch's. N tokens, V vocabulary."""

import pytest
import torch
from torch.nn import functional as F

from morphogen.ops.cross_entropy import cross_entropy


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
