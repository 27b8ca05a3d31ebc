"""Kernels of libraries for recurrences: flash-linear-attention's (Triton) for linear attention, the delta rule and
Mamba-2, mamba-ssm's (CUDA) for the selective scan. Each is called like the op that it stands behind.

B batch, K kv heads, G query heads per kv head, H heads, T tokens, E width of q and k, V width of v,
F channels, P head width, N state size
"""

from collections.abc import Callable

import torch
from torch import Tensor

from morphogen.ops import naive_linear, naive_scan
from morphogen.ops.backends import Backend, Sizes, Trial

#: Fewer tokens, as in decoding, are not worth a kernel's launch.
LEAST_TOKENS = 32
#: Tokens that a kernel is tried on: more than a chunk, and no multiple of one.
TRIED_TOKENS = 80
MOST_WIDTH = 256
FLA, MAMBA = "fla", "mamba_ssm"


def linear_attention(
    q_BKGTE: Tensor, k_BKTE: Tensor, v_BKTV: Tensor, log_decay_BKT: Tensor | None, state_BKEV: Tensor | None
) -> tuple[Tensor, Tensor]:
    """As `linear_attention.linear_attention`, by flash-linear-attention."""
    from fla.ops.simple_gla import chunk_simple_gla

    q, k, v, heads = _by_token(q_BKGTE, k_BKTE, v_BKTV)
    y, last = chunk_simple_gla(
        q,
        k,
        v,
        g=None if log_decay_BKT is None else _each_token(log_decay_BKT, k_BKTE, heads),
        scale=1.0,
        initial_state=_start(state_BKEV, q_BKGTE),
        output_final_state=True,
    )
    return _grouped(y, q_BKGTE), _of_first(last, q_BKGTE)


def gated_delta(
    q_BKGTE: Tensor,
    k_BKTE: Tensor,
    v_BKTV: Tensor,
    log_decay_BKT: Tensor,
    beta_BKT: Tensor,
    state_BKEV: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """As `linear_attention.gated_delta`, by flash-linear-attention."""
    from fla.ops.gated_delta_rule import chunk_gated_delta_rule

    q, k, v, heads = _by_token(q_BKGTE, k_BKTE, v_BKTV)
    y, last = chunk_gated_delta_rule(
        q,
        k,
        v,
        g=_each_token(log_decay_BKT, k_BKTE, heads),
        beta=_each_token(beta_BKT, k_BKTE, heads),
        scale=1.0,
        initial_state=_start(state_BKEV, q_BKGTE),
        output_final_state=True,
    )
    return _grouped(y, q_BKGTE), _of_first(last, q_BKGTE)


def ssd(
    x_BTHP: Tensor,
    dt_BTH: Tensor,
    a_H: Tensor,
    b_BTN: Tensor,
    c_BTN: Tensor,
    d_H: Tensor,
    state_BNHP: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """As `ssd.ssd`: linear attention with queries c, keys b and values dt·x, which heads share but for the values."""
    from fla.ops.simple_gla import chunk_simple_gla

    dtype, dt_BTH = x_BTHP.dtype, dt_BTH.float()
    heads = x_BTHP.shape[2]
    k, q = (t.to(dtype)[:, :, None].expand(-1, -1, heads, -1).contiguous() for t in (b_BTN, c_BTN))
    y_BTHP, last_BHNP = chunk_simple_gla(
        q,
        k,
        (x_BTHP * dt_BTH[..., None]).to(dtype),
        g=dt_BTH * a_H.float(),
        scale=1.0,
        initial_state=None if state_BNHP is None else state_BNHP.transpose(1, 2).float().contiguous(),
        output_final_state=True,
    )
    return (y_BTHP + d_H[:, None] * x_BTHP).to(dtype), last_BHNP.transpose(1, 2)


def selective_scan(
    x_BTF: Tensor, dt_BTF: Tensor, a_NF: Tensor, b_BTN: Tensor, c_BTN: Tensor, d_F: Tensor
) -> tuple[Tensor, Tensor]:
    """As `scan.selective_scan` from a state of zeros, by mamba-ssm; nothing trains through the last state."""
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    x_BFT, dt_BFT, b_BNT, c_BNT = (t.float().transpose(1, 2).contiguous() for t in (x_BTF, dt_BTF, b_BTN, c_BTN))
    a_FN = a_NF.float().t().contiguous()
    y_BFT, last_BFN = selective_scan_fn(x_BFT, dt_BFT, a_FN, b_BNT, c_BNT, d_F.float(), return_last_state=True)
    return y_BFT.transpose(1, 2).to(x_BTF.dtype), last_BFN.detach().transpose(1, 2)


# ------------------------------------------------------------------------------------------------ their layout and ours


def _by_token(q_BKGTE: Tensor, k_BKTE: Tensor, v_BKTV: Tensor) -> tuple[Tensor, Tensor, Tensor, int]:
    """(B, T, H, ·), kv heads repeated for their group; and the group's size."""
    group = q_BKGTE.shape[2]
    q = q_BKGTE.flatten(1, 2).transpose(1, 2).contiguous()
    k, v = (x.repeat_interleave(group, 1).transpose(1, 2).contiguous() for x in (k_BKTE, v_BKTV))
    return q, k, v, group


def _each_token(x_BKT: Tensor, k_BKTE: Tensor, group: int) -> Tensor:
    """One number for each token and head, in fp32, (B, T, H)."""
    batch, kv_heads, length = k_BKTE.shape[:3]
    whole_BKT = x_BKT.float().expand(batch, kv_heads, length)
    return whole_BKT.repeat_interleave(group, 1).transpose(1, 2).contiguous()


def _start(state_BKEV: Tensor | None, q_BKGTE: Tensor) -> Tensor | None:
    """A state for every query head, (B, H, E, V)."""
    return None if state_BKEV is None else state_BKEV.float().repeat_interleave(q_BKGTE.shape[2], 1)


def _grouped(y_BTHV: Tensor, q_BKGTE: Tensor) -> Tensor:
    """Back to (B, K, G, T, V)."""
    return y_BTHV.transpose(1, 2).reshape(*q_BKGTE.shape[:4], y_BTHV.shape[-1])


def _of_first(last_BHEV: Tensor, q_BKGTE: Tensor) -> Tensor:
    """The kv heads' last states: those of a group's heads are equal."""
    return last_BHEV[:, :: q_BKGTE.shape[2]]


# ------------------------------------------------------------------------------------------------ how each is tried


def _noise(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _linear_trial(delta: bool) -> Callable[[Sizes], Trial]:
    def trial(sizes: Sizes) -> Trial:
        heads, group, width, values = sizes
        q, k = _noise(1, heads, group, TRIED_TOKENS, width, seed=0), _noise(1, heads, TRIED_TOKENS, width, seed=1)
        k = torch.nn.functional.normalize(k, dim=-1)
        v, start = _noise(1, heads, TRIED_TOKENS, values, seed=2), _noise(1, heads, width, values, seed=3)
        decay = -0.2 * _noise(1, heads, TRIED_TOKENS, seed=4).abs()
        beta = _noise(1, heads, TRIED_TOKENS, seed=5).sigmoid()
        if delta:
            inputs, narrow = (q, k, v, decay, beta, start), (True, True, True, False, False, False)
            return Trial(inputs, narrow, gated_delta, naive_linear.gated_delta)
        return Trial(
            (q, k, v, decay, start), (True, True, True, False, False), linear_attention, naive_linear.linear_attention
        )

    return trial


def _ssd_trial(sizes: Sizes) -> Trial:
    heads, width, size = sizes
    x, dt = _noise(1, TRIED_TOKENS, heads, width, seed=0), 0.1 * _noise(1, TRIED_TOKENS, heads, seed=1).abs()
    a, d = -1.0 - _noise(heads, seed=2).abs(), _noise(heads, seed=3)
    b, c = _noise(1, TRIED_TOKENS, size, seed=4), _noise(1, TRIED_TOKENS, size, seed=5)
    inputs = (x, dt, a, b, c, d, _noise(1, size, heads, width, seed=6))
    return Trial(inputs, (True, False, False, True, True, False, False), ssd, naive_scan.ssd)


def _scan_trial(sizes: Sizes) -> Trial:
    size, channels = sizes
    x, dt = _noise(1, TRIED_TOKENS, channels, seed=0), 0.1 * _noise(1, TRIED_TOKENS, channels, seed=1).abs()
    a, d = -1.0 - _noise(size, channels, seed=2).abs(), _noise(channels, seed=3)
    b, c = _noise(1, TRIED_TOKENS, size, seed=4), _noise(1, TRIED_TOKENS, size, seed=5)
    narrow = (True, False, False, True, True, False)
    return Trial((x, dt, a, b, c, d), narrow, selective_scan, naive_scan.selective_scan)


def _long_enough(sizes: Sizes, tokens: int) -> str:
    return "" if tokens >= LEAST_TOKENS else f"{tokens} tokens are fewer than {LEAST_TOKENS}"


def _narrow_keys(sizes: Sizes, tokens: int) -> str:
    if (width := sizes[2]) > MOST_WIDTH:
        return f"keys of {width} channels are wider than {MOST_WIDTH}"
    return _long_enough(sizes, tokens)


CUDA = frozenset({"cuda"})
LINEAR = Backend("flash-linear-attention", FLA, CUDA, linear_attention, _linear_trial(False), _long_enough)
DELTA = Backend("flash-linear-attention", FLA, CUDA, gated_delta, _linear_trial(True), _narrow_keys)
SSD = Backend("flash-linear-attention", FLA, CUDA, ssd, _ssd_trial, _long_enough)
SCAN = Backend("mamba-ssm", MAMBA, CUDA, selective_scan, _scan_trial, _long_enough)
#: Sizes that they are tried at when they are only asked about.
USUAL_LINEAR: Sizes = (2, 2, 32, 32)
USUAL_SSD: Sizes = (4, 32, 16)
USUAL_SCAN: Sizes = (16, 64)
