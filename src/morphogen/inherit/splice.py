"""Carrying a plan out on tensors, with a count of what was carried and what was drawn afresh."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from morphogen.blueprint.schema import Blueprint
from morphogen.blueprint.tensors import specs
from morphogen.candidate import Inheritance, Origin
from morphogen.inherit.plan import Plan, TensorPlan
from morphogen.parts.contract.alignment import AxisMap
from morphogen.parts.contract.initial import draw, draw_some, stream
from morphogen.parts.contract.tensors import Init
from morphogen.parts.contract.transforms import transform

StateDict = dict[str, Tensor]

#: The step count of an optimizer: one number for a whole tensor.
STEP = "step"


@dataclass(frozen=True)
class Marks:
    """What became of a tensor's entries over one or several splices.

    carried: 1 where the entry comes from the first ancestor; None when all do. count: of those. resized: its shape
    changed on the way. parent: which of a child's parents that ancestor is. merged: with another parent's.
    """

    carried: Tensor | None = None
    count: int = 0
    resized: bool = False
    parent: int = 0
    merged: bool = False


@dataclass(frozen=True)
class Axis:
    """A resolved axis: entry `to[i]` of the child reads the parent's `of[i]`, or the mean of `groups[i]`."""

    size: int
    to: tuple[int, ...]
    of: tuple[int, ...]
    groups: tuple[tuple[int, ...], ...] = ()

    @cached_property
    def fresh(self) -> list[int]:
        """Entries of the child that nothing is carried to."""
        return sorted(set(range(self.size)) - set(self.to))


@dataclass
class Spliced:
    """A child's state dict and the marks of its tensors.

    moments: of an optimizer, kind -> parameter -> tensor of its shape, or of none for `STEP`. given: whether a child
    may have the very tensors, as nobody else will use them.
    """

    state: StateDict
    marks: dict[str, Marks] = field(default_factory=dict)
    moments: dict[str, StateDict] = field(default_factory=dict)
    given: bool = False

    def report(
        self, child: Blueprint, exact: bool, notes: Sequence[str], dropped: int, parents: Sequence[str]
    ) -> Inheritance:
        """Counts of entries: carried in tensors of unchanged shape, carried in others, fresh; and what came from whom.

        parents: their names.
        """
        inherited = resized = fresh = 0
        genes: dict[str, list[str]] = {}
        for name, (gene, _, _) in specs(child).items():
            owner = gene.block.id if gene.block is not None else gene.loop.id if gene.loop is not None else gene.key
            genes.setdefault(owner, []).append(name)
            carried = self._carried(name)
            fresh += self.state[name].numel() - carried
            if self.marks[name].resized:
                resized += carried
            else:
                inherited += carried
        return Inheritance(
            inherited=inherited,
            resized=resized,
            fresh=fresh,
            exact=exact,
            dropped=dropped,
            notes=tuple(notes),
            genes=tuple(self._origin(gene, names, parents) for gene, names in genes.items()),
        )

    def _carried(self, name: str) -> int:
        mark = self.marks[name]
        return self.state[name].numel() if mark.carried is None else mark.count

    def _origin(self, gene: str, names: Sequence[str], parents: Sequence[str]) -> Origin:
        from_parent = {name: count for name in names if (count := self._carried(name))}
        carried, total = sum(from_parent.values()), sum(self.state[name].numel() for name in names)
        if not carried:
            return Origin(gene=gene, parent=None, how="fresh", carried=0, fresh=total)
        parent = parents[self.marks[next(iter(from_parent))].parent]
        how: Literal["whole", "resized", "partly", "merged"] = "whole" if carried == total else "partly"
        if any(self.marks[name].merged for name in from_parent):
            how = "merged"
        elif any(self.marks[name].resized for name in from_parent):
            how = "resized"
        return Origin(gene=gene, parent=parent, how=how, carried=carried, fresh=total - carried)


def from_parent(
    state: StateDict, which: int = 0, moments: Mapping[str, StateDict] | None = None, *, given: bool = False
) -> Spliced:
    """The weights of parent number `which`, of which nothing has been spliced yet."""
    marks = {name: Marks(parent=which) for name in state}
    return Spliced(state, marks, {kind: dict(of) for kind, of in (moments or {}).items()}, given)


def main_dtype(state: Mapping[str, Tensor]) -> torch.dtype:
    """That of most matrices: norms, or an embedding, may be kept in another. fp32 where there are none."""
    counts = Counter(tensor.dtype for tensor in state.values() if tensor.dim() > 1)
    return counts.most_common(1)[0][0] if counts else torch.float32


def splice(drawn: Plan, parents: Sequence[Spliced], seed: int) -> Spliced:
    """Carry out a plan. Fresh entries derive from `seed` and the gene.

    Every tensor of the result is a new one, but for what is carried verbatim from a parent that is `given`. Moments go
    the way of their parameters, bit for bit; those of fresh entries are zero.
    """
    parents = _with_derived(drawn, parents)
    kept = _units_kept(drawn, parents)
    dtype = main_dtype(parents[0].state) if parents else torch.float32
    out, taken = Spliced({}, given=True), set[tuple[int, str]]()
    for item in drawn.tensors:
        out.state[item.tensor], out.marks[item.tensor] = _tensor(item, parents, kept, seed, dtype, taken)
    for kind in sorted({kind for parent in parents for kind in parent.moments}):
        out.moments[kind] = _moments(drawn.tensors, kind, parents, kept)
    return out


def _moments(
    items: Iterable[TensorPlan], kind: str, parents: Sequence[Spliced], kept: Mapping[str, tuple[int, ...]]
) -> StateDict:
    """One kind of moment of every parameter that has it in the parent it comes from."""
    theirs = [Spliced(parent.moments.get(kind, {})) for parent in parents]
    out: StateDict = {}
    for item in items:
        if item.source is None or item.parent is None or item.source not in theirs[item.parent].state or item.clear:
            continue
        source = theirs[item.parent].state[item.source]
        if kind == STEP:
            out[item.tensor] = source.clone()
            continue
        theirs[item.parent].marks[item.source] = Marks()
        plain = item.model_copy(update={"init": "zeros", "init_args": (), "scale": 1.0, "zero": (), "mean": ()})
        out[item.tensor], _ = _tensor(plain, theirs, kept, 0, source.dtype, set())
    return out


def _with_derived(drawn: Plan, parents: Sequence[Spliced]) -> Sequence[Spliced]:
    """The parents, with what the plan wants computed of their tensors beside these."""
    if not drawn.derived:
        return parents
    made = [replace(parent, state=dict(parent.state), marks=dict(parent.marks)) for parent in parents]
    for item in drawn.derived:
        parent = parents[item.parent]
        tensors = [parent.state[name] for name in item.sources]
        tensor = transform(item.transform, tensors, item.args).to(tensors[0].dtype)
        whole = all(parent.marks[name].carried is None for name in item.sources)
        carried = None if whole else _nowhere(tensor.shape)
        made[item.parent].state[item.name] = tensor
        made[item.parent].marks[item.name] = Marks(carried, 0, True, parent.marks[item.sources[0]].parent)
    return made


def _tensor(
    item: TensorPlan,
    parents: Sequence[Spliced],
    kept: Mapping[str, tuple[int, ...]],
    seed: int,
    dtype: torch.dtype,
    taken: set[tuple[int, str]],
) -> tuple[Tensor, Marks]:
    """One tensor of the child and its marks. `taken`: what of given parents other tensors are; grows."""
    if item.source is None or item.parent is None:
        return _drawn(item, seed).to(dtype), Marks(_nowhere(item.shape))
    parent = parents[item.parent]
    if item.verbatim and tuple(parent.state[item.source].shape) == item.shape:
        return _whole(item, parent, taken), parent.marks[item.source]
    if item.clear:
        return torch.zeros(item.shape, dtype=dtype), Marks(_nowhere(item.shape))
    return _resized(item, parent, kept, seed)


def _whole(item: TensorPlan, parent: Spliced, taken: set[tuple[int, str]]) -> Tensor:
    """The parent's tensor itself where it is given and no other tensor is it yet; else a copy."""
    assert item.source is not None
    assert item.parent is not None
    source = parent.state[item.source].detach().cpu()
    if parent.given and (item.parent, item.source) not in taken:
        taken.add((item.parent, item.source))
        return source
    return source.clone(memory_format=torch.contiguous_format)


def _resized(item: TensorPlan, parent: Spliced, kept: Mapping[str, tuple[int, ...]], seed: int) -> tuple[Tensor, Marks]:
    """What is carried of the parent's tensor, put on a ground of fresh entries; a dimension per factor on the way."""
    assert item.source is not None
    source, marks = parent.state[item.source].detach().cpu(), parent.marks[item.source]
    dtype = source.dtype
    axes = [_resolve(planned.take, kept.get(planned.group)) for dim in item.dims for planned in dim]
    names = [planned.axis for dim in item.dims for planned in dim]
    out = _ground(item, names, axes, seed).to(dtype)
    carried = _factored(source, item)
    flags = None if marks.carried is None else _factored(marks.carried, item)
    for k, axis in enumerate(axes):
        carried, flags = _take(carried, k, axis), None if flags is None else _take(flags, k, axis)
    if item.scale != 1.0:
        carried, out = (carried.double() * item.scale).to(dtype), (out.double() * item.scale).to(dtype)
    _put(out, carried, axes)
    _settle_fresh(item, out, names, axes, parent)
    mark, count = _mark(flags, axes)
    done = None if mark is None or count == mark.numel() else mark.reshape(item.shape)
    resized = marks.resized or tuple(source.shape) != item.shape
    return out.reshape(item.shape), Marks(done, count, resized, marks.parent, marks.merged)


def _settle_fresh(item: TensorPlan, out: Tensor, names: Sequence[str], axes: Sequence[Axis], parent: Spliced) -> None:
    """Fresh entries along the plan's axes become zero, or the mean of the carried ones; in place."""
    for k, (name, axis) in enumerate(zip(names, axes, strict=True)):
        if axis.fresh and name in item.zero:
            out.index_fill_(k, torch.tensor(axis.fresh), 0.0)
    for k, (name, axis) in enumerate(zip(names, axes, strict=True)):
        if axis.fresh and name in item.mean:
            _fill_mean(out, k, axis, [parent.state[weights].to(out) for weights in item.weights])


def _mark(flags: Tensor | None, axes: Sequence[Axis]) -> tuple[Tensor | None, int]:
    """Which entries are carried (None: all), and how many. flags: those of the parent's that were, where not all."""
    sizes = [axis.size for axis in axes]
    if flags is not None:
        mark = torch.zeros(sizes, dtype=torch.bool)
        _put(mark, flags, axes)
        return mark, int(torch.count_nonzero(mark))
    found = None
    for k, axis in enumerate(axes):
        if axis.fresh:
            line = torch.zeros(axis.size, dtype=torch.bool)
            line[list(axis.to)] = True
            part = line.reshape([-1 if i == k else 1 for i in range(len(axes))]).expand(sizes)
            found = part if found is None else found & part
    return found, math.prod(len(axis.to) for axis in axes)


def _nowhere(shape: Sequence[int]) -> Tensor:
    """No entry is carried; takes no memory."""
    return torch.zeros((), dtype=torch.bool).expand(tuple(shape))


def _factored(source: Tensor, item: TensorPlan) -> Tensor:
    """A parent's tensor with one dimension per factor, in the child's order."""
    sizes = [planned.take.parent_size for dim in item.dims for planned in dim]
    if not item.order:
        return source.reshape(sizes)
    theirs = [size for _, size in sorted(zip(item.order, sizes, strict=True))]
    return source.reshape(theirs).permute(item.order)


def _ground(item: TensorPlan, names: Sequence[str], axes: Sequence[Axis], seed: int) -> Tensor:
    """What carried entries are written over, a dimension per factor: fresh entries, drawn only where they will stay."""
    sizes = [axis.size for axis in axes]
    open_axes = [k for k, axis in enumerate(axes) if axis.fresh and names[k] not in (*item.zero, *item.mean)]
    out, generator = torch.zeros(sizes), stream(seed, item.gene, item.name)
    for k in open_axes:
        fresh = torch.tensor(axes[k].fresh)
        some = tuple(len(fresh) if i == k else size for i, size in enumerate(sizes))
        entries = draw_some(Init(item.init, item.init_args), item.shape, some, generator)
        if entries is None:
            return _drawn(item, seed).reshape(sizes)
        out.index_copy_(k, fresh, entries)
    return out


def _drawn(item: TensorPlan, seed: int) -> Tensor:
    return draw(Init(item.init, item.init_args), item.shape, stream(seed, item.gene, item.name))


def _take(x: Tensor, k: int, axis: Axis) -> Tensor:
    if axis.groups:
        rows = [x.index_select(k, torch.tensor(group)) for group in axis.groups]
        if x.dtype == torch.bool:
            return torch.cat([row.all(k, keepdim=True) for row in rows], k)
        return torch.cat([row.mean(k, keepdim=True) for row in rows], k)
    if axis.of == tuple(range(x.shape[k])):
        return x
    return x.index_select(k, torch.tensor(axis.of, dtype=torch.long))


def _put(out: Tensor, block: Tensor, axes: Sequence[Axis]) -> None:
    """Write `block` where the axes say, in place."""
    if all(axis.to == tuple(range(len(axis.to))) for axis in axes):
        out[tuple(slice(len(axis.to)) for axis in axes)] = block
    else:
        grid = torch.meshgrid(*(torch.tensor(axis.to, dtype=torch.long) for axis in axes), indexing="ij")
        out[grid] = block


def _fill_mean(out: Tensor, k: int, axis: Axis, weights: Sequence[Tensor]) -> None:
    """Fresh entries along axis k become the mean of the carried ones, each times its channel's weights; in place."""
    old = out.index_select(k, torch.tensor(axis.to, dtype=torch.long))
    for vector_D in weights:
        shape = [1] * out.dim()
        shape[k] = -1
        old = old * vector_D[list(axis.of)].reshape(shape)
    fresh = torch.tensor(axis.fresh)
    out.index_copy_(
        k, fresh, old.mean(k, keepdim=True).expand(*(len(fresh) if i == k else n for i, n in enumerate(out.shape)))
    )


def _resolve(take: AxisMap, kept: tuple[int, ...] | None) -> Axis:
    if take.how == "index":
        pairs = [(i, source) for i, source in enumerate(take.index) if source >= 0]
        return Axis(take.size, tuple(i for i, _ in pairs), tuple(source for _, source in pairs))
    if take.how == "mean":
        return Axis(take.size, tuple(range(take.size)), (), take.groups)
    if take.how == "largest":
        assert kept is not None
        return Axis(take.size, tuple(range(take.size)), kept)
    same = tuple(range(min(take.size, take.parent_size)))
    return Axis(take.size, same, same)


def _units_kept(drawn: Plan, parents: Sequence[Spliced]) -> dict[str, tuple[int, ...]]:
    """For each group that shrinks, the units of largest norm, summed over every tensor that has the axis."""
    scores: dict[str, Tensor] = {}
    sizes: dict[str, int] = {}
    for item in drawn.tensors:
        factors = [planned for dim in item.dims for planned in dim]
        if item.source is None or item.parent is None or len(item.dims) < 2:
            continue
        for k, planned in enumerate(factors):
            if planned.take.how != "largest":
                continue
            sizes[planned.group] = planned.take.size
            source = parents[item.parent].state[item.source].detach()
            view = _factored(source, item)
            others = [i for i in range(view.dim()) if i != k]
            norm = torch.linalg.vector_norm(view, dim=others).double().square()
            scores[planned.group] = scores[planned.group] + norm if planned.group in scores else norm
    return {
        group: tuple(sorted(torch.argsort(score, descending=True, stable=True)[: sizes[group]].tolist()))
        for group, score in scores.items()
    }
