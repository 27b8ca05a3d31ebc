"""Softmax attention with multi-, grouped- or single-head keys and values, and its sparse patterns.

B batch, T tokens, D model dim, K kv heads, G query heads per kv head, H = K·G query heads, E head dim.
"""

import itertools
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

import numpy as np
from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from morphogen.ops.patterns import alibi_slopes
from morphogen.parts.attention.heads import (
    BIASES,
    GROUPED,
    Heads,
    check_groups,
    grouped_sizes,
    resized_heads,
    wider_heads,
)
from morphogen.parts.attention.selector import Selective
from morphogen.parts.contract.alignment import Alignment, AxisMap
from morphogen.parts.contract.operator import operator, pick
from morphogen.parts.contract.part import Context, Cost, NormKind, Part
from morphogen.parts.contract.tensors import ZEROS, Axes, Axis, Init, Tensor
from morphogen.parts.contract.widths import Width, times

if TYPE_CHECKING:
    from torch import nn

Rope = Literal["none", "standard", "yarn", "partial"]
QK_NORMS: Mapping[str, NormKind] = {"rms": "rmsnorm", "layer": "layernorm"}
#: Where a gate may stand: its module, and the heads' channels that it gates.
GATES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "output": ("out_gate", ("kv_heads", "group", "v_dim")),
    "value": ("value_gate", ("kv_heads", "v_dim")),
}


class Attention(Selective):
    """softmax(q kᵀ / √E) v over the keys that `sparsity` lets a query see, always causal.

    MHA: arXiv 1706.03762, MQA: 1911.02150, GQA: 2305.13245, RoPE: 2104.09864, YaRN: 2309.00071, ALiBi: 2108.12409,
    QK-norm: 2010.04245, softcap: 2408.00118, gating: 2505.06708.
    """

    slot: ClassVar = "attn"
    neutral_fields: ClassVar = Selective.neutral_fields | {
        *("kind", "heads", "head_dim", "kv_groups", "dropout", "kv_policy", "bias")
    }
    later: ClassVar = frozenset({"bias"})

    kind: Literal["MHA", "GQA", "MQA"]
    """Every query head with its own keys and values (MHA), groups that share them (GQA), or one for all (MQA)."""
    heads: Heads
    """Query heads."""
    head_dim: PositiveInt
    """Channels of a head; RoPE needs an even number."""
    kv_groups: PositiveInt = 1
    """Query heads per key and value head: 1 with MHA, `heads` with MQA (and the default there)."""
    rope: Rope = "standard"
    """Positions by rotation: none, all channels, all with YaRN's frequencies for a longer context, or some channels."""
    rope_theta: Annotated[float, Field(gt=1.0)] = 10_000.0
    """Base of the rotation's wavelengths, in tokens; read unless `rope` is none."""
    rope_factor: PositiveFloat | None = None
    """With `standard` what positions are divided by (null: 1, interpolation: 2306.15595; a selector's too), with
    `partial` the share of channels rotated (null: 0.5), with `yarn` how many times longer than `rope_context` (null:
    4)."""
    rope_context: PositiveInt = 2048
    """Tokens of context that the frequencies were trained for; read with `rope: yarn`."""
    alibi: bool = False
    """Whether scores fall with distance, by a slope of each head."""
    qk_norm: Literal["none", "rms", "layer"] = "none"
    """Norm of every head's queries and keys."""
    softcap: PositiveFloat | None = None
    """Scores stay within this of 0, by tanh; null leaves them as they are."""
    bias: Literal["none", "qkv", "all"] = "none"
    """Which projections have a bias: none, those of queries, keys and values, or these and the output's."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Share of attention weights that a training step drops."""
    gating_pos: Literal["none", "output", "value"] = "none"
    """What a learned gate multiplies: nothing, the heads' output, or their values."""
    gating_op: Literal["dense", "diagonal"] = "dense"
    """2·sigmoid(W x) of the input, or 2·sigmoid(w ⊙ y) of what it multiplies; read unless `gating_pos` is none."""

    @model_validator(mode="before")
    @classmethod
    def _single_kv_head(cls, data: object) -> object:
        if isinstance(data, Mapping) and data.get("kind", data.get("type")) == "MQA" and "kv_groups" not in data:
            return {**data, "kv_groups": data.get("heads")}
        return data

    @model_validator(mode="after")
    def _possible(self) -> Self:
        check_groups(self)
        if self.kind == "MHA" and self.kv_groups != 1:
            raise ValueError(f"kv_groups is {self.kv_groups}, but MHA has one query head per kv head; use kind GQA")
        if self.kind == "MQA" and self.kv_groups != self.heads:
            raise ValueError(f"kv_groups is {self.kv_groups}, but MQA has one kv head: expected {self.heads}")
        if self.rope != "none" and (self.rotated_dims % 2 or self.rotated_dims > self.head_dim):
            raise ValueError(
                f"rope {self.rope} rotates pairs of channels, which head_dim {self.head_dim} does not hold"
            )
        if self.rope == "partial" and self.rope_scale > 1:
            raise ValueError(f"rope_factor is {self.rope_factor}, expected a share of at most 1 with partial")
        if self.rope in ("standard", "yarn") and self.rope_scale < 1:
            raise ValueError(f"rope_factor is {self.rope_factor}, expected at least 1 with {self.rope}")
        return self

    @property
    def kv_heads(self) -> int:
        """Key and value heads."""
        return self.heads // self.kv_groups

    @property
    def rope_scale(self) -> float:
        """`rope_factor` with its default, which depends on `rope`."""
        return self.rope_factor or {"partial": 0.5, "yarn": 4.0}.get(self.rope, 1.0)

    @property
    def rotated_dims(self) -> int:
        """Channels of a head that RoPE rotates."""
        if self.rope == "partial":
            return 2 * max(1, int(self.rope_scale * self.head_dim) // 2)
        return self.head_dim

    def within(self, ctx: Context) -> Self | None:
        """Groups of heads are told apart by their size, not their name; kinds of RoPE by what they rotate."""
        changed: dict[str, object] = {"kind": "GQA"}
        if self.rope == "partial" and self.rotated_dims < self.head_dim:
            changed["rope_factor"] = (self.rotated_dims + 0.5) / self.head_dim  # rounded down to pairs
        elif self.rope == "partial" or (self.rope == "yarn" and self.rope_scale == 1.0):
            changed |= {"rope": "standard", "rope_factor": None}
        return super(Attention, self.model_copy(update=changed)).within(ctx)

    def inert(self) -> frozenset[str]:
        """Knobs of other patterns, of an unused selector, of an unused RoPE and of an unused gate."""
        unused = super().inert()
        if self.rope == "none":
            unused |= {"rope_theta"}
        if self.rope == "none" or (self.rope == "standard" and self.rope_scale == 1.0):
            unused |= {"rope_factor"}
        if self.rope != "yarn":
            unused |= {"rope_context"}
        if self.gating_pos == "none":
            unused |= {"gating_op"}
        return unused

    def tensors(self, ctx: Context) -> dict[str, Tensor]:
        """The grouped heads', the gate in use, ALiBi's slopes (constants of their heads, carried like weights)."""
        biases = {"none": 0, "qkv": 3, "all": 4}[self.bias]
        table = {**GROUPED, **dict(itertools.islice(BIASES.items(), biases))}
        if self.gating_pos != "none":
            gate, heads = GATES[self.gating_pos]
            if self.gating_op == "dense":
                table[f"{gate}.weight"] = Tensor((heads, "dim"), ZEROS)
            else:
                table[f"{gate}.diagonal"] = Tensor((heads,), ZEROS)
        if self.alibi:
            values = Init("vector", tuple(alibi_slopes(self.heads)))
            table["slopes"] = Tensor((("kv_heads", "group"),), values, trained=False)
        return table | super().tensors(ctx)

    def norms(self, ctx: Context) -> Mapping[str, tuple[Axis, NormKind]]:
        """The branch's norm, and those of queries and keys."""
        norms = dict(super().norms(ctx))
        if self.qk_norm != "none":
            kind = QK_NORMS[self.qk_norm]
            norms |= {"q_norm": ("q_dim", kind), "k_norm": ("k_dim", kind)}
        return norms

    def sizes(self, ctx: Context) -> dict[str, int]:
        """kv_heads, group, dim, and head_dim once for queries, keys and values: they grow by different rules."""
        return {**grouped_sizes(self, self.head_dim), "heads": self.heads, **super().sizes(ctx)}

    def resized(self, target: Width, factor: float, ctx: Context) -> "Attention | None":
        """Whole groups of heads, of MQA query heads; or wider heads, in pairs of channels under RoPE."""
        if target == "heads" and self.kind == "MQA":
            heads = times(self.heads, factor)
            return self.evolve(heads=heads, kv_groups=heads)
        return resized_heads(self, target, factor, self.kv_groups, 1 if self.rope == "none" else 2)

    def build(self, ctx: Context) -> "nn.Module":
        """(B, T, D) to (B, T, D)."""
        from morphogen.parts.attention.attention_layer import AttentionBranch

        return AttentionBranch(self, ctx)

    def kept(self, ctx: Context) -> float:
        """Projections; normalised queries and keys; what a selector keeps. Scores are computed again."""
        normed = (self.heads + self.heads // self.kv_groups) * self.head_dim if self.qk_norm != "none" else 0
        return super().kept(ctx) + normed + self.selection_kept(self.heads, ctx)

    def cost(self, ctx: Context) -> Cost:
        """Projections, and scores and sums over the keys that queries see on average."""
        projections = ctx.dim * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        if self.gating_pos != "none" and self.gating_op == "dense":
            projections += ctx.dim * self.head_dim * (self.heads if self.gating_pos == "output" else self.kv_heads)
        keys = self.keys_read(ctx)
        cached = self.kv_policy.cost(self.pattern, ctx.seq_len, 2 * self.kv_heads, self.head_dim)
        return (
            Cost(flops=2.0 * projections + 4.0 * self.heads * self.head_dim * keys) + cached + self.selection_cost(ctx)
        )

    def align(self, parent: Part, ctx: Context, parent_ctx: Context) -> Alignment | None:
        """Beyond the default: kv heads that split or merge, and head_dim, which changes the softmax scale and RoPE."""
        plain = super().align(parent, ctx, parent_ctx)
        if plain is None or not isinstance(parent, Attention):
            return plain or self.in_common(parent, ctx, parent_ctx)
        if not plain.exact and self._only_gate_added(parent):
            plain = replace(plain, exact=True, note="")
        plain = self._with_kv_heads(plain, parent, ctx)
        if self.alibi and parent.alibi and self.heads < parent.heads:
            plain = plain.lossy("heads removed")
        return self._with_head_dim(plain, parent)

    def _with_kv_heads(self, plain: Alignment, parent: "Attention", ctx: Context) -> Alignment:
        """The same query heads over other kv heads: these split into copies, or merge into means."""
        if self.kv_heads != parent.kv_heads and self.heads == parent.heads:
            axes = {name: _by_head(tensor.axes) for name, tensor in self.tensors(ctx).items()}
            take = _regroup(self.kv_heads, parent.kv_heads)
            regrouped = replace(plain, axes=axes, parent_axes=axes, maps={**plain.maps, "kv_heads": take})
            return regrouped.lossy("kv heads merged by mean") if take.how == "mean" else regrouped
        if self.kv_heads % parent.kv_heads == 0 and self.kv_groups < parent.kv_groups:
            return plain.lossy("heads and kv_groups changed together")
        return plain

    def _with_head_dim(self, plain: Alignment, parent: "Attention") -> Alignment:
        """Wider or narrower heads change the softmax scale, for which queries make up, and RoPE's frequencies."""
        ratio = self.head_dim / parent.head_dim
        if ratio == 1:
            return plain
        if self.rope != "none":
            plain = plain.lossy("RoPE frequencies changed with head_dim")
        plain = replace(plain, exact=plain.exact and ratio > 1)
        if self.qk_norm == "none":
            return replace(plain, scales={**plain.scales, **dict.fromkeys(("q.weight", "q.bias"), math.sqrt(ratio))})
        return self._with_normed_heads(plain, parent, ratio)

    def _with_normed_heads(self, plain: Alignment, parent: "Attention", ratio: float) -> Alignment:
        """Norms absorb what scales q, so that the gain of its norm is scaled. Queries are padded, and keys repeat, so
        that their norm is unchanged."""
        root = math.sqrt(ratio)
        scales = {**plain.scales, "q_norm.weight": plain.scales.get("q_norm.weight", 1.0) * root, "q_norm.bias": root}
        plain = replace(plain, exact=plain.exact and ratio == int(ratio), scales=scales)
        if ratio < 1:
            return plain
        repeat = tuple(i % parent.head_dim for i in range(self.head_dim))
        take = AxisMap(how="index", size=self.head_dim, parent_size=parent.head_dim, index=repeat)
        padded = dict.fromkeys(("q.weight", "q.bias"), ("q_dim",))
        return replace(
            plain,
            maps={**plain.maps, "k_dim": take},
            scales={name: x for name, x in scales.items() if name not in ("k_norm.weight", "k_norm.eps")},
            zero={name: axes for name, axes in plain.zero.items() if name != "k.weight"}
            | (padded if self.qk_norm == "rms" else {}),
            mean=padded if self.qk_norm == "layer" else {},
        )

    def _only_gate_added(self, parent: "Attention") -> bool:
        """A new gate starts at 2σ(0) = 1 and so changes nothing."""
        ungated = self.evolve(gating_pos="none", gating_op=parent.gating_op) or self
        return (
            parent.gating_pos == "none"
            and self.gating_pos != "none"
            and all(
                getattr(ungated, name) == getattr(parent, name)
                for name in type(self).model_fields
                if name not in self.neutral_fields | (ungated.inert() & parent.inert())
            )
        )


def _by_head(axes: Axes) -> Axes:
    """The same axes with (kv_heads, group) as one, for parts with equal query heads in other groups."""
    out: list[str | tuple[str, ...]] = []
    for axis in axes:
        if isinstance(axis, tuple) and axis[:2] == ("kv_heads", "group"):
            out.append(("heads", *axis[2:]))
        else:
            out.append(axis)
    return tuple(out)


def _regroup(size: int, parent_size: int) -> AxisMap:
    """kv heads split by repetition, or merged by the mean; any other change keeps the nearest."""
    if size % parent_size == 0:
        index = tuple(i * parent_size // size for i in range(size))
        return AxisMap(how="index", size=size, parent_size=parent_size, index=index)
    bounds = [round(i * parent_size / size) for i in range(size + 1)]
    groups = tuple(tuple(range(a, max(b, a + 1))) for a, b in itertools.pairwise(bounds))
    return AxisMap(how="mean", size=size, parent_size=parent_size, groups=groups)


# --------------------------------------------------------------------------------------------------- operators


@operator(Attention, preserves=True)
def add_heads(part: Attention, ctx: Context, rng: np.random.Generator) -> Attention | None:
    """More kv heads, each with its query heads; the new ones write zero."""
    if part.kind == "MQA":
        return None
    return part.evolve(heads=part.heads + part.kv_groups * int(rng.integers(1, max(2, part.kv_heads + 1))))


@operator(Attention, preserves=False)
def remove_heads(part: Attention, ctx: Context, rng: np.random.Generator) -> Attention | None:
    """Fewer kv heads with their query heads; those of largest norm stay."""
    if part.kind == "MQA" or part.kv_heads < 2:
        return None
    return part.evolve(heads=part.kv_groups * int(rng.integers(1, part.kv_heads)))


@operator(Attention, preserves=True)
def add_query_heads(part: Attention, ctx: Context, rng: np.random.Generator) -> Attention | None:
    """Double the query heads per kv head; the new ones write zero. Ref: arXiv 2305.13245."""
    kind = "GQA" if part.kind == "MHA" else part.kind
    return part.evolve(kind=kind, heads=2 * part.heads, kv_groups=2 * part.kv_groups)


@operator(Attention, preserves=True)
def split_kv(part: Attention, ctx: Context, rng: np.random.Generator) -> Attention | None:
    """Twice the kv heads, each a copy, for the same query heads."""
    if part.kv_groups % 2:
        return None
    return part.evolve(kind="GQA", kv_groups=part.kv_groups // 2)


@operator(Attention, preserves=False)
def make_gqa(part: Attention, ctx: Context, rng: np.random.Generator) -> Attention | None:
    """Half the kv heads: neighbours merge into their mean. Ref: arXiv 2305.13245."""
    if part.kv_heads % 2:
        return None
    groups = 2 * part.kv_groups
    return part.evolve(kind="MQA" if groups == part.heads and part.kind == "MQA" else "GQA", kv_groups=groups)


@operator(Attention, preserves=lambda part, ctx: part.rope == "none")
def widen_head_dim(part: Attention, ctx: Context, rng: np.random.Generator) -> Attention | None:
    """Twice the head dim, queries rescaled; under RoPE the frequencies change, so exact only without."""
    return wider_heads(part)


@operator(Attention, preserves=False)
def narrow_head_dim(part: Attention, ctx: Context, rng: np.random.Generator) -> Attention | None:
    """Half the head dim; the channels of largest norm stay."""
    return part.evolve(head_dim=part.head_dim // 2) if part.head_dim % 4 == 0 and part.head_dim > 8 else None


@operator(Attention, preserves=False)
def tune_rope(part: Attention, ctx: Context, rng: np.random.Generator) -> Attention | None:
    """Another RoPE base, from 1e3 to 1e6."""
    if part.rope == "none":
        return None
    return part.evolve(rope_theta=pick(rng, [t for t in (1e3, 1e4, 1e5, 1e6) if t != part.rope_theta]))


@operator(Attention, preserves=False)
def change_rope(part: Attention, ctx: Context, rng: np.random.Generator) -> Attention | None:
    """Another position encoding: none, standard or partial RoPE."""
    rope = pick(rng, [r for r in ("none", "standard", "partial") if r != part.rope])
    return part.evolve(rope=rope, rope_factor=None)


@operator(Attention, preserves=False)
def toggle_alibi(part: Attention, ctx: Context, rng: np.random.Generator) -> Attention | None:
    """Linear position biases on or off. Ref: arXiv 2108.12409."""
    return part.evolve(alibi=not part.alibi)


@operator(Attention, preserves=False)
def toggle_qk_norm(part: Attention, ctx: Context, rng: np.random.Generator) -> Attention | None:
    """Another normalisation of queries and keys: none, rms or layer."""
    return part.evolve(qk_norm=pick(rng, [n for n in ("none", "rms", "layer") if n != part.qk_norm]))


@operator(Attention, preserves=False)
def tune_softcap(part: Attention, ctx: Context, rng: np.random.Generator) -> Attention | None:
    """Soft limit of the attention logits: none, 20 or 50."""
    return part.evolve(softcap=pick(rng, [c for c in (None, 20.0, 50.0) if c != part.softcap]))


@operator(Attention, preserves=lambda part, ctx: part.gating_pos == "none")
def tune_attn_gating(part: Attention, ctx: Context, rng: np.random.Generator) -> Attention | None:
    """A gate on the output or the values; a new one starts open. Taking one away, or another kind, is lossy."""
    if part.gating_pos == "none":
        return part.evolve(gating_pos=pick(rng, ["output", "value"]), gating_op=pick(rng, ["dense", "diagonal"]))
    return part.evolve(gating_pos="none")
