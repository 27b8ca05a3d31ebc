"""The widths of a part that growth changes, and how many units so many times as many are."""

from typing import Literal

#: Hidden units, heads, channels of a head.
Width = Literal["ffn", "heads", "head_dim"]


def times(size: int, factor: float) -> int:
    """`factor` times `size`, to the nearest whole number: at least one more for a factor above 1, else at least one
    fewer, but never 0."""
    wanted = round(size * factor)
    return max(size + 1, wanted) if factor > 1 else max(1, min(size - 1, wanted))
