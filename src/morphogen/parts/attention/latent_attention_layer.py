"""The module of `LatentAttention`.

B batch, T tokens, S cached and new tokens, D model dim, H heads, E head dim (of unrotated queries and keys, and of
values), R width of the rotated key that heads share, L latent dim
"""

import torch
from torch import Tensor

from morphogen.ops.elementwise import apply_rope
from morphogen.ops.kv_cache import seen
from morphogen.ops.selection import Scoring
from morphogen.parts.attention.latent_attention import LatentAttention
from morphogen.parts.attention.selector_layer import SelectiveBranch, Selector
from morphogen.parts.contract.branch import State
from morphogen.parts.contract.layers import Linear, RMSNorm, make_norm, rotations
from morphogen.parts.contract.part import Context


class LatentAttentionBranch(SelectiveBranch):
    """The module of `LatentAttention`."""

    part: LatentAttention

    def __init__(self, part: LatentAttention, ctx: Context) -> None:
        super().__init__()
        self.part = part
        heads, width = part.heads, part.head_dim
        self.norm = make_norm(ctx.norm, ctx.dim)
        self.q = Linear(ctx.dim, heads * width)
        self.q_rope = Linear(ctx.dim, heads * part.rope_head_dim) if part.rope_head_dim else None
        self.kv_down = Linear(ctx.dim, part.kv_latent_dim)
        self.k_rope = Linear(ctx.dim, part.rope_head_dim) if part.rope_head_dim else None
        self.latent_norm = RMSNorm(part.kv_latent_dim)
        self.k_up = Linear(part.kv_latent_dim, heads * width)
        self.v_up = Linear(part.kv_latent_dim, heads * width)
        self.o = Linear(heads * width, ctx.dim)
        theta = part.rope_theta if part.rope_head_dim else None
        self.selector = Selector(part, ctx, theta) if part.selector != "none" else None

    def mix(self, x_BTD: Tensor) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        q_BHTE = _joined(*self._queries(x_BTD, 0))
        k_BHTE, v_BHTE = self._expanded(*self._latent(x_BTD, 0))
        y_BHTE = self.attend(x_BTD, q_BHTE, k_BHTE, v_BHTE, Scoring(self.part.scale), dropout=self.part.dropout)
        return self.o(y_BHTE.transpose(1, 2).flatten(2))

    def mix_on(self, x_BTD: Tensor, state: State) -> Tensor:
        """As `mix` without dropout, over what `kv_policy` keeps.

        Over latents, heads do not expand keys and values: the up-projections move to queries and outputs.
        """
        part, start = self.part, seen(state)
        q_BHTE, q_BHTR = self._queries(x_BTD, start)
        latent_B1TL, key_B1TR = self._latent(x_BTD, start)
        expanded = part.kv_policy.kind == "full"
        if expanded:
            new = dict(zip(("k", "v"), self._expanded(latent_B1TL, key_B1TR), strict=True))
        else:
            new = {"latent": latent_B1TL} if key_B1TR is None else {"latent": latent_B1TL, "key": key_B1TR}
            q_BHTE = torch.einsum("bhte,hel->bhtl", q_BHTE, self._by_head(self.k_up, q_BHTE))
        past = self.remember(x_BTD, state, new)
        if not expanded:
            kept = past.kept
            kept |= {"k": _joined(kept["latent"], kept.get("key")), "v": kept["latent"]}
        y_BHTV = self.attend_on(_joined(q_BHTE, q_BHTR), past, Scoring(part.scale))
        if not expanded:
            y_BHTV = torch.einsum("bhtl,hel->bhte", y_BHTV, self._by_head(self.v_up, y_BHTV))
        return self.o(y_BHTV.transpose(1, 2).flatten(2))

    def _queries(self, x_BTD: Tensor, start: int) -> tuple[Tensor, Tensor | None]:
        """Queries q_BHTE and rotated ones q_BHTR."""
        q_BHTE = self._heads(self.q(x_BTD))
        return q_BHTE, None if self.q_rope is None else self._rotated(self._heads(self.q_rope(x_BTD)), start)

    def _latent(self, x_BTD: Tensor, start: int) -> tuple[Tensor, Tensor | None]:
        """The normed latent, (B, 1, T, L), and the rotated key, (B, 1, T, R)."""
        latent_B1TL = self.latent_norm(self.kv_down(x_BTD))[:, None]
        return latent_B1TL, None if self.k_rope is None else self._rotated(self.k_rope(x_BTD)[:, None], start)

    def _expanded(self, latent_B1TL: Tensor, key_B1TR: Tensor | None) -> tuple[Tensor, Tensor]:
        """Keys (B, H, T, E + R) and values (B, H, T, E) of every head."""
        latent_BTL = latent_B1TL[:, 0]
        k_BHTE, v_BHTE = self._heads(self.k_up(latent_BTL)), self._heads(self.v_up(latent_BTL))
        return _joined(k_BHTE, None if key_B1TR is None else key_B1TR.expand(-1, self.part.heads, -1, -1)), v_BHTE

    def _heads(self, x_BTF: Tensor) -> Tensor:
        batch, length, _ = x_BTF.shape
        return x_BTF.view(batch, length, self.part.heads, -1).transpose(1, 2)

    def _by_head(self, up: Linear, like: Tensor) -> Tensor:
        """An up-projection as (H, E, L)."""
        return up.weight.view(self.part.heads, -1, self.part.kv_latent_dim).to(like.dtype)

    def _rotated(self, x_BHTR: Tensor, start: int) -> Tensor:
        places = range(start, start + x_BHTR.shape[2])
        return apply_rope(x_BHTR, rotations(places, self.part.rope_head_dim, self.part.rope_theta, x_BHTR))


def _joined(x: Tensor, rotated: Tensor | None) -> Tensor:
    return x if rotated is None else torch.cat([x, rotated], -1)
