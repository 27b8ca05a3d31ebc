"""Reading the whole past by summaries. B batch, T tokens, D model dim, S slots."""

from typing import TYPE_CHECKING, Literal, Self

import numpy as np
from pydantic import PositiveInt, model_validator

from morphogen.ops.slots import Slots
from morphogen.parts.contract.operator import BlockT, block_operator, operator, pick
from morphogen.parts.contract.part import Context
from morphogen.parts.memory.readers import SlotReader, plain_heads

if TYPE_CHECKING:
    from torch import nn


class ChunkMemory(SlotReader):
    """o(softmax(q kᵀ / √E) v): a token reads the mean of every run of `chunk_size` tokens, one from each `stride`
    tokens, that ended before it.

    Compressive memory by mean pooling, arXiv 1911.05507; a cache of 1/stride of attention's, which still grows.
    """

    kind: Literal["chunk_memory"] = "chunk_memory"
    chunk_size: PositiveInt = 64
    """Tokens whose mean is one slot."""
    stride: PositiveInt = 32
    """Tokens from the start of one slot to that of the next."""

    @model_validator(mode="after")
    def _no_gaps(self) -> Self:
        if self.stride > self.chunk_size:
            raise ValueError(
                f"stride is {self.stride}, expected at most chunk_size {self.chunk_size}: no token is lost"
            )
        return self

    @property
    def slots(self) -> Slots:
        """Every run."""
        return Slots(self.chunk_size, self.stride)

    def within(self, ctx: Context) -> Self | None:
        """None where no run ends before the last token; of a single run it does not matter when the next begins."""
        later = ctx.seq_len - self.chunk_size
        return self.model_copy(update={"stride": min(self.stride, later)}) if later > 0 else None

    def build(self, ctx: Context) -> "nn.Module":
        """(B, T, D) to (B, T, D)."""
        from morphogen.parts.memory.chunk_memory_layer import ChunkMemoryBranch

        return ChunkMemoryBranch(self, ctx)


@block_operator(preserves=True)
def insert_chunk_memory(block: BlockT, ctx: Context, rng: np.random.Generator) -> BlockT | None:
    """A memory of mean summaries of all the past; its output starts at zero. Ref: arXiv 1911.05507."""
    if any(isinstance(extra, ChunkMemory) for extra in block.extras):
        return None
    stride = int(rng.choice([8, 16]))
    new = ChunkMemory(chunk_size=stride * int(rng.integers(1, 3)), stride=stride, **plain_heads(ctx.dim))
    return block.evolve(extras=(*block.extras, new))


@operator(ChunkMemory, preserves=False)
def tune_chunk_memory(part: ChunkMemory, ctx: Context, rng: np.random.Generator) -> ChunkMemory | None:
    """Half or twice the tokens of a summary, or from one to the next."""
    knob = pick(rng, ["chunk_size", "stride"])
    old = part.chunk_size if knob == "chunk_size" else part.stride
    return part.evolve(**{str(knob): pick(rng, [n for n in (old // 2, 2 * old) if 2 <= n <= 1024])})
