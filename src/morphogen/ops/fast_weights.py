"""Fast weights under the delta rule, in chunks. B batch, H heads, T tokens, F features of a key, V width of a value,

N chunks, C tokens of a chunk.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from morphogen.ops.autocast import no_autocast
from morphogen.ops.names import MEMORY_CHUNK, MemoryFeature

#: Added to a squared length, so that features of zero have a gradient of zero.
TINY = 1e-6


def _dpfp(x: Tensor) -> Tensor:
    """r_i · r_{i+1} for r = relu([x, −x]), indices cyclic: twice as many features. Ref: arXiv 2102.11174."""
    r = F.relu(torch.cat([x, -x], -1))
    return r * r.roll(-1, -1)


#: Feature maps; all give non-negative features. elu: elu(x) + 1, arXiv 2006.16236.
FEATURES: Mapping[MemoryFeature, Callable[[Tensor], Tensor]] = {
    "elu": lambda x: F.elu(x) + 1.0,
    "relu": F.relu,
    "dpfp": _dpfp,
}


def features(x: Tensor, kind: MemoryFeature) -> Tensor:
    """φ(x) / √(|φ(x)|² + 10⁻⁶) over the last axis, fp32 at least; `dpfp` doubles the axis.

    At length 1 and β = 1 a write replaces what its key held. Ref: arXiv 2102.11174; length by the 2-norm: 2406.06484.
    """
    phi = FEATURES[kind](x.to(torch.promote_types(x.dtype, torch.float32)))
    return phi * torch.rsqrt(phi.square().sum(-1, keepdim=True) + TINY)


def delta_memory(
    q_BHTF: Tensor,
    k_BHTF: Tensor,
    v_BHTV: Tensor,
    beta_BHT: Tensor,
    state_BHFV: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """S_t = S_{t−1} + k_t ⊗ β_t (v_t − S_{t−1}ᵀ k_t), y_t = S_tᵀ q_t; returns (y_BHTV, the last S).

    S is zero at the start, or `state_BHFV`. Computed in fp32 at least, whatever the inputs; y and S have that dtype.
    Ref: Schlag et al., arXiv 2102.11174; in chunks, by one triangular solve each: 2406.06484.
    """
    full = torch.promote_types(v_BHTV.dtype, torch.float32)
    chunk = min(MEMORY_CHUNK, v_BHTV.shape[2])
    with no_autocast(v_BHTV.device):
        q_BHNCF, k_BHNCF, v_BHNCV = (_chunked(x.to(full), chunk) for x in (q_BHTF, k_BHTF, v_BHTV))
        beta_BHNC1 = _chunked(beta_BHT.to(full)[..., None], chunk)
        wide, values = k_BHNCF.shape[-1], v_BHNCV.shape[-1]
        if state_BHFV is None:
            state_BHFV = k_BHNCF.new_zeros(*k_BHNCF.shape[:2], wide, values)
        state_BHFV = state_BHFV.to(full)
        # what the tokens of a chunk write: a part of their own, less one that reads the state at the chunk's start
        written_BHNCF = beta_BHNC1 * k_BHNCF
        inner_BHNCC = (written_BHNCF @ k_BHNCF.mT).tril(-1)
        both = torch.cat([beta_BHNC1 * v_BHNCV, written_BHNCF], -1)
        both = torch.linalg.solve_triangular(inner_BHNCC, both, upper=False, unitriangular=True)
        own_BHNCV, seen_BHNCF = both.split([values, wide], -1)
        read_BHNCC = (q_BHNCF @ k_BHNCF.mT).tril()
        out = []
        chunks = (x.unbind(2) for x in (q_BHNCF, k_BHNCF, own_BHNCV, seen_BHNCF, read_BHNCC))
        for q_BHCF, k_BHCF, own_BHCV, seen_BHCF, read_BHCC in zip(*chunks, strict=True):
            write_BHCV = own_BHCV - seen_BHCF @ state_BHFV
            out.append(q_BHCF @ state_BHFV + read_BHCC @ write_BHCV)
            state_BHFV = state_BHFV + k_BHCF.mT @ write_BHCV
    return torch.cat(out, 2)[:, :, : v_BHTV.shape[2]], state_BHFV


def _chunked(x_BHTF: Tensor, chunk: int) -> Tensor:
    """(B, H, T, F) to (B, H, N, C, F); T is padded with zeros, which write nothing."""
    batch, heads, length, width = x_BHTF.shape
    return F.pad(x_BHTF, (0, 0, 0, -length % chunk)).view(batch, heads, -1, chunk, width)
