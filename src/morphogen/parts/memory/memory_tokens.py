"""Reading keys and values that are learned. B batch, T tokens, D model dim, H heads, N memory tokens, E head dim."""

from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from pydantic import PositiveInt

from morphogen.parts.contract.alignment import Alignment
from morphogen.parts.contract.operator import BlockT, block_operator, operator, pick
from morphogen.parts.contract.part import Context, Cost, Part
from morphogen.parts.contract.tensors import Init, Tensor
from morphogen.parts.memory.readers import Reader, plain_heads

if TYPE_CHECKING:
    from torch import nn


class MemoryTokens(Reader):
    """o(softmax(q Kᵀ / √E) V) over learned K and V that no token changes. Ref: persistent memory, arXiv 1907.01470.

    More tokens enter the softmax's denominator, so that is lossy, although their values start at zero.
    """

    neutral_fields: ClassVar = frozenset({"heads", "head_dim", "tokens"})

    kind: Literal["memory_tokens"] = "memory_tokens"
    tokens: PositiveInt = 32
    """Learned keys and values of every head."""

    @property
    def pointwise(self) -> bool:
        """It is: what is read is the same for all tokens."""
        return True

    def tensors(self, ctx: Context) -> dict[str, Tensor]:
        """Values start small: most of what they add is the same for every token, and would drown the embedding."""
        projections = super().tensors(ctx)
        return {
            "q.weight": projections["q.weight"],
            "o.weight": projections["o.weight"],
            "keys": Tensor(("heads", "tokens", "k_dim"), Init("normal", (1.0,)), fresh_zero=("k_dim",), steady=True),
            "values": Tensor(
                ("heads", "tokens", "v_dim"), Init("normal", (0.02,)), fresh_zero=("tokens",), steady=True
            ),
        }

    def sizes(self, ctx: Context) -> dict[str, int]:
        """A reader's, and tokens."""
        return {**super().sizes(ctx), "tokens": self.tokens}

    def build(self, ctx: Context) -> "nn.Module":
        """(B, T, D) to (B, T, D)."""
        from morphogen.parts.memory.memory_tokens_layer import MemoryTokensBranch

        return MemoryTokensBranch(self, ctx)

    def kept(self, ctx: Context) -> float:
        """Queries, what was read, and its gate: the tokens are the same for all positions."""
        return 3.0 * self.width

    def cost(self, ctx: Context) -> Cost:
        """Queries, output, and every memory token for every token; nothing is remembered."""
        return Cost(flops=4.0 * self.width * (ctx.dim + self.tokens))

    def align(self, parent: Part, ctx: Context, parent_ctx: Context) -> Alignment | None:
        """As for a reader; other numbers of tokens lose."""
        plain = super().align(parent, ctx, parent_ctx)
        if plain is None or not isinstance(parent, MemoryTokens) or self.tokens == parent.tokens:
            return plain
        return replace(plain, exact=False, note=f"{parent.tokens} memory tokens became {self.tokens}")


@block_operator(preserves=True)
def insert_memory_tokens(block: BlockT, ctx: Context, rng: np.random.Generator) -> BlockT | None:
    """Learned keys and values that every token reads; their output starts at zero. Ref: arXiv 1907.01470."""
    if any(isinstance(extra, MemoryTokens) for extra in block.extras):
        return None
    new = MemoryTokens(tokens=pick(rng, [16, 32, 64]), **plain_heads(ctx.dim))
    return block.evolve(extras=(*block.extras, new))


@operator(MemoryTokens, preserves=False)
def tune_memory_tokens(part: MemoryTokens, ctx: Context, rng: np.random.Generator) -> MemoryTokens | None:
    """Half or twice the memory tokens: those of largest norm stay, values of new ones start at zero."""
    return part.evolve(tokens=pick(rng, [n for n in (part.tokens // 2, 2 * part.tokens) if 1 <= n <= 4096]))
