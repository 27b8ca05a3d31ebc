"""Which past tokens attention sees under a pattern, and which of them a decoder keeps. No torch: costs need it too."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from morphogen.errors import InputError, unknown

Kind = Literal["none", "sliding", "block", "local_global", "dilated", "local_block"]


@dataclass(frozen=True)
class Pattern:
    """Which of the keys j ≤ i the query i sees. A token's block is its index divided by `block_size`.

    - none: all of them.
    - sliding: i − window ≤ j.
    - block: the blocks of j and i are equal, or `block_stride` (0: equal only) divides their distance.
    - local_global: i − window ≤ j, or `global_stride` divides j.
    - dilated: `dilation` divides i − j.
    - local_block: i − window ≤ j, or j is of an earlier block at a multiple of `block_stride` from i's.
    """

    kind: Kind = "none"
    window: int = 0
    block_size: int = 0
    block_stride: int = 0
    global_stride: int = 0
    dilation: int = 1

    def __post_init__(self) -> None:
        """Raises InputError when the kind is not known or one of its sizes is too small."""
        if self.kind not in get_args(Kind):
            raise InputError(unknown("Pattern.kind", self.kind, get_args(Kind)))
        least = {
            "none": {},
            "sliding": {"window": 0},
            "block": {"block_size": 1, "block_stride": 0},
            "local_global": {"window": 0, "global_stride": 1},
            "dilated": {"dilation": 1},
            "local_block": {"window": 0, "block_size": 1, "block_stride": 1},
        }[self.kind]
        for name, bound in least.items():
            if (value := int(vars(self)[name])) < bound:
                raise InputError(f"Pattern.{name}: got {value}, expected at least {bound} for kind {self.kind!r}")


Quant = Literal["none", "int8"]


def remembered(pattern: Pattern, count: int, window: int | None = None) -> tuple[range, ...]:
    """The tokens of the first `count` that a decoder keeps: those that a later token may see, in ascending runs.

    window: of a cache that holds the last `window` tokens, the one being decoded included; None for one without limit.
    The block of the last token stays until the next one begins.
    """
    low, far = 0, range(0)
    if pattern.kind in ("sliding", "local_global"):
        low = count - pattern.window
    elif pattern.kind == "block" and pattern.block_stride == 0:
        low = (count - 1) // pattern.block_size * pattern.block_size
    low, oldest = max(0, low), 0 if window is None else max(0, count - window + 1)
    if pattern.kind == "local_global":
        first = -(-oldest // pattern.global_stride) * pattern.global_stride
        far = range(first, max(first, low), pattern.global_stride)
    return tuple(run for run in (far, range(max(low, oldest), count)) if run)


def alibi_slopes(heads: int) -> list[float]:
    """Slopes of ALiBi, one a head: 2^(−8·i/n) for i = 1…n when n is a power of two.

    Other numbers of heads take those of the power of two below, then every second one of the power above.
    Ref: Press et al., arXiv 2108.12409, and its published code.
    """
    if heads < 1:
        raise InputError(f"alibi_slopes: got {heads} heads, expected at least 1")
    power = 2 ** int(math.log2(heads))
    slopes = [2.0 ** (-8.0 * i / power) for i in range(1, power + 1)]
    between = [2.0 ** (-4.0 * i / power) for i in range(1, 2 * power + 1, 2)]
    return (slopes + between)[:heads]
