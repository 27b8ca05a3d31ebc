"""The module of `Attention`.

B batch, T tokens, D model dim, K kv heads, G query heads per kv head, H = K·G query heads, E head dim,
F heads times channels
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from morphogen.ops.elementwise import apply_rope
from morphogen.ops.kv_cache import seen
from morphogen.ops.selection import Scoring
from morphogen.parts.attention.attention import QK_NORMS, Attention
from morphogen.parts.attention.selector_layer import SelectiveBranch, Selector
from morphogen.parts.contract.branch import State
from morphogen.parts.contract.layers import Linear, make_norm, rotations
from morphogen.parts.contract.part import Context


class Gate(nn.Module):
    """2σ(W x) ⊙ y or 2σ(w ⊙ y) ⊙ y: at W = 0 the identity, so a gate can be put in without a jump."""

    def __init__(self, dim: int, width: int, dense: bool) -> None:
        super().__init__()
        if dense:
            self.weight = nn.Parameter(torch.empty(width, dim))
        else:
            self.diagonal = nn.Parameter(torch.empty(width))
        self.dense = dense

    def forward(self, x_BTD: Tensor, y_BTF: Tensor) -> Tensor:
        """Input (B, T, D) and gated tensor (B, T, F) to (B, T, F)."""
        logits = F.linear(x_BTD, self.weight) if self.dense else self.diagonal * y_BTF
        return (2.0 * torch.sigmoid(logits)).to(y_BTF.dtype) * y_BTF


class AttentionBranch(SelectiveBranch):
    """The module of `Attention`."""

    part: Attention
    slopes: Tensor | None

    def __init__(self, part: Attention, ctx: Context) -> None:
        super().__init__()
        self.part = part
        width, kv_width = part.heads * part.head_dim, part.kv_heads * part.head_dim
        self.norm = make_norm(ctx.norm, ctx.dim)
        self.q = Linear(ctx.dim, width, part.bias != "none")
        self.k = Linear(ctx.dim, kv_width, part.bias != "none")
        self.v = Linear(ctx.dim, kv_width, part.bias != "none")
        self.o = Linear(width, ctx.dim, part.bias == "all")
        self.q_norm = make_norm(QK_NORMS[part.qk_norm], part.head_dim) if part.qk_norm != "none" else None
        self.k_norm = make_norm(QK_NORMS[part.qk_norm], part.head_dim) if part.qk_norm != "none" else None
        dense = part.gating_op == "dense"
        self.out_gate = Gate(ctx.dim, width, dense) if part.gating_pos == "output" else None
        self.value_gate = Gate(ctx.dim, kv_width, dense) if part.gating_pos == "value" else None
        self.register_buffer("slopes", torch.empty(part.heads) if part.alibi else None)
        theta = None if part.rope == "none" else part.rope_theta
        stretch = part.rope_scale if part.rope == "standard" else 1.0
        self.selector = Selector(part, ctx, theta, stretch) if part.selector != "none" else None

    def mix(self, x_BTD: Tensor) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        y_BHTE = self.attend(x_BTD, *self._heads(x_BTD, 0), self._scoring(), dropout=self.part.dropout)
        return self._out(y_BHTE, x_BTD)

    def mix_on(self, x_BTD: Tensor, state: State) -> Tensor:
        """As `mix` without dropout, over the keys and values that `kv_policy` keeps."""
        q_BHTE, k_BKTE, v_BKTE = self._heads(x_BTD, seen(state))
        past = self.remember(x_BTD, state, {"k": k_BKTE, "v": v_BKTE})
        return self._out(self.attend_on(q_BHTE, past, self._scoring()), x_BTD)

    def _scoring(self) -> Scoring:
        return Scoring(1.0 / math.sqrt(self.part.head_dim), self.part.softcap, self.slopes)

    def _heads(self, x_BTD: Tensor, start: int) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of tokens that stand at `start` and after, normed, gated and rotated."""
        part, (batch, length, _) = self.part, x_BTD.shape
        q_BHTE = self.q(x_BTD).view(batch, length, part.heads, part.head_dim).transpose(1, 2)
        k_BKTE = self.k(x_BTD).view(batch, length, part.kv_heads, part.head_dim).transpose(1, 2)
        v_BTF = self.v(x_BTD)
        if self.value_gate is not None:
            v_BTF = self.value_gate(x_BTD, v_BTF)
        v_BKTE = v_BTF.view(batch, length, part.kv_heads, part.head_dim).transpose(1, 2)
        if self.q_norm is not None and self.k_norm is not None:
            q_BHTE, k_BKTE = self.q_norm(q_BHTE), self.k_norm(k_BKTE)
        if part.rope != "none":
            cis_TF = rotations(
                range(start, start + length),
                part.rotated_dims,
                part.rope_theta,
                q_BHTE,
                kind="yarn" if part.rope == "yarn" else "standard",
                factor=1.0 if part.rope == "partial" else part.rope_scale,
                context=part.rope_context,
            )
            q_BHTE, k_BKTE = apply_rope(q_BHTE, cis_TF), apply_rope(k_BKTE, cis_TF)
        return q_BHTE, k_BKTE, v_BKTE

    def _out(self, y_BHTE: Tensor, x_BTD: Tensor) -> Tensor:
        """The heads' output, gated, to (B, T, D)."""
        y_BTF = y_BHTE.transpose(1, 2).flatten(2)
        if self.out_gate is not None:
            y_BTF = self.out_gate(x_BTD, y_BTF)
        return self.o(y_BTF)
