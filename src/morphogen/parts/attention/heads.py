"""What kinds with heads share: projections of query heads in groups, and edits of the number and width of heads."""

from collections.abc import Mapping
from typing import Annotated, Protocol, Self, TypeVar

import numpy as np
from pydantic import Field

from morphogen.parts.contract.tensors import ZEROS, Tensor
from morphogen.parts.contract.widths import Width, times

#: Query heads: more than any model has would only take long to list.
Heads = Annotated[int, Field(ge=1, le=2**16)]
#: The tensors of attention whose query heads share key and value heads in groups.
GROUPED: Mapping[str, Tensor] = {
    "q.weight": Tensor((("kv_heads", "group", "q_dim"), "dim")),
    "k.weight": Tensor((("kv_heads", "k_dim"), "dim"), fresh_zero=("k_dim",)),
    "v.weight": Tensor((("kv_heads", "v_dim"), "dim")),
    "o.weight": Tensor(("dim", ("kv_heads", "group", "v_dim")), fresh_zero=("kv_heads", "group", "v_dim"), writes=True),
}

#: Their biases, which start at zero.
BIASES: Mapping[str, Tensor] = {
    "q.bias": Tensor((("kv_heads", "group", "q_dim"),), ZEROS),
    "k.bias": Tensor((("kv_heads", "k_dim"),), ZEROS),
    "v.bias": Tensor((("kv_heads", "v_dim"),), ZEROS),
    "o.bias": Tensor(("dim",), ZEROS, writes=True),
}


class Grouped(Protocol):
    """A part whose query heads share kv heads, `kv_groups` to one."""

    @property
    def heads(self) -> int:
        """Query heads."""
        ...

    @property
    def kv_groups(self) -> int:
        """Query heads per kv head."""
        ...

    @property
    def head_dim(self) -> int:
        """Channels of a query and of a key."""
        ...


def grouped_sizes(part: Grouped, values: int) -> dict[str, int]:
    """kv_heads, group, and the widths of queries, keys and values, which grow by different rules."""
    heads, width = part.heads // part.kv_groups, part.head_dim
    return {"kv_heads": heads, "group": part.kv_groups, "q_dim": width, "k_dim": width, "v_dim": values}


def check_groups(part: Grouped) -> None:
    """ValueError where the query heads cannot be shared out."""
    if part.heads % part.kv_groups:
        raise ValueError(f"heads {part.heads} cannot be shared out over kv_groups {part.kv_groups}: not a multiple")


# --------------------------------------------------------------------------------------------------- edits


class Headed(Protocol):
    """A part with heads."""

    @property
    def heads(self) -> int:
        """Their number."""
        ...

    @property
    def head_dim(self) -> int:
        """Their width."""
        ...

    def evolve(self, **changes: object) -> Self | None:
        """A changed, validated copy, or None."""
        ...


H = TypeVar("H", bound=Headed)


def more_heads(part: H, rng: np.random.Generator) -> H | None:
    """One head more, or up to twice as many."""
    return part.evolve(heads=part.heads + int(rng.integers(1, part.heads + 1)))


def fewer_heads(part: H, rng: np.random.Generator) -> H | None:
    """One head at least, one fewer at most; None where there is just one."""
    return part.evolve(heads=int(rng.integers(1, part.heads))) if part.heads > 1 else None


def wider_heads(part: H) -> H | None:
    """Heads twice as wide, to 256 channels at most."""
    return part.evolve(head_dim=2 * part.head_dim) if part.head_dim <= 128 else None


def resized_heads(part: H, target: Width, factor: float, group: int = 1, unit: int = 1) -> H | None:
    """So many times the heads, in whole groups, or channels of a head, in whole units; None for another sort."""
    if target == "heads":
        return part.evolve(heads=group * times(part.heads // group, factor))
    return part.evolve(head_dim=unit * times(part.head_dim // unit, factor)) if target == "head_dim" else None
