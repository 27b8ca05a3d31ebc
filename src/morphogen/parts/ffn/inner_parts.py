"""Parts that stand in for experts of a mixture: their tensors, axes and inheritance under the mixture's own names."""

from collections.abc import Iterable, Mapping
from typing import TypeVar

from morphogen.parts.contract.alignment import Alignment
from morphogen.parts.contract.part import Context, Part
from morphogen.parts.contract.tensors import Axes, Spec

T = TypeVar("T")


def inside(i: int, axis: str) -> str:
    """An axis of part i of `experts`; the residual width is the same for all."""
    return axis if axis == "dim" else f"others.{i}.{axis}"


def axes_inside(i: int, axes: Axes) -> Axes:
    """Every factor of every axis by the mixture's name."""
    return tuple(
        inside(i, axis) if isinstance(axis, str) else tuple(inside(i, factor) for factor in axis) for axis in axes
    )


def alignment_inside(i: int, aligned: Alignment, names: Iterable[str]) -> Alignment:
    """How part i of `experts` aligns, in the mixture's names; `names`: those of its tensors that the mixture has."""

    def named(of: Mapping[str, T]) -> dict[str, T]:
        return {f"others.{i}.{name}": value for name, value in of.items()}

    sources = {name: aligned.sources[name] for name in names}
    return Alignment(
        sources=named({name: None if of is None else f"others.{i}.{of}" for name, of in sources.items()}),
        exact=aligned.exact,
        note=aligned.note,
        axes={name: axes_inside(i, axes) for name, axes in named(aligned.axes).items()},
        parent_axes={name: axes_inside(i, axes) for name, axes in named(aligned.parent_axes).items()},
        maps={inside(i, axis): take for axis, take in aligned.maps.items()},
        scales=named(aligned.scales),
        zero={name: tuple(inside(i, axis) for axis in axes) for name, axes in named(aligned.zero).items()},
        mean={name: tuple(inside(i, axis) for axis in axes) for name, axes in named(aligned.mean).items()},
        init=named(aligned.init),
    )


def bare(part: Part, ctx: Context) -> dict[str, Spec]:
    """A part's tensors without those of the norm before it."""
    return {name: spec for name, spec in part.specs(ctx).items() if not name.startswith("norm.")}
