"""Depth recurrence written out token by token, for one sequence. T tokens, D model dim"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor


def looped(
    core: Callable[[Tensor], Tensor],
    prelude_TD: Tensor,
    first_TD: Tensor,
    steps: int,
    weights: Mapping[str, Tensor],
) -> Tensor:
    """s_steps of s_i = core(e + g_i (W_s n(s_{i-1}) + W_e n'(e))) with RMSNorms n and n', (T, D).

    weights: as `Recurrence` names them, with `prelude.weight` and `gate_*` only where the adapter has them.
    core: (T, D) to (T, D).
    """
    state_TD = first_TD
    for _ in range(steps):
        rows = []
        for state_D, prelude_D in zip(state_TD, prelude_TD, strict=True):
            read_D = _rms(state_D, weights["norm.weight"], weights["norm.eps"])
            mixed_D = weights["state.weight"] @ read_D
            logit = weights["gate_bias"] + weights["gate_state"] @ read_D if "gate_bias" in weights else None
            if "prelude.weight" in weights:
                read_D = _rms(prelude_D, weights["prelude_norm.weight"], weights["prelude_norm.eps"])
                mixed_D = mixed_D + weights["prelude.weight"] @ read_D
                logit = None if logit is None else logit + weights["gate_prelude"] @ read_D
            gate = 1.0 if logit is None else 2.0 / (1.0 + torch.exp(-logit))
            rows.append(prelude_D + gate * mixed_D)
        state_TD = core(torch.stack(rows))
    return state_TD


def _rms(x_D: Tensor, weight_D: Tensor, eps: Tensor) -> Tensor:
    return x_D / torch.sqrt(x_D @ x_D / len(x_D) + eps) * weight_D
