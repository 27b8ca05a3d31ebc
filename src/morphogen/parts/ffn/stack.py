"""The stacked tensors of a mixture's experts: which units they take from wider experts and from a dense layer."""

import numpy as np

from morphogen.parts.contract.alignment import AxisMap
from morphogen.parts.contract.tensors import Axes
from morphogen.parts.ffn.sharing import by_index

STACKED = ("up.weight", "gate.weight", "down.weight")


def halves(experts: int, hidden: int) -> tuple[dict[str, Axes], dict[str, AxisMap]]:
    """How the `hidden` units of each of the parent's experts fall to the two that it becomes; both get its row of the
    router."""
    split = {"whole": experts, "half": 2, "unit": hidden // 2}
    maps = {axis: AxisMap(how="first", size=size, parent_size=size) for axis, size in split.items()}
    axes: dict[str, Axes] = dict.fromkeys(STACKED, ("whole", "half", "unit", "dim"))
    axes |= {"router.weight": ("whole", "copy", "dim"), "router.bias": ("whole", "copy")}
    return axes, maps | {"copy": by_index([0, 0], 1)}


def kept_units(experts: int, hidden: int, parent_hidden: int, drop: float) -> AxisMap:
    """(expert, hidden) as one axis: which of a dense layer's units each expert keeps, others for every expert. drop:
    the share of each expert's units drawn afresh."""
    index: list[int] = []
    for expert in range(experts):
        dropped = np.random.default_rng(expert).random(hidden).argsort()
        fresh = set(dropped[: round(drop * hidden)].tolist())
        index += [-1 if h in fresh or h >= parent_hidden else h for h in range(hidden)]
    return by_index(index, parent_hidden)
