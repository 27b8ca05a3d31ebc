"""Linear attention with decay, and the gated delta rule: matmuls within chunks, a scan from chunk to chunk.

Both keep one matrix per head, S (keys to values), and so cost the same per token at any length. Sums of logarithms of
decays are taken over each segment, never as differences of running sums, which lose all digits when decays are large.

B batch, K kv heads, M = B·K, G query heads per kv head, T tokens, N chunks, C tokens of a chunk, R = G·C,
E width of q and k, V width of v
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from morphogen.errors import InputError
from morphogen.ops.autocast import autocast_dtype, no_autocast
from morphogen.ops.backends import kernel
from morphogen.ops.function import call
from morphogen.ops.names import LINEAR_CHUNK, LinearFeature
from morphogen.ops.recurrent_kernels import DELTA, LINEAR

#: Tokens of a chunk in bf16, where large matmuls are the cheaper part (benchmarks).
CHUNK_BF16 = 32
UNIT_EPS = 1e-6


def elu_plus_one(x: Tensor) -> Tensor:
    """elu(x) + 1 > 0. Ref: arXiv 2006.16236."""
    return F.elu(x) + 1.0


def softmax_feature(x: Tensor) -> Tensor:
    """softmax over the channels. Ref: arXiv 1812.01243."""
    return x.softmax(-1)


def identity(x: Tensor) -> Tensor:
    """x itself."""
    return x


#: What queries and keys go through.
FEATURE_MAPS: Mapping[LinearFeature, Callable[[Tensor], Tensor]] = {
    "elu": elu_plus_one,
    "relu": F.relu,
    "silu": F.silu,
    "softmax": softmax_feature,
    "identity": identity,
}


def unit(x: Tensor) -> Tensor:
    """x / √(Σx² + 1e-6) over the last axis; sums in fp32 at least, the result in x's dtype."""
    full = x.to(torch.promote_types(x.dtype, torch.float32))
    return (full * (full.square().sum(-1, keepdim=True) + UNIT_EPS).rsqrt()).to(x.dtype)


def linear_attention(
    q_BKGTE: Tensor,
    k_BKTE: Tensor,
    v_BKTV: Tensor,
    log_decay_BKT: Tensor | None = None,
    state_BKEV: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """S_t = exp(g_t) S_{t−1} + k_t v_tᵀ, y_t = S_tᵀ q_t; y_BKGTV, and the last state in fp32 at least.

    log_decay: g ≤ 0, fp32 at least; axes B and T may be 1 where it does not depend on them; None for no decay.
    state: S before the first token, zero when None. Raises InputError for shapes that do not fit together.
    Ref: arXiv 2006.16236 (no decay), 2307.08621 (fixed decay), 2312.06635 (data-dependent decay; here one per head).
    """
    _check(q_BKGTE, k_BKTE, v_BKTV, state_BKEV)
    dtype = autocast_dtype(q_BKGTE.device) or q_BKGTE.dtype
    full = torch.promote_types(dtype, torch.float32)
    length = k_BKTE.shape[2]
    if (fla := kernel((LINEAR,), q_BKGTE.device, dtype, length, _sizes(q_BKGTE, v_BKTV))) is not None:
        with no_autocast(q_BKGTE.device):
            y_BKGTV, last_BKEV = fla(*(x.to(dtype) for x in (q_BKGTE, k_BKTE, v_BKTV)), log_decay_BKT, state_BKEV)
        return y_BKGTV, last_BKEV
    size = min(CHUNK_BF16 if dtype == torch.bfloat16 else LINEAR_CHUNK, length)
    with no_autocast(q_BKGTE.device):
        q_BKNRE = _query_chunks(q_BKGTE.to(dtype), size)
        k_BKNCE, v_BKNCV = _chunks(size, k_BKTE.to(dtype), v_BKTV.to(dtype))
        decay = _Decay(log_decay_BKT, size, length, full, q_BKGTE.device)
        kv_BKNEV = (k_BKNCE * decay.to_end.to(dtype)).mT @ v_BKNCV
        states_BKNEV, last_BKEV = _scan(decay.whole, kv_BKNEV.to(full), state_BKEV)
        y_BKNRV = _read(q_BKNRE, k_BKNCE, v_BKNCV, states_BKNEV.to(dtype), decay)
        return _joined(y_BKNRV, size, length), last_BKEV


def gated_delta(
    q_BKGTE: Tensor,
    k_BKTE: Tensor,
    v_BKTV: Tensor,
    log_decay_BKT: Tensor,
    beta_BKT: Tensor,
    state_BKEV: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """S ← exp(g_t) S_{t−1}, S_t = S + β_t k_t (v_t − Sᵀ k_t)ᵀ, y_t = S_tᵀ q_t; y_BKGTV and the last state.

    What token t writes is u_t = β_t (v_t − exp(Γ_t) Sᵀ k_t − Σ_{j<t} exp(Γ_t − Γ_j) (k_t·k_j) u_j), Γ summed from the
    chunk's start: one triangular solve per chunk gives all u, as a part that does not depend on the state and one that
    is linear in it. What is written is computed in fp32 at least, also under autocast, what is read in q's dtype or
    autocast's, which is y's.

    log_decay, state: as in `linear_attention`. beta: in (0, 1), or (0, 2) for negative eigenvalues. Keys should be of
    unit length. Raises InputError for shapes that do not fit together. Ref: arXiv 2406.06484, 2412.06464.
    """
    _check(q_BKGTE, k_BKTE, v_BKTV, state_BKEV)
    dtype = autocast_dtype(q_BKGTE.device) or q_BKGTE.dtype
    full, length = torch.promote_types(dtype, torch.float32), k_BKTE.shape[2]
    if (fla := kernel((DELTA,), q_BKGTE.device, dtype, length, _sizes(q_BKGTE, v_BKTV))) is not None:
        narrow = (x.to(dtype) for x in (q_BKGTE, k_BKTE, v_BKTV))
        with no_autocast(q_BKGTE.device):
            y_BKGTV, last_BKEV = fla(*narrow, log_decay_BKT, beta_BKT, state_BKEV)
        return y_BKGTV, last_BKEV
    size = min(LINEAR_CHUNK, length)
    with no_autocast(q_BKGTE.device):
        q_BKNRE = _query_chunks(q_BKGTE.to(dtype), size)
        k_BKNCE, v_BKNCV, beta_BKNC1 = _chunks(size, k_BKTE.to(full), v_BKTV.to(full), beta_BKT.to(full)[..., None])
        decay = _Decay(log_decay_BKT, size, length, full, q_BKGTE.device)
        scaled_BKNCE = k_BKNCE * beta_BKNC1
        lower_BKNCC = scaled_BKNCE @ k_BKNCE.mT * decay.between
        write_BKNCV = _solved(lower_BKNCC, v_BKNCV * beta_BKNC1)
        erase_BKNCE = _solved(lower_BKNCC, scaled_BKNCE * decay.from_start)
        u_BKNCV, states_BKNEV, last_BKEV = _delta_scan(
            decay.whole, write_BKNCV, erase_BKNCE, k_BKNCE * decay.to_end, state_BKEV
        )
        y_BKNRV = _read(q_BKNRE, k_BKNCE.to(dtype), u_BKNCV.to(dtype), states_BKNEV.to(dtype), decay)
        return _joined(y_BKNRV, size, length), last_BKEV


def _sizes(q_BKGTE: Tensor, v_BKTV: Tensor) -> tuple[int, ...]:
    """What a kernel is tried at: heads, group, widths."""
    return q_BKGTE.shape[1], q_BKGTE.shape[2], q_BKGTE.shape[4], v_BKTV.shape[3]


def _solved(lower_BKNCC: Tensor, given_BKNCV: Tensor) -> Tensor:
    """(1 + lower)⁻¹ given; what stands on the diagonal of `lower` and above is not read."""
    solved: Tensor = torch.linalg.solve_triangular(lower_BKNCC, given_BKNCV, upper=False, unitriangular=True)
    return solved


def _check(q_BKGTE: Tensor, k_BKTE: Tensor, v_BKTV: Tensor, state_BKEV: Tensor | None) -> None:
    q, k, v = tuple(q_BKGTE.shape), tuple(k_BKTE.shape), tuple(v_BKTV.shape)
    if not (len(q) == 5 and len(k) == len(v) == 4 and k[:3] == v[:3] and (*q[:2], *q[3:]) == k and k[2] > 0):
        raise InputError(
            f"linear attention: got q {q}, k {k}, v {v}, expected (B, K, G, T, E), (B, K, T, E), (B, K, T, V), T ≥ 1"
        )
    if state_BKEV is not None and tuple(state_BKEV.shape) != (*k[:2], k[3], v[3]):
        raise InputError(
            f"linear attention: got a state of shape {tuple(state_BKEV.shape)}, expected {(*k[:2], k[3], v[3])}"
        )


class _Decay:
    """exp of sums of log decays within chunks.

    between (.., C, C): from token j to token i, 1 at i = j, 0 at j > i. from_start (.., C, 1): from before the chunk to
    token i. to_end (.., C, 1): from token j to the chunk's end. whole (.., 1, 1): the chunk's.
    """

    def __init__(
        self, log_decay_BKT: Tensor | None, size: int, length: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        if log_decay_BKT is None:
            log_BKNC = torch.zeros(1, 1, 1, size, dtype=dtype, device=device)
        elif log_decay_BKT.shape[2] == 1 and length % size == 0:  # the same in every chunk, as none is padded
            log_BKNC = log_decay_BKT.to(dtype)[:, :, None].expand(-1, -1, 1, size)
        else:
            log_BKT1 = log_decay_BKT.to(dtype).expand(-1, -1, length)[..., None]
            log_BKNC = _chunks(size, log_BKT1)[0].squeeze(-1)
        below_CC = torch.ones(size, size, dtype=torch.bool, device=log_BKNC.device).tril(-1)
        segments_BKNCC = (log_BKNC[..., None] * below_CC).cumsum(-2)
        self.between = segments_BKNCC.exp().tril()
        self.from_start = log_BKNC.cumsum(-1).exp()[..., None]
        self.to_end = self.between[..., -1, :, None]
        self.whole = self.from_start[..., -1:, :]


def _chunks(size: int, *xs: Tensor) -> list[Tensor]:
    """(B, K, T, E) to (B, K, N, C, E); the last chunk is padded with zeros, which write nothing and do not decay."""
    return [_cut(x, size) for x in xs]


def _cut(x: Tensor, size: int) -> Tensor:
    """(.., T, E) to (.., N, C, E)."""
    missing = -x.shape[-2] % size
    if missing:
        x = F.pad(x, (0, 0, 0, missing))
    return x.reshape(*x.shape[:-2], -1, size, x.shape[-1])


def _query_chunks(q_BKGTE: Tensor, size: int) -> Tensor:
    """The queries of a chunk and group in rows: (B, K, N, R, E)."""
    return _cut(q_BKGTE, size).transpose(2, 3).flatten(3, 4)


def _joined(y_BKNRV: Tensor, size: int, length: int) -> Tensor:
    """Back to (B, K, G, T, V)."""
    return _by_group(y_BKNRV, size).transpose(2, 3).flatten(3, 4)[:, :, :, :length]


def _by_group(x_BKNRE: Tensor, size: int) -> Tensor:
    """(B, K, N, R, E) to (B, K, N, G, C, E)."""
    return x_BKNRE.view(*x_BKNRE.shape[:3], -1, size, x_BKNRE.shape[-1])


def _read(q_BKNRE: Tensor, k_BKNCE: Tensor, u_BKNCV: Tensor, states_BKNEV: Tensor, decay: _Decay) -> Tensor:
    """What the queries of each chunk find: written by its own tokens up to theirs, and before it."""
    dtype, size = q_BKNRE.dtype, k_BKNCE.shape[3]
    scores_BKNGCC = _by_group(q_BKNRE @ k_BKNCE.mT, size) * decay.between[..., None, :, :].to(dtype)
    before_BKNGCE = _by_group(q_BKNRE, size) * decay.from_start[..., None, :, :].to(dtype)
    return scores_BKNGCC.flatten(3, 4) @ u_BKNCV + before_BKNGCE.flatten(3, 4) @ states_BKNEV


def _scan(decay: Tensor, given_BKNEV: Tensor, start_BKEV: Tensor | None) -> tuple[Tensor, Tensor]:
    """S_{n+1} = decay_n S_n + given_n: every S_n before its chunk, and the one after the last."""
    batch, heads, count, keys, values = given_BKNEV.shape
    states_MNEV, last_MEV = call(
        _Scan,
        decay.expand(batch, heads, count, 1, 1).flatten(0, 1),
        given_BKNEV.flatten(0, 1),
        _start(start_BKEV, given_BKNEV, keys),
    )
    return states_MNEV.view(given_BKNEV.shape), last_MEV.view(batch, heads, keys, values)


def _delta_scan(
    decay: Tensor, write_BKNCV: Tensor, erase_BKNCE: Tensor, keys_BKNCE: Tensor, start_BKEV: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """u_n = write_n − erase_n S_n, S_{n+1} = decay_n S_n + keys_nᵀ u_n: every u, S before every chunk, the last S."""
    batch, heads, count, _, keys = erase_BKNCE.shape
    u_MNCV, states_MNEV, last_MEV = call(
        _DeltaScan,
        decay.expand(batch, heads, count, 1, 1).flatten(0, 1),
        write_BKNCV.flatten(0, 1),
        erase_BKNCE.flatten(0, 1),
        keys_BKNCE.flatten(0, 1),
        _start(start_BKEV, write_BKNCV, keys),
    )
    shape = (batch, heads, count, keys, write_BKNCV.shape[-1])
    return u_MNCV.view(write_BKNCV.shape), states_MNEV.view(shape), last_MEV.view(*shape[:2], *shape[3:])


def _start(start_BKEV: Tensor | None, like_BKNCV: Tensor, keys: int) -> Tensor:
    """The first state, zero where none is given, as M = B·K matrices."""
    batch, heads, *_, values = like_BKNCV.shape
    if start_BKEV is None:
        return like_BKNCV.new_zeros(batch * heads, keys, values)
    return start_BKEV.to(like_BKNCV.dtype).flatten(0, 1)


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, decay_MN11: Tensor, given_MNEV: Tensor, start_MEV: Tensor) -> tuple[Tensor, Tensor]:
        states_MNEV, state_MEV = torch.empty_like(given_MNEV), start_MEV
        for n in range(given_MNEV.shape[1]):
            states_MNEV[:, n] = state_MEV
            state_MEV = torch.addcmul(given_MNEV[:, n], decay_MN11[:, n], state_MEV)
        ctx.save_for_backward(decay_MN11, states_MNEV)
        return states_MNEV, state_MEV

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_states_MNEV: Tensor, d_state_MEV: Tensor) -> tuple[Tensor | None, ...]:
        decay_MN11, states_MNEV = ctx.saved_tensors
        d_given_MNEV = torch.empty_like(states_MNEV)
        with no_autocast(states_MNEV.device):
            for n in reversed(range(states_MNEV.shape[1])):
                d_given_MNEV[:, n] = d_state_MEV
                d_state_MEV = torch.addcmul(d_states_MNEV[:, n], decay_MN11[:, n], d_state_MEV)
            d_decay_MN11 = _dots(d_given_MNEV, states_MNEV) if ctx.needs_input_grad[0] else None
        return d_decay_MN11, d_given_MNEV, d_state_MEV


class _DeltaScan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, decay_MN11: Tensor, write_MNCV: Tensor, erase_MNCE: Tensor, keys_MNCE: Tensor, start_MEV: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        u_MNCV, state_MEV = torch.empty_like(write_MNCV), start_MEV
        states_MNEV = start_MEV.new_empty(len(start_MEV), write_MNCV.shape[1], *start_MEV.shape[1:])
        for n in range(write_MNCV.shape[1]):
            states_MNEV[:, n] = state_MEV
            u_MNCV[:, n] = u_MCV = torch.baddbmm(write_MNCV[:, n], erase_MNCE[:, n], state_MEV, alpha=-1.0)
            state_MEV = (decay_MN11[:, n] * state_MEV).baddbmm_(keys_MNCE[:, n].mT, u_MCV)
        ctx.save_for_backward(decay_MN11, erase_MNCE, keys_MNCE, u_MNCV, states_MNEV)
        return u_MNCV, states_MNEV, state_MEV

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_u_MNCV: Tensor, d_states_MNEV: Tensor, d_state_MEV: Tensor) -> tuple[Tensor | None, ...]:
        decay_MN11, erase_MNCE, keys_MNCE, u_MNCV, states_MNEV = ctx.saved_tensors
        d_next_MNEV, d_write_MNCV = torch.empty_like(states_MNEV), torch.empty_like(u_MNCV)
        with no_autocast(states_MNEV.device):
            for n in reversed(range(states_MNEV.shape[1])):
                d_next_MNEV[:, n] = d_state_MEV
                d_write_MNCV[:, n] = d_u_MCV = torch.baddbmm(d_u_MNCV[:, n], keys_MNCE[:, n], d_state_MEV)
                d_state_MEV = torch.addcmul(d_states_MNEV[:, n], decay_MN11[:, n], d_state_MEV)
                d_state_MEV.baddbmm_(erase_MNCE[:, n].mT, d_u_MCV, alpha=-1.0)
            d_decay_MN11 = _dots(d_next_MNEV, states_MNEV)
            d_erase_MNCE = (d_write_MNCV @ states_MNEV.mT).neg_()
            d_keys_MNCE = u_MNCV @ d_next_MNEV.mT
        return d_decay_MN11, d_write_MNCV, d_erase_MNCE, d_keys_MNCE, d_state_MEV


def _dots(a_MNEV: Tensor, b_MNEV: Tensor) -> Tensor:
    """Sums of products of two stacks of matrices, (M, N, 1, 1)."""
    return torch.einsum("mnev,mnev->mn", a_MNEV, b_MNEV)[..., None, None]
