"""How finalists, trained again on other seeds, differ from the root: plain records. No torch here."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

from morphogen.candidate import Record, Whole


class Difference(Record):
    """What one figure of a finalist is against the root's that was trained as long, over repeats on other seeds.

    value, root: means over the `pairs` of which both were measured. difference: of the first less the second. low,
    high: its 95 % interval, among other seeds and other texts like this one; None where there are fewer than two pairs.
    shown: whether the interval lies on one side of zero, and on which; `no` where it does not, or where there is none.
    """

    figure: str
    value: float
    root: float
    difference: float
    low: float | None
    high: float | None
    pairs: Whole
    shown: Literal["better", "worse", "no"]


#: Of finalists, by id: how they differ from the root.
AgainstRoot = Mapping[str, tuple[Difference, ...]]
#: Where nobody was measured again.
NOT_MEASURED: AgainstRoot = MappingProxyType({})
