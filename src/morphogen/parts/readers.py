"""What the memories that tokens read by softmax attention have in common: their heads, and the slots of past tokens.

B batch, T tokens, D model dim, H heads, E head dim, S slots
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar, cast

import numpy as np
import torch
from pydantic import PositiveInt
from torch import Tensor

from morphogen.ops.slot_attention import Slots, attend_slots, read_pairs
from morphogen.parts.alignment import Alignment
from morphogen.parts.base import Context, Cost, Part, operator
from morphogen.parts.branch import Branch, State
from morphogen.parts.heads import fewer_heads, more_heads, wider_heads
from morphogen.parts.layers import Linear, make_norm
from morphogen.parts.tensors import Axes

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
    axes: ClassVar[Mapping[str, Axes]] = {
        "q.weight": (("heads", "k_dim"), "dim"),
        "k.weight": (("heads", "k_dim"), "dim"),
        "v.weight": (("heads", "v_dim"), "dim"),
        "o.weight": ("dim", ("heads", "v_dim")),
    }
    zero_init: ClassVar = {"o.weight": ("heads", "v_dim"), "k.weight": ("k_dim",)}
    writers: ClassVar = frozenset({"o.weight"})
    size_fields: ClassVar = frozenset({"heads", "head_dim"})

    heads: PositiveInt = 4
    head_dim: PositiveInt = 32

    @property
    def width(self) -> int:
        """Channels of all heads."""
        return self.heads * self.head_dim

    def traits(self) -> frozenset[str]:
        """A memory."""
        return frozenset({"memory"})

    def sizes(self, ctx: Context) -> dict[str, int]:
        """heads, dim, and head_dim once for queries and keys and once for values: they grow by different rules."""
        return {"heads": self.heads, "k_dim": self.head_dim, "v_dim": self.head_dim, "dim": ctx.dim}

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


class SlotBranch(Branch):
    """The module of a `SlotReader`.

    While decoding it remembers keys `k` and values `v` of the slots still read, (B, H, S, E), and the `tail`: the
    tokens from the start of the slot that is filled next, (B, less than its size, D).
    """

    def __init__(self, part: SlotReader, ctx: Context) -> None:
        super().__init__()
        self.slots, self.heads = part.slots, part.heads
        self.norm = make_norm(ctx.norm, ctx.dim)
        self.q = Linear(ctx.dim, part.width)
        self.k = Linear(ctx.dim, part.width)
        self.v = Linear(ctx.dim, part.width)
        self.o = Linear(part.width, ctx.dim)

    def summarise(self, x_BTD: Tensor) -> Tensor:
        """The summary of each complete slot, (B, T, D) to (B, S, D)."""
        raise NotImplementedError  # every kind has its own

    def mix(self, x_BTD: Tensor) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        return self.mix_on(x_BTD, {})

    def mix_on(self, x_BTD: Tensor, state: State) -> Tensor:
        """As `mix`, after what `state` remembers."""
        slots, recent_BTD = self.slots, x_BTD
        if state:
            recent_BTD = torch.cat([state["tail"], x_BTD], 1)
        s_BSD = self.summarise(recent_BTD)
        k_BHSE, v_BHSE = self._split(self.k(s_BSD)), self._split(self.v(s_BSD))
        if state:
            k_BHSE, v_BHSE = torch.cat([state["k"], k_BHSE], 2), torch.cat([state["v"], v_BHSE], 2)
        start, made = recent_BTD.shape[1] - x_BTD.shape[1], s_BSD.shape[1]
        before = k_BHSE.shape[2] - made
        y_BHTE = attend_slots(self._split(self.q(x_BTD)), k_BHSE, v_BHSE, slots, start=start, before=before)
        gone = 0 if slots.keep is None else max(0, k_BHSE.shape[2] - slots.keep)
        state["k"], state["v"] = k_BHSE[:, :, gone:], v_BHSE[:, :, gone:]
        state["tail"] = recent_BTD[:, made * slots.stride :].clone()
        return cast(Tensor, self.o(y_BHTE.transpose(1, 2).flatten(2)))

    def _split(self, x_BTF: Tensor) -> Tensor:
        batch, length, width = x_BTF.shape
        return x_BTF.view(batch, length, self.heads, width // self.heads).transpose(1, 2)


# --------------------------------------------------------------------------------------------------- operators


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
