"""Fast weights that every token writes. B batch, T tokens, D model dim, H heads, E head dim, F features of a key."""

from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from pydantic import PositiveInt

from morphogen.ops.names import MEMORY_CHUNK, MEMORY_FEATURES, MemoryFeature
from morphogen.parts.attention.heads import fewer_heads, more_heads, resized_heads
from morphogen.parts.contract.operator import BlockT, block_operator, operator, pick
from morphogen.parts.contract.part import Context, Cost, Part
from morphogen.parts.contract.tensors import ZEROS, Tensor
from morphogen.parts.contract.widths import Width
from morphogen.parts.memory.readers import plain_heads

if TYPE_CHECKING:
    from torch import nn


class AssocMemory(Part):
    """o(Sᵀ φ(q)) with S ← S + φ(k) ⊗ β (v − Sᵀ φ(k)): each token replaces a share β = σ(w·x) of what its key holds.

    φ is a non-negative feature map, normalised: `elu` is elu(x) + 1, `dpfp` has twice the features. Linear in the
    length, with a memory of fixed size. Ref: the delta rule of arXiv 2102.11174, its 2-norm from 2406.06484.
    """

    slot: ClassVar = "extra"
    neutral_fields: ClassVar = frozenset({"heads"})

    kind: Literal["assoc_memory"] = "assoc_memory"
    heads: PositiveInt = 4
    """Memories side by side."""
    head_dim: PositiveInt = 32
    """Channels of a head's keys, queries and values."""
    feature_map: MemoryFeature = "elu"
    """φ of keys and queries, never negative and normalised: `elu` is elu(x) + 1, `dpfp` has twice the features."""

    def counts_as(self) -> frozenset[str]:
        """A memory."""
        return frozenset({"memory"})

    def tensors(self, ctx: Context) -> dict[str, Tensor]:
        """Queries, keys, values, the share of what a key holds that is replaced, and the output's projection."""
        heads = ("heads", "head_dim")
        return {
            "q.weight": Tensor((heads, "dim")),
            "k.weight": Tensor((heads, "dim")),
            "v.weight": Tensor((heads, "dim")),
            "beta.weight": Tensor(("heads", "dim"), ZEROS),
            "o.weight": Tensor(("dim", heads), fresh_zero=heads, writes=True),
        }

    def sizes(self, ctx: Context) -> dict[str, int]:
        """heads, head_dim and dim."""
        return {"heads": self.heads, "head_dim": self.head_dim, "dim": ctx.dim}

    def resized(self, target: Width, factor: float, ctx: Context) -> "AssocMemory | None":
        """Other heads, or channels of them."""
        return resized_heads(self, target, factor)

    def build(self, ctx: Context) -> "nn.Module":
        """(B, T, D) to (B, T, D)."""
        from morphogen.parts.memory.associative_memory_layer import AssocMemoryBranch

        return AssocMemoryBranch(self, ctx)

    def cost(self, ctx: Context) -> Cost:
        """Projections; within a chunk scores, solve and sums; between chunks what is read and written of S, in fp32."""
        width, keys = self.head_dim, self.head_dim * (2 if self.feature_map == "dpfp" else 1)
        chunk = min(MEMORY_CHUNK, ctx.seq_len)
        projections = 2.0 * ctx.dim * self.heads * (4 * width + 1)
        whole_chunks = -(-ctx.seq_len // chunk) * chunk / ctx.seq_len
        within = chunk * (4.0 * keys + 2.0 * width + (keys + width))
        return Cost(
            flops=projections + self.heads * (within + 6.0 * keys * width) * whole_chunks,
            state_bytes=4.0 * self.heads * keys * width,
        )

    def kept(self, ctx: Context) -> float:
        """Per head, as measured: projections and features with their copies in chunks, two squares of a chunk, a state
        per chunk."""
        width, keys = self.head_dim, self.head_dim * (2 if self.feature_map == "dpfp" else 1)
        chunk = min(MEMORY_CHUNK, ctx.seq_len)
        return self.heads * (8.0 * (keys + width) + 2.0 * chunk + keys * width / chunk)


@block_operator(preserves=True)
def insert_assoc_memory(block: BlockT, ctx: Context, rng: np.random.Generator) -> BlockT | None:
    """Fast weights under the delta rule; their output starts at zero. Ref: arXiv 2102.11174."""
    if any(isinstance(extra, AssocMemory) for extra in block.extras):
        return None
    new = AssocMemory(feature_map=pick(rng, list(MEMORY_FEATURES)), **plain_heads(ctx.dim))
    return block.evolve(extras=(*block.extras, new))


@operator(AssocMemory, preserves=True)
def add_assoc_heads(part: AssocMemory, ctx: Context, rng: np.random.Generator) -> AssocMemory | None:
    """More heads of fast weights; the new ones write zero."""
    return more_heads(part, rng)


@operator(AssocMemory, preserves=False)
def tune_assoc_memory(part: AssocMemory, ctx: Context, rng: np.random.Generator) -> AssocMemory | None:
    """Another feature map, fewer heads, or half or twice the channels of a head."""
    knob = pick(rng, ["feature_map", "heads", "head_dim"])
    if knob == "feature_map":
        return part.evolve(feature_map=pick(rng, [f for f in MEMORY_FEATURES if f != part.feature_map]))
    if knob == "heads":
        return fewer_heads(part, rng)
    return part.evolve(head_dim=pick(rng, [n for n in (part.head_dim // 2, 2 * part.head_dim) if 4 <= n <= 256]))
