"""Inheritance as data: where the entries of a child part's tensors come from in a parent part's."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from morphogen.parts.contract.frozen import Frozen
from morphogen.parts.contract.tensors import Axes, Init


class AxisMap(Frozen):
    """Where the entries along one axis of a child's tensor come from.

    first: entry i from the parent's entry i, the rest fresh. largest: the parent's entries of largest norm, in their
    order (which ones is decided when tensors are at hand). index: entry i from `index[i]`; -1 is fresh.
    mean: entry i is the mean of the parent's entries `groups[i]`.
    """

    how: Literal["first", "largest", "index", "mean"]
    size: int
    parent_size: int
    index: tuple[int, ...] = ()
    groups: tuple[tuple[int, ...], ...] = ()

    @property
    def unchanged(self) -> bool:
        """True when the axis is carried over unchanged."""
        return self.how == "first" and self.size == self.parent_size


@dataclass(frozen=True)
class Derived:
    """A tensor computed from several of the parent's, to be aligned like one of the parent's own.

    transform: its name in `contract.transforms`. sources: the parent's tensors; args: whole numbers: what it is called
    with. axes: of the result.
    """

    transform: str
    sources: tuple[str, ...]
    args: tuple[int, ...]
    axes: Axes


@dataclass(frozen=True)
class Alignment:
    """How a child part finds its tensors in a parent part.

    sources: child tensor -> parent tensor (None: fresh). axes, parent_axes: the axes to align by, where they differ
    from the declared ones; the same names in any order. Names that `sizes` does not know take theirs from `maps`.
    maps: axes whose entries are not simply the first ones. scales: factors on carried tensors.
    zero, mean: tensor -> axes along which fresh entries start at zero, or at the mean of the carried ones.
    init: how fresh entries start, where not as in a new part. derived: child tensor -> what it is carried from in place
    of a tensor of the parent.
    exact: whether this part computes the same function after the splice, given that fresh entries are placed so.
    """

    sources: Mapping[str, str | None]
    exact: bool
    note: str = ""
    axes: Mapping[str, Axes] = field(default_factory=dict)
    parent_axes: Mapping[str, Axes] = field(default_factory=dict)
    maps: Mapping[str, AxisMap] = field(default_factory=dict)
    scales: Mapping[str, float] = field(default_factory=dict)
    zero: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    mean: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    init: Mapping[str, Init] = field(default_factory=dict)
    derived: Mapping[str, Derived] = field(default_factory=dict)

    def lossy(self, why: str) -> "Alignment":
        """The same, of a part that then computes another function, with the reason added."""
        return replace(self, exact=False, note="; ".join(filter(None, (self.note, why))))

    def joined(self, other: "Alignment") -> "Alignment":
        """Both in one, of a part that is made of two; `other` goes before where they speak of the same."""
        return Alignment(
            sources={**self.sources, **other.sources},
            exact=self.exact and other.exact,
            note="; ".join(filter(None, (self.note, other.note))),
            axes={**self.axes, **other.axes},
            parent_axes={**self.parent_axes, **other.parent_axes},
            maps={**self.maps, **other.maps},
            scales={**self.scales, **other.scales},
            zero={**self.zero, **other.zero},
            mean={**self.mean, **other.mean},
            init={**self.init, **other.init},
            derived={**self.derived, **other.derived},
        )
