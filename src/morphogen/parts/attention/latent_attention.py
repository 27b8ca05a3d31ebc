"""Multi-head latent attention: keys and values of all heads are read from one small latent per token.

B batch, T tokens, S cached and new tokens, D model dim, H heads, E head dim (of unrotated queries and keys, and of
values), R width of the rotated key that heads share, L latent dim
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, PositiveInt

from morphogen.parts.attention.attention import Attention
from morphogen.parts.attention.heads import fewer_heads, more_heads, resized_heads, wider_heads
from morphogen.parts.attention.kv_policy import KVPolicy
from morphogen.parts.attention.selector import Selective
from morphogen.parts.contract.alignment import Alignment, AxisMap, Derived
from morphogen.parts.contract.operator import BlockT, block_operator, operator, pick
from morphogen.parts.contract.part import Context, Cost, NormKind, Part
from morphogen.parts.contract.tensors import ZEROS, Axis, Tensor
from morphogen.parts.contract.widths import Width

if TYPE_CHECKING:
    from torch import nn


class LatentAttention(Selective):
    """softmax((q·k + q_R·k_R) / √(E + R)) v with k and v up-projections of RMSNorm(W x), a latent of `kv_latent_dim`.

    q_R (one per head) and k_R (shared by the heads) carry the position by RoPE; with `rope_head_dim` 0 nothing does.
    Ref: DeepSeek-V2, arXiv 2405.04434, with plain queries.
    """

    slot: ClassVar = "attn"
    neutral_fields: ClassVar = Selective.neutral_fields | {
        *("heads", "head_dim", "kv_latent_dim", "dropout", "kv_policy")
    }
    latent_cache: ClassVar = True

    kind: Literal["MLA"] = "MLA"
    heads: PositiveInt
    """Heads."""
    head_dim: PositiveInt
    """Channels of a head without position, of queries, keys and values."""
    kv_latent_dim: PositiveInt
    """Channels of the latent that keys and values are made of."""
    rope_head_dim: Annotated[int, Field(ge=0, multiple_of=2)]
    """Rotated channels of a head's queries, and of the key that heads share; 0: without positions."""
    rope_theta: Annotated[float, Field(gt=1.0)] = 10_000.0
    """Base of the rotation's wavelengths, in tokens; read unless `rope_head_dim` is 0."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Share of attention weights that a training step drops."""
    kv_policy: KVPolicy = KVPolicy(kind="latent")
    """What a decoder caches: `latent` and `window` the latent and the rotated key, `full` keys and values of every
    head."""

    @property
    def scale(self) -> float:
        """Factor on the dot products of queries and keys."""
        return 1.0 / math.sqrt(self.head_dim + self.rope_head_dim)

    def inert(self) -> frozenset[str]:
        """RoPE's base without rotated channels, and what an unused selector or pattern does not read."""
        return super().inert() | ({"rope_theta"} if self.rope_head_dim == 0 else set())

    def tensors(self, ctx: Context) -> dict[str, Tensor]:
        """Projections down and up; rotated queries and keys where there are rotated channels."""
        rotated = self.rope_head_dim > 0
        return {
            "q.weight": Tensor((("heads", "q_dim"), "dim")),
            **({"q_rope.weight": Tensor((("heads", "rope_dim"), "dim"))} if rotated else {}),
            "kv_down.weight": Tensor(("latent", "dim"), fresh_zero=("latent",)),
            **({"k_rope.weight": Tensor(("rope_dim", "dim"))} if rotated else {}),
            "k_up.weight": Tensor((("heads", "k_dim"), "latent"), fresh_zero=("k_dim",)),
            "v_up.weight": Tensor((("heads", "v_dim"), "latent")),
            "o.weight": Tensor(("dim", ("heads", "v_dim")), fresh_zero=("heads", "v_dim"), writes=True),
            **super().tensors(ctx),
        }

    def norms(self, ctx: Context) -> Mapping[str, tuple[Axis, NormKind]]:
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

    def resized(self, target: Width, factor: float, ctx: Context) -> "LatentAttention | None":
        """Other heads, or channels of them without position."""
        return resized_heads(self, target, factor)

    def build(self, ctx: Context) -> "nn.Module":
        """(B, T, D) to (B, T, D)."""
        from morphogen.parts.attention.latent_attention_layer import LatentAttentionBranch

        return LatentAttentionBranch(self, ctx)

    def kept(self, ctx: Context) -> float:
        """Projections, heads rotated and put together, and what a selector keeps."""
        return super().kept(ctx) + 2.0 * self.heads * self.head_dim + self.selection_kept(self.heads, ctx)

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
        mine = self.tensors(ctx)
        factored = {
            "kv_down.weight": Derived("latent_down", inputs, (rank,), mine["kv_down.weight"].axes),
            "k_up.weight": Derived("latent_keys", inputs, by_head, mine["k_up.weight"].axes),
            "v_up.weight": Derived("latent_values", inputs, by_head, mine["v_up.weight"].axes),
        }
        sources = {name: name if name in theirs else None for name in self.specs(ctx)}
        scales = self.norm_scales(parent, ctx, parent_ctx)
        scales["q.weight"] = 1.0 / (self.scale * math.sqrt(parent.head_dim))
        return Alignment(
            sources=sources | {name: name for name in factored},
            exact=False,
            note=f"keys and values factored through a latent of {self.kv_latent_dim}",
            derived=factored,
            parent_axes={name: mine[name].axes for name in ("q.weight", "o.weight")},
            maps={"latent": AxisMap(how="first", size=self.kv_latent_dim, parent_size=rank)},
            scales=scales,
            zero=self.fresh_zero(ctx),
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
        axes = {name: tensor.axes for name, tensor in child.tensors(child_ctx).items()}
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
            zero=child.fresh_zero(child_ctx),
        )


# --------------------------------------------------------------------------------------------------- operators


#: Latent dims that operators give are multiples of this.
MULTIPLE = 8


@operator(LatentAttention, preserves=True)
def add_mla_heads(part: LatentAttention, ctx: Context, rng: np.random.Generator) -> LatentAttention | None:
    """More heads; the new ones write zero."""
    return more_heads(part, rng)


@operator(LatentAttention, preserves=False)
def remove_mla_heads(part: LatentAttention, ctx: Context, rng: np.random.Generator) -> LatentAttention | None:
    """Fewer heads; those of largest norm stay."""
    return fewer_heads(part, rng)


@operator(LatentAttention, preserves=True)
def widen_mla_latent(part: LatentAttention, ctx: Context, rng: np.random.Generator) -> LatentAttention | None:
    """A larger latent; its new channels start at zero, and the norm makes up for them."""
    return part.evolve(kv_latent_dim=part.kv_latent_dim + max(MULTIPLE, part.kv_latent_dim // 2))


@operator(LatentAttention, preserves=False)
def narrow_mla_latent(part: LatentAttention, ctx: Context, rng: np.random.Generator) -> LatentAttention | None:
    """A smaller latent; its channels of largest norm stay."""
    return part.evolve(kv_latent_dim=max(MULTIPLE, part.kv_latent_dim * 2 // 3)) if part.kv_latent_dim > 8 else None


@operator(LatentAttention, preserves=True)
def widen_mla_head_dim(part: LatentAttention, ctx: Context, rng: np.random.Generator) -> LatentAttention | None:
    """Twice the unrotated channels and values of a head, queries rescaled; the new ones add nothing."""
    return wider_heads(part)


@operator(LatentAttention, preserves=False)
def narrow_mla_head_dim(part: LatentAttention, ctx: Context, rng: np.random.Generator) -> LatentAttention | None:
    """Half the unrotated channels and values of a head; those of largest norm stay."""
    return part.evolve(head_dim=part.head_dim // 2) if part.head_dim >= 8 else None


@operator(LatentAttention, preserves=lambda part, ctx: part.selector == "none")
def add_mla_rope(part: LatentAttention, ctx: Context, rng: np.random.Generator) -> LatentAttention | None:
    """A rotated head, where there is none; its key starts at zero. A selector is rotated too, which is lossy."""
    return part.evolve(rope_head_dim=pick(rng, [8, 16, 32])) if part.rope_head_dim == 0 else None


@operator(LatentAttention, preserves=False)
def tune_mla_rope(part: LatentAttention, ctx: Context, rng: np.random.Generator) -> LatentAttention | None:
    """Another RoPE base from 1e3 to 1e6, or half, twice or none of the rotated channels."""
    if part.rope_head_dim == 0:
        return None
    if rng.random() < 0.5:
        return part.evolve(rope_theta=pick(rng, [t for t in (1e3, 1e4, 1e5, 1e6) if t != part.rope_theta]))
    return part.evolve(rope_head_dim=pick(rng, [0, part.rope_head_dim // 4 * 2, 2 * part.rope_head_dim]))


@block_operator(preserves=False)
def toggle_mla_attention(block: BlockT, ctx: Context, rng: np.random.Generator) -> BlockT | None:
    """Attention through a latent by SVD of its keys and values, or back by multiplying out."""
    part = block.attn
    if isinstance(part, LatentAttention):
        return block.evolve(attn=_plain(part))
    return block.evolve(attn=_latent(part, rng)) if isinstance(part, Attention) else None


def _latent(part: Attention, rng: np.random.Generator) -> LatentAttention:
    """A quarter or half as many entries a token as keys and values have, half of head_dim rotated if any was."""
    entries = 2 * part.kv_heads * part.head_dim
    return LatentAttention(
        **_shared(part),
        heads=part.heads,
        head_dim=part.head_dim,
        kv_latent_dim=max(MULTIPLE, entries // int(rng.choice([2, 4]))),
        rope_head_dim=0 if part.rope == "none" else max(2, part.head_dim // 4 * 2),
        rope_theta=part.rope_theta,
        dropout=part.dropout,
    )


def _plain(part: LatentAttention) -> Attention:
    """MHA whose heads are as wide as rotated and unrotated channels together."""
    width = part.head_dim + part.rope_head_dim
    return Attention(
        **_shared(part),
        kind="MHA",
        heads=part.heads,
        head_dim=width,
        rope="partial" if part.rope_head_dim else "none",
        rope_factor=(part.rope_head_dim + 0.5) / width if part.rope_head_dim else None,  # rounded down to pairs
        rope_theta=part.rope_theta,
        dropout=part.dropout,
    )


def _shared(part: Selective) -> dict[str, Any]:
    """Sparsity and selector."""
    return {name: value for name, value in part if name in Selective.model_fields and name != "kv_policy"}
