"""Reading keys and values that are learned. B batch, T tokens, D model dim, H heads, N memory tokens, E head dim."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal, cast

import numpy as np
import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from morphogen.ops.slot_attention import attend_learned
from morphogen.parts.alignment import Alignment
from morphogen.parts.base import Context, Cost, Part, block_operator, operator, pick
from morphogen.parts.branch import Branch, State
from morphogen.parts.layers import Linear, make_norm
from morphogen.parts.readers import Reader, plain_heads
from morphogen.parts.tensors import Axes, Init


class MemoryTokens(Reader):
    """o(softmax(q Kᵀ / √E) V) over learned K and V that no token changes. Ref: persistent memory, arXiv 1907.01470.

    More tokens enter the softmax's denominator, so that is lossy, although their values start at zero.
    """

    axes: ClassVar[Mapping[str, Axes]] = {
        "q.weight": Reader.axes["q.weight"],
        "o.weight": Reader.axes["o.weight"],
        "keys": ("heads", "tokens", "k_dim"),
        "values": ("heads", "tokens", "v_dim"),
    }
    #: Values start small: most of what they add is the same for every token, and would drown the embedding.
    initial: ClassVar = {"keys": Init("normal", (1.0,)), "values": Init("normal", (0.02,))}
    zero_init: ClassVar = {"o.weight": ("heads", "v_dim"), "keys": ("k_dim",), "values": ("tokens",)}
    size_fields: ClassVar = frozenset({"heads", "head_dim", "tokens"})
    pointwise: ClassVar = True

    kind: Literal["memory_tokens"] = "memory_tokens"
    tokens: PositiveInt = 32

    def sizes(self, ctx: Context) -> dict[str, int]:
        """A reader's, and tokens."""
        return {**super().sizes(ctx), "tokens": self.tokens}

    def build(self, ctx: Context) -> nn.Module:
        """(B, T, D) to (B, T, D)."""
        return MemoryTokensBranch(self, ctx)

    def cost(self, ctx: Context) -> Cost:
        """Queries, output, and every memory token for every token; nothing is remembered."""
        return Cost(flops=4.0 * self.width * (ctx.dim + self.tokens))

    def align(self, parent: Part, ctx: Context, parent_ctx: Context) -> Alignment | None:
        """As for a reader; other numbers of tokens lose."""
        plain = super().align(parent, ctx, parent_ctx)
        if plain is None or not isinstance(parent, MemoryTokens) or self.tokens == parent.tokens:
            return plain
        return replace(plain, exact=False, note=f"{parent.tokens} memory tokens became {self.tokens}")


class MemoryTokensBranch(Branch):
    """The module of `MemoryTokens`."""

    def __init__(self, part: MemoryTokens, ctx: Context) -> None:
        super().__init__()
        self.heads = part.heads
        self.norm = make_norm(ctx.norm, ctx.dim)
        self.q = Linear(ctx.dim, part.width)
        self.keys = nn.Parameter(torch.empty(part.heads, part.tokens, part.head_dim))
        self.values = nn.Parameter(torch.empty(part.heads, part.tokens, part.head_dim))
        self.o = Linear(part.width, ctx.dim)

    def mix(self, x_BTD: Tensor) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        q_BTHE = self.q(x_BTD).unflatten(2, (self.heads, -1))
        return cast(Tensor, self.o(attend_learned(q_BTHE, self.keys, self.values).flatten(2)))

    def mix_on(self, x_BTD: Tensor, state: State) -> Tensor:
        """Remembers nothing of the sequence."""
        return self.mix(x_BTD)


# --------------------------------------------------------------------------------------------------- operators


@block_operator(preserves=True)
def insert_memory_tokens(block: Any, ctx: Context, rng: np.random.Generator) -> Any:
    """Learned keys and values that every token reads; their output starts at zero. Ref: arXiv 1907.01470."""
    if any(isinstance(extra, MemoryTokens) for extra in block.extras):
        return None
    new = MemoryTokens(tokens=pick(rng, [16, 32, 64]), **plain_heads(ctx.dim))
    return block.evolve(extras=(*block.extras, new))


@operator(MemoryTokens, preserves=False)
def tune_memory_tokens(part: MemoryTokens, ctx: Context, rng: np.random.Generator) -> MemoryTokens | None:
    """Half or twice the memory tokens: those of largest norm stay, values of new ones start at zero."""
    return part.evolve(tokens=pick(rng, [n for n in (part.tokens // 2, 2 * part.tokens) if 1 <= n <= 4096]))
