"""Reading the recent past by chunks. B batch, T tokens, D model dim, S chunks."""

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Literal, Self

import numpy as np
from pydantic import Field, PositiveInt

from morphogen.ops.slots import Aggregator, Slots
from morphogen.parts.contract.alignment import Alignment
from morphogen.parts.contract.operator import BlockT, block_operator, operator, pick
from morphogen.parts.contract.part import Context, Part
from morphogen.parts.contract.tensors import ZEROS, Init, Tensor
from morphogen.parts.memory.readers import SlotReader, plain_heads

if TYPE_CHECKING:
    from torch import nn

AGGREGATORS: tuple[Aggregator, ...] = ("mean", "attention", "gate")


class Retro(SlotReader):
    """tanh(g) · o(softmax(q kᵀ / √E) v): a token reads one slot for each of the last `memory_tokens` chunks before its
    own, by cross-attention. Linear in the length, with a memory of fixed size.

    Chunked cross-attention after RETRO, arXiv 2112.04426, its neighbours being the sequence's own past; the gate is
    Flamingo's, arXiv 2204.14198.
    """

    kind: Literal["retro"] = "retro"
    memory_tokens: PositiveInt = 64
    """Slots that a token reads at most: the last so many chunks before its own."""
    stride: PositiveInt = 32
    """Tokens of a chunk."""
    aggregator: Aggregator = "gate"
    """How a chunk becomes a slot: the mean of its normalised tokens x; `attention`, weighted by softmax(u·x); `gate`,
    each times 2·sigmoid(u·x) before the mean."""
    gating_weight: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.5
    """tanh(g), the branch's share at the start; changing it starts g anew."""

    @property
    def slots(self) -> Slots:
        """Chunks, the last `memory_tokens` of them."""
        return Slots(self.stride, self.stride, self.memory_tokens)

    def within(self, ctx: Context) -> Self | None:
        """None where no chunk ends before the last token; all there are may be read, and one token is its own mean."""
        chunks = (ctx.seq_len - 1) // self.stride
        if chunks == 0:
            return None
        how = "mean" if self.stride == 1 and self.aggregator == "attention" else self.aggregator
        return self.model_copy(update={"memory_tokens": min(self.memory_tokens, chunks), "aggregator": how})

    def tensors(self, ctx: Context) -> dict[str, Tensor]:
        """A reader's, the pooling weights (the mean has none), and the gate, whose tanh starts at `gating_weight`."""
        return {
            **super().tensors(ctx),
            **({} if self.aggregator == "mean" else {"pool.weight": Tensor(("one", "dim"), ZEROS)}),
            "strength": Tensor((), Init("constant", (math.atanh(self.gating_weight),))),
        }

    def sizes(self, ctx: Context) -> dict[str, int]:
        """A reader's, and the one row of the pooling weights."""
        return {**super().sizes(ctx), "one": 1}

    def build(self, ctx: Context) -> "nn.Module":
        """(B, T, D) to (B, T, D)."""
        from morphogen.parts.memory.retro_layer import RetroBranch

        return RetroBranch(self, ctx)

    def pool_flops(self, ctx: Context) -> float:
        """A score for each token, and the weighted sum."""
        return 0.0 if self.aggregator == "mean" else 4.0 * ctx.dim

    def align(self, parent: Part, ctx: Context, parent_ctx: Context) -> Alignment | None:
        """Beyond the default: weights put in for the mean start as the mean, so that alone is exact."""
        plain = super().align(parent, ctx, parent_ctx)
        if plain is None or not isinstance(parent, Retro):
            return None
        if self.gating_weight != parent.gating_weight:
            plain = replace(plain, sources={**plain.sources, "strength": None})
        if {parent.aggregator, self.aggregator} == {"attention", "gate"}:
            plain = replace(plain, sources={**plain.sources, "pool.weight": None})
        same = all(
            getattr(self, name) == getattr(parent, name) for name in ("memory_tokens", "stride", "gating_weight")
        )
        return replace(plain, exact=True, note="") if same and parent.aggregator == "mean" else plain


@block_operator(preserves=True)
def insert_retro_module(block: BlockT, ctx: Context, rng: np.random.Generator) -> BlockT | None:
    """A memory of past chunks, read by cross-attention; its output starts at zero. Ref: arXiv 2112.04426."""
    if any(isinstance(extra, Retro) for extra in block.extras):
        return None
    new = Retro(
        memory_tokens=pick(rng, [16, 32, 64]),
        stride=pick(rng, [8, 16]),
        aggregator=pick(rng, AGGREGATORS),
        **plain_heads(ctx.dim),
    )
    return block.evolve(extras=(*block.extras, new))


@operator(Retro, preserves=False)
def tune_retro(part: Retro, ctx: Context, rng: np.random.Generator) -> Retro | None:
    """Half or twice the chunks remembered or the tokens of a chunk, or another strength of the gate."""
    knob = pick(rng, ["memory_tokens", "stride", "gating_weight"])
    if knob == "gating_weight":
        return part.evolve(gating_weight=pick(rng, [g for g in (0.1, 0.5, 0.9) if g != part.gating_weight]))
    old = part.memory_tokens if knob == "memory_tokens" else part.stride
    return part.evolve(**{str(knob): pick(rng, [n for n in (old // 2, 2 * old) if 2 <= n <= 1024])})


@operator(Retro, preserves=lambda part, ctx: part.aggregator == "mean")
def tune_retro_aggregator(part: Retro, ctx: Context, rng: np.random.Generator) -> Retro | None:
    """Another way to sum a chunk up; exact where weights are put in for the mean."""
    return part.evolve(aggregator=pick(rng, [how for how in AGGREGATORS if how != part.aggregator]))
