"""Linear attention: a matrix per head that past keys and values are written into, in place of a cache.

B batch, T tokens, D model dim, K kv heads, G query heads per kv head, H = K·G query heads, E width of q and k per head,
V width of v per head
"""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from pydantic import PositiveInt, model_validator

from morphogen.ops.names import LINEAR_CHUNK, LINEAR_FEATURES, POSITIVE, LinearFeature, OpName
from morphogen.parts.attention.attention import Attention
from morphogen.parts.attention.heads import GROUPED, Heads, check_groups, grouped_sizes, resized_heads
from morphogen.parts.contract.alignment import Alignment
from morphogen.parts.contract.operator import BlockT, block_operator, operator, pick
from morphogen.parts.contract.part import Context, Cost, NormKind, Part
from morphogen.parts.contract.tensors import ZEROS, Axis, Init, Tensor
from morphogen.parts.contract.widths import Width, times

if TYPE_CHECKING:
    from torch import nn

Decay = Literal["none", "retention", "gated", "delta"]
#: Copies of its keys and values, and weights per token of a chunk, that a head keeps for the backward pass.
KEPT: Mapping[Decay, tuple[float, float]] = {
    "none": (4.5, 1.0),
    "retention": (4.5, 1.25),
    "gated": (6.0, 4.0),
    "delta": (9.5, 6.0),
}
DECAYS: tuple[Decay, ...] = ("none", "retention", "gated", "delta")
#: Share of a state that retention forgets per token, from the first head to the last (the published code).
RETENTION_FORGETS = (1 / 32, 1 / 512)
#: What data-dependent decays start at, per token, from the first head to the last (as in Mamba-2 and gated delta nets).
FIRST_RATES = (0.1, 0.001)


class LinearAttention(Part):
    """S_t = α_t S_{t−1} + φ(k_t) v_tᵀ, y_t = S_tᵀ φ(q_t): the same cost per token at any length."""

    slot: ClassVar = "attn"
    neutral_fields: ClassVar = frozenset({"heads", "head_dim", "value_dim", "kv_groups"})

    kind: Literal["LINEAR"] = "LINEAR"
    heads: Heads
    """Query heads."""
    head_dim: PositiveInt
    """Channels of a head's queries and keys."""
    value_dim: PositiveInt | None = None
    """Channels of a head's values; null: `head_dim`."""
    kv_groups: PositiveInt = 1
    """Query heads per key and value head; decays and states are of the latter."""
    feature_map: LinearFeature = "elu"
    """φ. Without decay and where never negative (elu, relu, softmax) sums are divided by those of the weights;
    otherwise q is divided by √E and the heads' outputs are RMS-normalised."""
    decay: Decay = "none"
    """How a state forgets: not at all (2006.16236); `retention`, by a constant of the head (2307.08621); `gated`, to
    the share exp(-exp(A) softplus(a·x + b)), one number a head where 2312.06635 has one per key channel; `delta`,
    likewise, and only what is not held yet is written, at a learned rate (2412.06464), q and k of unit length."""
    gate: Literal["none", "swish"] = "none"
    """`swish` multiplies the outputs by silu(W x)."""

    @model_validator(mode="after")
    def _possible(self) -> "LinearAttention":
        check_groups(self)
        return self

    @property
    def kv_heads(self) -> int:
        """Key and value heads."""
        return self.heads // self.kv_groups

    @property
    def values(self) -> int:
        """Width of a head's values."""
        return self.value_dim or self.head_dim

    @property
    def normalised(self) -> bool:
        """Whether outputs are weighted means of values."""
        return self.decay == "none" and self.feature_map in POSITIVE

    def inert(self) -> frozenset[str]:
        """A width of values that is the default."""
        return frozenset({"value_dim"}) if self.values == self.head_dim else frozenset()

    def op(self) -> OpName:
        """A sum over all tokens, or the delta rule."""
        return "gated_delta" if self.decay == "delta" else "linear_attention"

    def unread(self) -> frozenset[str]:
        """A width of values that is the default has been read."""
        return self.inert() - {"value_dim"}

    def tensors(self, ctx: Context) -> dict[str, Tensor]:
        """The grouped heads', the gate, the decay's; decays start spread out over the heads, from short to long."""
        table = dict(GROUPED)
        if self.gate == "swish":
            table["gate.weight"] = Tensor((("kv_heads", "group", "v_dim"), "dim"))
        if self.decay in ("gated", "delta"):
            biases = (math.log(math.expm1(rate)) for rate in _spread(*FIRST_RATES, self.kv_heads))
            table["alpha.weight"] = Tensor(("kv_heads", "dim"))
            table["alpha_bias"] = Tensor(("kv_heads",), Init("vector", tuple(biases)))
            table["alpha_log"] = Tensor(("kv_heads",), ZEROS)
        if self.decay == "delta":
            table["beta.weight"] = Tensor(("kv_heads", "dim"))
        if self.decay == "retention":
            slopes = (-math.log1p(-forgets) for forgets in _spread(*RETENTION_FORGETS, self.kv_heads))
            table["slopes"] = Tensor(("kv_heads",), Init("vector", tuple(slopes)), trained=False)
        return table

    def norms(self, ctx: Context) -> Mapping[str, tuple[Axis, NormKind]]:
        """The branch's norm, and that of a head's output where no normaliser stands."""
        norms: dict[str, tuple[Axis, NormKind]] = {"norm": ("dim", ctx.norm)}
        return norms if self.normalised else norms | {"out_norm": ("v_dim", "rmsnorm")}

    def sizes(self, ctx: Context) -> dict[str, int]:
        """kv_heads, group, dim, and the widths of queries and keys, and of values."""
        return {**grouped_sizes(self, self.values), "dim": ctx.dim}

    def resized(self, target: Width, factor: float, ctx: Context) -> "LinearAttention | None":
        """Whole groups of heads; or channels of heads, those of values among them."""
        if target == "head_dim" and self.value_dim is not None:
            return self.evolve(head_dim=times(self.head_dim, factor), value_dim=times(self.value_dim, factor))
        return resized_heads(self, target, factor, self.kv_groups)

    def build(self, ctx: Context) -> "nn.Module":
        """(B, T, D) to (B, T, D)."""
        from morphogen.parts.attention.linear_attention_layer import LinearAttentionBranch

        return LinearAttentionBranch(self, ctx)

    def cost(self, ctx: Context) -> Cost:
        """Projections; within a chunk scores and sums of its tokens, and from chunk to chunk reading and writing S."""
        heads, kv, e, v = self.heads, self.kv_heads, self.head_dim, self.values + self.normalised
        chunk = min(LINEAR_CHUNK, ctx.seq_len)
        whole_chunks = -(-ctx.seq_len // chunk) * chunk / ctx.seq_len
        rates = {"none": 0, "retention": 0, "gated": 1, "delta": 2}[self.decay]
        gates = heads * self.values if self.gate == "swish" else 0
        projections = ctx.dim * ((heads + kv) * (e + self.values) + kv * rates + gates)
        mixing: float = heads * (chunk * (e + v) + e * v) + kv * e * v
        if self.decay == "delta":
            mixing += kv * (chunk * e + chunk * (e + v) / 2 + e * v)
        return Cost(flops=2.0 * (projections + mixing * whole_chunks), state_bytes=4.0 * kv * e * v)

    def kept(self, ctx: Context) -> float:
        """Per head: projections, their features, and copies of both in chunks; what passes within a chunk; a state per
        chunk. Decays weigh each of them again, and the delta rule solves within chunks. (Counts of `KEPT`: measured.)
        """
        copies, weights = KEPT[self.decay]
        chunk = min(LINEAR_CHUNK, ctx.seq_len)
        keys, values = self.head_dim, self.values
        gate = 2.0 * values if self.gate == "swish" else 0.0
        return self.heads * (copies * (keys + values) + weights * chunk + keys * values / chunk + 4.0 + gate)

    def align(self, parent: Part, ctx: Context, parent_ctx: Context) -> Alignment | None:
        """Beyond the default: new value channels under an output norm are silent, and more key channels rescale q."""
        plain = super().align(parent, ctx, parent_ctx)
        if plain is None or not isinstance(parent, LinearAttention):
            return plain or self.in_common(parent, ctx, parent_ctx)
        zero, scales, exact, note = dict(plain.zero), dict(plain.scales), plain.exact, plain.note
        if not self.normalised:
            zero |= {"o.weight": ("kv_heads", "group"), "v.weight": ("v_dim",)}
        ratio = self.head_dim / parent.head_dim
        if ratio != 1:
            # the other maps make something of a zero key, or pass no gradient there; unit length sees all channels
            exact = exact and ratio > 1 and self.grows_keys
            note = note or f"head_dim {parent.head_dim} became {self.head_dim}"
            if not self.normalised and self.decay != "delta":
                scales["q.weight"] = math.sqrt(ratio)
        return Alignment(
            sources=plain.sources, exact=exact, note="" if exact else note, scales=scales, zero=zero, init=plain.init
        )

    @property
    def grows_keys(self) -> bool:
        """Whether more key channels can leave the function as it is."""
        return self.feature_map == "identity" and self.decay != "delta"


def _spread(first: float, last: float, count: int) -> list[float]:
    """`count` numbers from `first` to `last` in equal ratios; the first alone when one."""
    return [float(x) for x in np.geomspace(first, last, count)]


@block_operator(preserves=True)
def insert_linear_attention(block: BlockT, ctx: Context, rng: np.random.Generator) -> BlockT | None:
    """Linear attention in a block without attention; its output starts at zero."""
    if block.attn is not None:
        return None
    head_dim = next((size for size in (32, 16) if ctx.dim >= 2 * size), 8)
    heads = max(1, ctx.dim // head_dim)
    return block.evolve(attn=LinearAttention(heads=heads, head_dim=head_dim, decay=pick(rng, DECAYS)))


@block_operator(preserves=False)
def toggle_linear_attention(block: BlockT, ctx: Context, rng: np.random.Generator) -> BlockT | None:
    """Softmax attention becomes linear, or the other way round; q, k, v and o are carried. Ref: arXiv 2103.13076."""
    old = block.attn
    if isinstance(old, Attention):
        shape = {"heads": old.heads, "head_dim": old.head_dim, "kv_groups": old.kv_groups}
        return block.evolve(attn=LinearAttention(**shape, decay=pick(rng, DECAYS)))
    if isinstance(old, LinearAttention):
        head_dim = max(2, old.head_dim // 2 * 2)  # RoPE turns pairs
        return block.evolve(attn=Attention(kind="GQA", heads=old.heads, head_dim=head_dim, kv_groups=old.kv_groups))
    return None


@operator(LinearAttention, preserves=True)
def add_linear_heads(part: LinearAttention, ctx: Context, rng: np.random.Generator) -> LinearAttention | None:
    """More heads of linear attention; the new ones write zero."""
    return part.evolve(heads=part.heads + part.kv_groups * int(rng.integers(1, part.kv_heads + 1)))


@operator(LinearAttention, preserves=False)
def remove_linear_heads(part: LinearAttention, ctx: Context, rng: np.random.Generator) -> LinearAttention | None:
    """Fewer heads of linear attention; those of largest norm stay."""
    return part.evolve(heads=part.kv_groups * int(rng.integers(1, part.kv_heads))) if part.kv_heads > 1 else None


@operator(LinearAttention, preserves=True)
def widen_linear_values(part: LinearAttention, ctx: Context, rng: np.random.Generator) -> LinearAttention | None:
    """Values half as wide again or twice: a larger state; the new channels start silent."""
    wider = max(part.values + 1, int(part.values * float(rng.choice([1.5, 2.0]))))
    return part.evolve(value_dim=wider) if wider <= 512 else None


@operator(LinearAttention, preserves=False)
def narrow_linear_values(part: LinearAttention, ctx: Context, rng: np.random.Generator) -> LinearAttention | None:
    """Values half as wide; the channels of largest norm stay."""
    return part.evolve(value_dim=part.values // 2) if part.values > 1 else None


@operator(LinearAttention, preserves=lambda part, ctx: part.grows_keys)
def widen_linear_keys(part: LinearAttention, ctx: Context, rng: np.random.Generator) -> LinearAttention | None:
    """Keys twice as wide: a larger state; exact for the identity feature map without the delta rule."""
    return part.evolve(head_dim=2 * part.head_dim, value_dim=part.values) if part.head_dim <= 128 else None


@operator(LinearAttention, preserves=False)
def change_feature_map(part: LinearAttention, ctx: Context, rng: np.random.Generator) -> LinearAttention | None:
    """Another feature map of linear attention."""
    return part.evolve(feature_map=pick(rng, [name for name in LINEAR_FEATURES if name != part.feature_map]))


@operator(LinearAttention, preserves=False)
def change_decay(part: LinearAttention, ctx: Context, rng: np.random.Generator) -> LinearAttention | None:
    """Another way of forgetting: none, retention, gated, or the delta rule."""
    return part.evolve(decay=pick(rng, [decay for decay in DECAYS if decay != part.decay]))


@operator(LinearAttention, preserves=False)
def toggle_linear_gate(part: LinearAttention, ctx: Context, rng: np.random.Generator) -> LinearAttention | None:
    """A swish gate on the output of linear attention, put in or taken away."""
    return part.evolve(gate="swish" if part.gate == "none" else "none")
