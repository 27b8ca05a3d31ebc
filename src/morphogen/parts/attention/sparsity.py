"""Which past tokens a query sees: the fields that all softmax attention shares, and the operators on them."""

import functools
from collections.abc import Mapping
from typing import Literal, Self

import numpy as np
from pydantic import AliasChoices, Field, NonNegativeInt, PositiveInt, model_validator

from morphogen.ops.names import OpName
from morphogen.ops.patterns import Pattern
from morphogen.parts.attention.kv_policy import Cached
from morphogen.parts.contract.operator import operator, pick
from morphogen.parts.contract.part import Context

Sparsity = Literal["none", "sliding", "block", "local_global", "dilated", "local_block"]
SPARSITIES: tuple[Sparsity, ...] = ("none", "sliding", "block", "local_global", "dilated", "local_block")
#: The knobs each pattern reads; the others have no effect.
KNOBS: Mapping[Sparsity, tuple[str, ...]] = {
    "none": (),
    "sliding": ("sliding_window",),
    "block": ("block_size", "block_stride"),
    "local_global": ("sliding_window", "global_stride"),
    "dilated": ("dilation",),
    "local_block": ("sliding_window", "block_size", "block_stride"),
}
ALL_KNOBS = frozenset({"sliding_window", "block_size", "block_stride", "global_stride", "dilation"})


class Sparse(Cached):
    """Causal attention under a sparsity pattern; what each pattern sees stands at `ops.sparse_attention.Pattern`."""

    sparsity: Sparsity = "none"
    """Which earlier tokens a query sees; `none` is all of them."""
    sliding_window: PositiveInt = Field(default=64, validation_alias=AliasChoices("sliding_window", "sw"))
    """Tokens before its own that a query sees; for sliding, local_global and local_block. `sw` for short."""
    block_size: PositiveInt = 64
    """Tokens of a block; for block and local_block."""
    block_stride: NonNegativeInt = 2
    """A query sees blocks at multiples of this from its own (0: its own only); for block and local_block."""
    global_stride: PositiveInt = 32
    """Every so many tokens one is seen by all later ones; for local_global."""
    dilation: PositiveInt = 2
    """A query sees every so many tokens back from its own; for dilated."""

    @model_validator(mode="after")
    def _blocks_apart(self) -> Self:
        if self.sparsity == "local_block" and self.block_stride == 0:
            raise ValueError("block_stride is 0, expected at least 1 with local_block")
        return self

    @property
    def pattern(self) -> Pattern:
        """Which keys a query sees."""
        return Pattern(
            kind=self.sparsity,
            window=self.sliding_window,
            block_size=self.block_size,
            block_stride=self.block_stride,
            global_stride=self.global_stride,
            dilation=self.dilation,
        )

    @property
    def horizon(self) -> int | None:
        """The window of `sliding`; the block, where a query sees its own alone."""
        if self.sparsity == "sliding":
            return self.sliding_window
        return self.block_size - 1 if self.sparsity == "block" and self.block_stride == 0 else None

    def within(self, ctx: Context) -> Self | None:
        """A pattern that leaves nothing out is none; strides and blocks end with the sequence."""
        plain = self.model_copy(update=self._within(ctx.seq_len))
        return super(Sparse, plain).within(ctx)

    def _within(self, length: int) -> dict[str, object]:
        """Fields that come to something else over so many tokens."""
        dense: dict[str, object] = {"sparsity": "none"}
        window, size, stride, blocks = self.sliding_window, self.block_size, self.block_stride, self._blocks(length)
        if "sliding_window" in KNOBS[self.sparsity] and window >= length - 1:
            return dense
        match self.sparsity:
            case "block":
                return dense if blocks == 1 or stride == 1 else {"block_stride": min(stride, blocks)}
            case "local_global":
                apart = min(self.global_stride, length - 1 - window)
                return dense if apart == 1 else {"global_stride": apart}
            case "dilated":
                apart = min(self.dilation, length)
                return dense if apart == 1 else {"dilation": apart}
            case "local_block":
                if stride == 1 and window >= size - 1:
                    return dense
                return {"block_size": length, "block_stride": 1} if stride >= blocks else {}
            case _:
                return {}

    def _blocks(self, length: int) -> int:
        """Blocks in a sequence."""
        return -(-length // self.block_size)

    def op(self) -> OpName:
        """Attention under a pattern."""
        return "attention"

    def inert(self) -> frozenset[str]:
        """Knobs of other patterns."""
        return ALL_KNOBS - set(KNOBS[self.sparsity])


@functools.lru_cache(maxsize=1024)
def seen_pairs(pattern: Pattern, length: int) -> int:
    """(query, key) pairs that attention computes on over a sequence of `length` tokens."""
    i = np.arange(length)
    window = np.minimum(i, pattern.window) + 1
    if pattern.kind == "none":
        keys = i + 1
    elif pattern.kind == "sliding":
        keys = window
    elif pattern.kind == "local_global":
        keys = window + -(-np.maximum(i - pattern.window, 0) // pattern.global_stride)
    elif pattern.kind == "dilated":
        keys = i // pattern.dilation + 1
    else:
        size, stride = pattern.block_size, pattern.block_stride
        stations = i // size // stride if stride else np.zeros_like(i)
        if pattern.kind == "block":
            keys = i % size + 1 + size * stations
        else:
            keys = window + size * stations
            for back in range(stride, pattern.window // size + 1 + stride, stride):
                start = (i // size - back) * size
                overlap = np.minimum(start + size, i) - np.maximum(start, i - pattern.window)
                keys = keys - np.where(start >= 0, np.maximum(overlap, 0), 0)
    return int(keys.sum())


@operator(Sparse, preserves=False)
def tune_attn_sparsity(part: Sparse, ctx: Context, rng: np.random.Generator) -> Sparse | None:
    """Another sparsity pattern, or one knob of the present one halved or doubled."""
    knob = pick(rng, KNOBS[part.sparsity])
    if knob is None or rng.random() < 0.5:
        return part.evolve(sparsity=pick(rng, [s for s in SPARSITIES if s != part.sparsity]))
    old = dict(part)[knob]
    least = {"sliding_window": 8, "block_size": 8, "global_stride": 4, "dilation": 2, "block_stride": 2}[knob]
    return part.evolve(**{knob: pick(rng, [n for n in (old // 2, old * 2) if n >= least and n <= 4096])})
