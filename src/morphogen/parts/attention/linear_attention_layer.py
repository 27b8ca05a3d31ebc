"""The module of `LinearAttention`.

B batch, T tokens, D model dim, K kv heads, G query heads per kv head, H = K·G query heads, E width of q and k per head,
V width of v per head, F heads times channels
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from morphogen.ops.linear_attention import (
    FEATURE_MAPS,
    gated_delta,
    linear_attention,
    unit,
)
from morphogen.parts.attention.linear_attention import LinearAttention
from morphogen.parts.contract.branch import Branch, State
from morphogen.parts.contract.layers import Linear, RMSNorm, make_norm
from morphogen.parts.contract.part import Context

NORMALISER_EPS = 1e-6


class LinearAttentionBranch(Branch):
    """The module of `LinearAttention`."""

    slopes: Tensor | None

    def __init__(self, part: LinearAttention, ctx: Context) -> None:
        super().__init__()
        self.part = part
        self.norm = make_norm(ctx.norm, ctx.dim)
        self.q = Linear(ctx.dim, part.heads * part.head_dim)
        self.k = Linear(ctx.dim, part.kv_heads * part.head_dim)
        self.v = Linear(ctx.dim, part.kv_heads * part.values)
        self.o = Linear(part.heads * part.values, ctx.dim)
        self.out_norm = None if part.normalised else RMSNorm(part.values)
        self.gate = Linear(ctx.dim, part.heads * part.values) if part.gate == "swish" else None
        self.alpha = Linear(ctx.dim, part.kv_heads) if part.decay in ("gated", "delta") else None
        self.beta = Linear(ctx.dim, part.kv_heads) if part.decay == "delta" else None
        if self.alpha is not None:
            self.alpha_bias = nn.Parameter(torch.empty(part.kv_heads))
            self.alpha_log = nn.Parameter(torch.empty(part.kv_heads))
        self.register_buffer("slopes", torch.empty(part.kv_heads) if part.decay == "retention" else None)

    def mix(self, x_BTD: Tensor) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        return self._mixed(x_BTD, None)[0]

    def mix_on(self, x_BTD: Tensor, state: State) -> Tensor:
        """As `mix`; what is remembered is one matrix per head, in fp32 at least."""
        y_BTD, state["matrix"] = self._mixed(x_BTD, state["matrix"] if state else None)
        return y_BTD

    def _mixed(self, x_BTD: Tensor, state_BKEV: Tensor | None) -> tuple[Tensor, Tensor]:
        part, (batch, length, _) = self.part, x_BTD.shape
        q_BKGTE = self.q(x_BTD).view(batch, length, part.kv_heads, part.kv_groups, part.head_dim).movedim(1, 3)
        k_BKTE = self.k(x_BTD).view(batch, length, part.kv_heads, part.head_dim).transpose(1, 2)
        v_BKTV = self.v(x_BTD).view(batch, length, part.kv_heads, part.values).transpose(1, 2)
        feature = FEATURE_MAPS[part.feature_map]
        q_BKGTE, k_BKTE = feature(q_BKGTE), feature(k_BKTE)
        if part.decay == "delta":
            q_BKGTE, k_BKTE = unit(q_BKGTE), unit(k_BKTE)
        if part.normalised:  # the weights are summed as one more channel of the values
            v_BKTV = torch.cat([v_BKTV, torch.ones_like(v_BKTV[..., :1])], -1)
        else:
            q_BKGTE = q_BKGTE * part.head_dim**-0.5
        log_decay_BKT = self._log_decay(x_BTD)
        if self.beta is not None and log_decay_BKT is not None:
            beta_BKT = torch.sigmoid(self.beta(x_BTD).to(log_decay_BKT.dtype)).transpose(1, 2)
            y_BKGTV, state_BKEV = gated_delta(q_BKGTE, k_BKTE, v_BKTV, log_decay_BKT, beta_BKT, state_BKEV)
        else:
            y_BKGTV, state_BKEV = linear_attention(q_BKGTE, k_BKTE, v_BKTV, log_decay_BKT, state_BKEV)
        if self.out_norm is None:
            y_BKGTV = y_BKGTV[..., :-1] / (y_BKGTV[..., -1:] + NORMALISER_EPS)
        else:
            y_BKGTV = self.out_norm(y_BKGTV)
        y_BTF = y_BKGTV.movedim(3, 1).flatten(2)
        if self.gate is not None:
            y_BTF = y_BTF * F.silu(self.gate(x_BTD))
        return self.o(y_BTF), state_BKEV

    def _log_decay(self, x_BTD: Tensor) -> Tensor | None:
        """Logarithms of the decays, in fp32 at least: (1, K, 1) when fixed, (B, K, T) when they depend on the token."""
        if self.slopes is not None:
            return -self.slopes[None, :, None]
        if self.alpha is None:
            return None
        alpha_BTK = self.alpha(x_BTD)
        full = torch.promote_types(alpha_BTK.dtype, torch.float32)
        rate_BTK = self.alpha_log.to(full).exp() * F.softplus(alpha_BTK.to(full) + self.alpha_bias.to(full))
        return -rate_BTK.transpose(1, 2)


# --------------------------------------------------------------------------------------------------- operators
