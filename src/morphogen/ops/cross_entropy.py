"""Cross-entropy of next tokens: as one autograd function, or by a fused kernel of a library where there is one.

N tokens, V vocabulary, n the tokens of a tile
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from morphogen.ops.autocast import no_autocast
from morphogen.ops.backends import Backend, Sizes, Trial, kernel
from morphogen.ops.elementwise import LOG2_E
from morphogen.ops.function import call

#: Bytes of one array worked on at a time: on a CPU what its L2 cache holds, elsewhere enough to fill the device.
CPU_TILE_BYTES = 2**20
DEVICE_TILE_BYTES = 2**28
#: What a kernel is to take for no target.
IGNORED = -100
#: Tokens that a kernel is tried on; it is given no fewer.
TRIED_TOKENS = 32


def cross_entropy(logits_NV: Tensor, targets_N: Tensor) -> Tensor:
    """−log softmax(logits)[target], in nats and fp32 at least, (N,); 0 where the target is negative.

    Nothing the size of the logits is kept but the logits, in their own dtype, as is their gradient.
    """
    fused = kernel((FUSED,), logits_NV.device, logits_NV.dtype, len(targets_N), (logits_NV.shape[1],))
    nats_N = call(_CrossEntropy, logits_NV, targets_N) if fused is None else fused(logits_NV, targets_N)
    assert isinstance(nats_N, Tensor)
    return nats_N


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits_NV: Tensor, targets_N: Tensor) -> Tensor:
        full = torch.promote_types(logits_NV.dtype, torch.float32)
        nats_N = torch.empty(len(targets_N), dtype=full, device=logits_NV.device)
        shift_N = torch.empty_like(nats_N)  # log Σ exp(logits)
        with no_autocast(logits_NV.device):
            for rows in _tiles(logits_NV):
                at_n1 = targets_N[rows, None].clamp_min(0)
                logits_nV = logits_NV[rows].to(full)
                logp_nV = logits_nV.log_softmax(-1)
                logp_n1 = logp_nV.gather(1, at_n1)
                nats_N[rows] = -logp_n1.squeeze(1)
                shift_N[rows] = (logits_nV.gather(1, at_n1) - logp_n1).squeeze(1)
        ctx.save_for_backward(logits_NV, targets_N, shift_N)
        return nats_N.masked_fill_(targets_N < 0, 0.0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dnats_N: Tensor) -> tuple[Tensor, None]:
        logits_NV, targets_N, shift_N = ctx.saved_tensors
        dnats_N = dnats_N.masked_fill(targets_N < 0, 0.0)
        dlogits_NV = torch.empty_like(logits_NV)
        with no_autocast(logits_NV.device):
            for rows in _tiles(logits_NV):
                at_n1, dnats_n1 = targets_N[rows, None].clamp_min(0), dnats_N[rows, None]
                p_nV = torch.sub(logits_NV[rows], shift_N[rows, None]).mul_(LOG2_E).exp2_()
                dlogits_NV[rows] = p_nV.mul_(dnats_n1).scatter_add_(1, at_n1, -dnats_n1)
        return dlogits_NV, None


def _tiles(logits_NV: Tensor) -> Iterator[slice]:
    budget = CPU_TILE_BYTES if logits_NV.device.type == "cpu" else DEVICE_TILE_BYTES
    step = max(1, budget // (4 * logits_NV.shape[1]))
    for start in range(0, len(logits_NV), step):
        yield slice(start, start + step)


# -------------------------------------------------------------------------------------------------- a library's kernel


def fused_cross_entropy(logits_NV: Tensor, targets_N: Tensor) -> Tensor:
    """As `cross_entropy`, by flash-linear-attention: logits are read once in each direction."""
    from fla.modules.fused_cross_entropy import cross_entropy_loss

    nats_N, _ = cross_entropy_loss(logits_NV, targets_N.masked_fill(targets_N < 0, IGNORED), ignore_index=IGNORED)
    assert isinstance(nats_N, Tensor)
    return nats_N


def naive_cross_entropy(logits_NV: Tensor, targets_N: Tensor) -> Tensor:
    """As `cross_entropy`, by its definition."""
    nats_N = logits_NV.logsumexp(-1) - logits_NV.gather(1, targets_N[:, None].clamp_min(0)).squeeze(1)
    return nats_N.masked_fill(targets_N < 0, 0.0)


def _trial(sizes: Sizes) -> Trial:
    (vocab,) = sizes
    noise = torch.Generator().manual_seed(0)
    logits_NV = 5 * torch.randn(TRIED_TOKENS, vocab, generator=noise, dtype=torch.float64)
    targets_N = torch.randint(vocab, (TRIED_TOKENS,), generator=noise)
    targets_N[::5] = -3

    def of(way: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor], tuple[Tensor]]:
        return lambda logits_NV: (way(logits_NV, targets_N.to(logits_NV.device)),)

    return Trial((logits_NV,), (True,), of(fused_cross_entropy), of(naive_cross_entropy))


def _enough(sizes: Sizes, tokens: int) -> str:
    return "" if tokens >= TRIED_TOKENS else f"{tokens} tokens are fewer than {TRIED_TOKENS}"


FUSED = Backend("flash-linear-attention", "fla", frozenset({"cuda"}), fused_cross_entropy, _trial, _enough)
#: Sizes that it is tried at when it is only asked about.
USUAL: Sizes = (257,)
