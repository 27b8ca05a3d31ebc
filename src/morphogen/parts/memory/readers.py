"""What the memories that tokens read by softmax attention have in common: their heads, and the slots of past tokens.

B batch, T tokens, D model dim, H heads, E head dim, S slots
"""

import math
from dataclasses import replace
from typing import ClassVar, Self

import numpy as np
from pydantic import PositiveInt

from morphogen.ops.slots import Slots, read_pairs
from morphogen.parts.attention.heads import fewer_heads, more_heads, resized_heads, wider_heads
from morphogen.parts.contract.alignment import Alignment
from morphogen.parts.contract.operator import operator
from morphogen.parts.contract.part import Context, Cost, Part
from morphogen.parts.contract.tensors import Tensor
from morphogen.parts.contract.widths import Width

#: Heads that are put in anew have at most this many channels each.
HEAD_DIM = 32


def plain_heads(dim: int) -> dict[str, int]:
    """heads and head_dim of a new memory: half the residual width in all."""
    head_dim = min(HEAD_DIM, max(8, dim // 4))
    return {"heads": max(1, dim // (2 * head_dim)), "head_dim": head_dim}


class Reader(Part):
    """softmax(q kᵀ / √E) v over slots, then an output projection. Subclasses say what the slots are.

    A new head is exact, its output columns being zero; so are new channels of a head: keys are zero there, and queries
    rescaled.
    """

    slot: ClassVar = "extra"
    neutral_fields: ClassVar = frozenset({"heads", "head_dim"})

    heads: PositiveInt = 4
    """Heads that read."""
    head_dim: PositiveInt = 32
    """Channels of a head."""

    @property
    def width(self) -> int:
        """Channels of all heads."""
        return self.heads * self.head_dim

    def counts_as(self) -> frozenset[str]:
        """A memory."""
        return frozenset({"memory"})

    def tensors(self, ctx: Context) -> dict[str, Tensor]:
        """Queries, keys, values and the output's projection."""
        return {
            "q.weight": Tensor((("heads", "k_dim"), "dim")),
            "k.weight": Tensor((("heads", "k_dim"), "dim"), fresh_zero=("k_dim",)),
            "v.weight": Tensor((("heads", "v_dim"), "dim")),
            "o.weight": Tensor(("dim", ("heads", "v_dim")), fresh_zero=("heads", "v_dim"), writes=True),
        }

    def sizes(self, ctx: Context) -> dict[str, int]:
        """heads, dim, and head_dim once for queries and keys and once for values: they grow by different rules."""
        return {"heads": self.heads, "k_dim": self.head_dim, "v_dim": self.head_dim, "dim": ctx.dim}

    def resized(self, target: Width, factor: float, ctx: Context) -> Self | None:
        """Other heads, or channels of them."""
        return resized_heads(self, target, factor)

    def align(self, parent: Part, ctx: Context, parent_ctx: Context) -> Alignment | None:
        """The default, with queries rescaled where head_dim changes the scale of the softmax."""
        plain = super().align(parent, ctx, parent_ctx)
        if plain is None or not isinstance(parent, Reader) or self.head_dim == parent.head_dim:
            return plain
        return replace(plain, scales={**plain.scales, "q.weight": math.sqrt(self.head_dim / parent.head_dim)})


class SlotReader(Reader):
    """A reader of slots that each stand for some past tokens."""

    @property
    def slots(self) -> Slots:
        """Which tokens a slot stands for, and which slots a token reads."""
        raise NotImplementedError  # every kind has its own

    def pool_flops(self, ctx: Context) -> float:
        """FLOPs per token for what is not the mean in summarising."""
        return 0.0

    def cost(self, ctx: Context) -> Cost:
        """Queries and output for each token, keys and values for each slot, and the slots read.

        The cache is that after `seq_len` tokens, with as many waiting for the next slot as may ever wait.
        """
        slots, length = self.slots, ctx.seq_len
        pairs, made = read_pairs(slots, length) / length, slots.complete(length)
        flops = 4.0 * ctx.dim * self.width * (1 + made / length) + 4.0 * self.width * pairs + self.pool_flops(ctx)
        waiting, slot_bytes = 2.0 * (slots.size - 1) * ctx.dim, 2.0 * 2 * self.width
        if slots.keep is None:
            return Cost(flops=flops, kv_bytes=slot_bytes * made / length, state_bytes=waiting)
        return Cost(flops=flops, state_bytes=waiting + slot_bytes * min(slots.keep, made))


@operator(Reader, preserves=True)
def add_memory_heads(part: Reader, ctx: Context, rng: np.random.Generator) -> Reader | None:
    """More heads that read a memory; the new ones write zero."""
    return more_heads(part, rng)


@operator(Reader, preserves=False)
def remove_memory_heads(part: Reader, ctx: Context, rng: np.random.Generator) -> Reader | None:
    """Fewer heads that read a memory; those of largest norm stay."""
    return fewer_heads(part, rng)


@operator(Reader, preserves=True)
def widen_memory_head_dim(part: Reader, ctx: Context, rng: np.random.Generator) -> Reader | None:
    """Twice the head dim of a memory, queries rescaled."""
    return wider_heads(part)


@operator(Reader, preserves=False)
def narrow_memory_head_dim(part: Reader, ctx: Context, rng: np.random.Generator) -> Reader | None:
    """Half the head dim of a memory; the channels of largest norm stay."""
    return part.evolve(head_dim=part.head_dim // 2) if part.head_dim % 2 == 0 else None
