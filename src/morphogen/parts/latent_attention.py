"""Multi-head latent attention: keys and values of all heads are read from one small latent per token.

B batch, T tokens, S cached and new tokens, D model dim, H heads, E head dim (of unrotated queries and keys, and of
values), R width of the rotated key that heads share, L latent dim
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, cast

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from morphogen.ops.elementwise import apply_rope
from morphogen.ops.kv_cache import seen
from morphogen.ops.selection import Scoring
from morphogen.parts.alignment import Alignment, AxisMap, Derived
from morphogen.parts.attention import Attention
from morphogen.parts.base import Context, Cost, NormKind, Part
from morphogen.parts.branch import State
from morphogen.parts.kv_policy import KVPolicy
from morphogen.parts.layers import Linear, RMSNorm, make_norm, rotations
from morphogen.parts.selector import (
    SELECTOR_AXES,
    SELECTOR_INITIAL,
    SELECTOR_SIZES,
    SELECTOR_ZERO_INIT,
    Selective,
    SelectiveBranch,
    Selector,
)
from morphogen.parts.tensors import ZEROS, Axes


class LatentAttention(Selective):
    """softmax((q·k + q_R·k_R) / √(E + R)) v with k and v up-projections of RMSNorm(W x), a latent of `kv_latent_dim`.

    q_R (one per head) and k_R (shared by the heads) carry the position by RoPE; with `rope_head_dim` 0 nothing does.
    Ref: DeepSeek-V2, arXiv 2405.04434, with plain queries.

    kv_policy: `latent` and `window` cache the latent and k_R, `full` the keys and values of every head.
    """

    slot: ClassVar = "attn"
    axes: ClassVar[Mapping[str, Axes]] = {
        "q.weight": (("heads", "q_dim"), "dim"),
        "q_rope.weight": (("heads", "rope_dim"), "dim"),
        "kv_down.weight": ("latent", "dim"),
        "k_rope.weight": ("rope_dim", "dim"),
        "k_up.weight": (("heads", "k_dim"), "latent"),
        "v_up.weight": (("heads", "v_dim"), "latent"),
        "o.weight": ("dim", ("heads", "v_dim")),
        **SELECTOR_AXES,
    }
    initial: ClassVar = {**SELECTOR_INITIAL}
    zero_init: ClassVar = {
        "o.weight": ("heads", "v_dim"),
        "k_up.weight": ("k_dim",),
        "kv_down.weight": ("latent",),
        **SELECTOR_ZERO_INIT,
    }
    writers: ClassVar = frozenset({"o.weight"})
    size_fields: ClassVar = SELECTOR_SIZES | {"heads", "head_dim", "kv_latent_dim", "dropout", "kv_policy"}
    latent_cache: ClassVar = True

    kind: Literal["MLA"] = "MLA"
    heads: PositiveInt
    head_dim: PositiveInt
    kv_latent_dim: PositiveInt
    rope_head_dim: Annotated[int, Field(ge=0, multiple_of=2)]
    rope_theta: Annotated[float, Field(gt=1.0)] = 10_000.0
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    kv_policy: KVPolicy = KVPolicy(kind="latent")

    @property
    def scale(self) -> float:
        """Factor on the dot products of queries and keys."""
        return 1.0 / math.sqrt(self.head_dim + self.rope_head_dim)

    def inert(self) -> frozenset[str]:
        """RoPE's base without rotated channels, and what an unused selector or pattern does not read."""
        return super().inert() | ({"rope_theta"} if self.rope_head_dim == 0 else set())

    def absent(self, ctx: Context) -> frozenset[str]:
        """The rotated queries and keys, the indexer: where there are none."""
        return super().absent(ctx) | ({"q_rope.weight", "k_rope.weight"} if self.rope_head_dim == 0 else set())

    def norms(self, ctx: Context) -> Mapping[str, tuple[str, NormKind]]:
        """The branch's norm and the latent's."""
        return {**super().norms(ctx), "latent_norm": ("latent", "rmsnorm")}

    def sizes(self, ctx: Context) -> dict[str, int]:
        """heads, rope_dim, latent, and head_dim once for queries, keys and values: they grow by different rules."""
        return {
            "heads": self.heads,
            "q_dim": self.head_dim,
            "k_dim": self.head_dim,
            "v_dim": self.head_dim,
            "rope_dim": self.rope_head_dim,
            "latent": self.kv_latent_dim,
            **super().sizes(ctx),
        }

    def build(self, ctx: Context) -> nn.Module:
        """(B, T, D) to (B, T, D)."""
        return LatentAttentionBranch(self, ctx)

    def cost(self, ctx: Context) -> Cost:
        """Projections down and up, and scores and sums over the keys that queries see on average."""
        heads, width, rotated, latent = self.heads, self.head_dim, self.rope_head_dim, self.kv_latent_dim
        projections = ctx.dim * (heads * (2 * width + rotated) + latent + rotated) + 2 * latent * heads * width
        cached = [(1, latent), (1, rotated)]
        if self.kv_policy.kind == "full":
            cached = [(heads, width + rotated), (heads, width)]
        caches = [self.kv_policy.cost(self.pattern, ctx.seq_len, count, size) for count, size in cached if size]
        flops = 2.0 * projections + 2.0 * heads * (2 * width + rotated) * self.keys_read(ctx)
        return sum(caches, Cost(flops=flops)) + self.selection_cost(ctx)

    def align(self, parent: Part, ctx: Context, parent_ctx: Context) -> Alignment | None:
        """Beyond the default: the softmax scale changes with the widths, and new rotated keys start at zero."""
        if isinstance(parent, Attention):
            return self._from_attention(parent, ctx, parent_ctx)
        plain = super().align(parent, ctx, parent_ctx)
        if plain is None or not isinstance(parent, LatentAttention):
            return plain
        exact, note, init = plain.exact, plain.note, dict(plain.init)
        if parent.rope_head_dim == 0 < self.rope_head_dim and self.selector == "none":
            init["k_rope.weight"] = ZEROS
            like_parent = self.evolve(rope_head_dim=0) or self
            unrotated = Selective.align(like_parent, parent, ctx, parent_ctx)
            if unrotated is not None and unrotated.exact:
                exact, note = True, ""
        ratio = parent.scale / self.scale
        scales = {**plain.scales, "q.weight": ratio, "q_rope.weight": ratio}
        return dataclasses.replace(plain, exact=exact, note=note, init=init, scales=scales)

    def _from_attention(self, parent: Attention, ctx: Context, parent_ctx: Context) -> Alignment:
        """Keys and values factored through the latent; what told positions apart is learned anew."""
        theirs = parent.specs(parent_ctx)
        width = parent.kv_heads * parent.head_dim
        rank = min(self.kv_latent_dim, 2 * width, parent_ctx.dim)
        by_head: tuple[int, ...] = (rank, parent.kv_heads, parent.kv_groups)
        inputs = ("k.weight", "v.weight", "norm.weight")
        factored = {
            "kv_down.weight": Derived("latent_down", inputs, (rank,), self.axes["kv_down.weight"]),
            "k_up.weight": Derived("latent_keys", inputs, by_head, self.axes["k_up.weight"]),
            "v_up.weight": Derived("latent_values", inputs, by_head, self.axes["v_up.weight"]),
        }
        sources = {name: name if name in theirs else None for name in self.specs(ctx)}
        scales = self.norm_scales(parent, ctx, parent_ctx)
        scales["q.weight"] = 1.0 / (self.scale * math.sqrt(parent.head_dim))
        return Alignment(
            sources=sources | {name: name for name in factored},
            exact=False,
            note=f"keys and values factored through a latent of {self.kv_latent_dim}",
            derived=factored,
            parent_axes={name: self.axes[name] for name in ("q.weight", "o.weight")},
            maps={"latent": AxisMap(how="first", size=self.kv_latent_dim, parent_size=rank)},
            scales=scales,
            zero=self.zero_init,
            init={"k_rope.weight": ZEROS},
        )

    def bequeath(self, child: Part, ctx: Context, child_ctx: Context) -> Alignment | None:
        """To plain attention: up- and down-projection multiplied out, the rotated channels before the others.

        All that is lost is that the latent's norm divides by its mean over tokens instead of by each token's own, when
        the child rotates as many channels by the same base and has as many kv heads and patterns alike.
        """
        if not isinstance(child, Attention):
            return None
        theirs, width = self.specs(ctx), self.head_dim + self.rope_head_dim
        heads = (self.heads,)
        through = ("kv_down.weight", "latent_norm.weight", "latent_norm.eps", "norm.weight")
        rotated = ("q_rope.weight", "k_rope.weight") if self.rope_head_dim else ()
        axes = {name: child.axes[name] for name in ("q.weight", "k.weight", "v.weight", "o.weight")}
        factored = {
            "q.weight": Derived("joined_heads", (*rotated[:1], "q.weight"), heads, axes["q.weight"]),
            "k.weight": Derived(
                "multiplied_out_keys", ("k_up.weight", *through, *rotated[1:]), heads, axes["k.weight"]
            ),
            "v.weight": Derived("multiplied_out", ("v_up.weight", *through), (), axes["v.weight"]),
        }
        sizes = {"kv_heads": self.heads, "group": 1, "q_dim": width, "k_dim": width, "v_dim": self.head_dim}
        mine = child.sizes(child_ctx)
        maps = {
            axis: AxisMap(how="first" if mine[axis] >= size else "largest", size=mine[axis], parent_size=size)
            for axis, size in sizes.items()
        }
        sources = {name: name if name in theirs else None for name in child.specs(child_ctx)}
        return Alignment(
            sources=sources | {name: name for name in factored},
            exact=False,
            note="keys and values multiplied out of the latent, its norm at its mean",
            derived=factored,
            parent_axes={"o.weight": axes["o.weight"]},
            maps=maps,
            scales={**child.norm_scales(self, child_ctx, ctx), "q.weight": math.sqrt(child.head_dim) * self.scale},
            zero=child.zero_init,
        )


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
        return cast(Tensor, self.o(y_BHTE.transpose(1, 2).flatten(2)))

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
        return cast(Tensor, self.o(y_BHTV.transpose(1, 2).flatten(2)))

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
