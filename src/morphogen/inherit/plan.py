"""The inheritance plan: for every tensor of a child, which parent tensor it comes from, along which axes, or fresh.

Plain data that costs no tensor. Blocks are matched by gene id, parameters by name, axes by name.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from morphogen.blueprint.schema import Block, Blueprint, Gene
from morphogen.blueprint.tensors import specs
from morphogen.errors import InputError, anybodys
from morphogen.parts.contract.alignment import Alignment, AxisMap, Derived
from morphogen.parts.contract.frozen import Frozen
from morphogen.parts.contract.part import Modifier
from morphogen.parts.contract.tensors import ZEROS, Axes, Spec, flat


class PlannedAxis(Frozen):
    """One factor of one tensor dimension. `group` names the units that shrink together: same group, same units kept."""

    axis: str
    group: str
    take: AxisMap


class TensorPlan(Frozen):
    """Where one child tensor comes from.

    source: the parent tensor's name, None for a fresh one. parent: which parent. dims: per dimension, its factors.
    order: for each of them, which of the source's factors it is, where the source has them in another order.
    scale: multiplies carried entries. init, init_args: how fresh entries are drawn. zero, mean: axes along which fresh
    entries are zero, or the mean of the carried ones (weighted by the product of the vectors `weights`).
    clear: the whole tensor is zero. gene, name: the stream fresh entries are drawn from.
    """

    tensor: str
    gene: str
    name: str
    shape: tuple[int, ...]
    source: str | None = None
    parent: int | None = None
    dims: tuple[tuple[PlannedAxis, ...], ...] = ()
    order: tuple[int, ...] = ()
    scale: float = 1.0
    init: str
    init_args: tuple[float | str, ...] = ()
    zero: tuple[str, ...] = ()
    mean: tuple[str, ...] = ()
    weights: tuple[str, ...] = ()
    clear: bool = False

    @property
    def verbatim(self) -> bool:
        """True when the tensor is carried over bit for bit."""
        whole = all(planned.take.unchanged for dim in self.dims for planned in dim)
        return self.source is not None and whole and self.scale == 1.0 and not self.clear and not self.order


class DerivedPlan(Frozen):
    """A tensor to compute from several of a parent's before any is carried; `name` is then a source like theirs."""

    name: str
    parent: int
    transform: str
    sources: tuple[str, ...]
    args: tuple[int, ...]


class Dropped(Frozen):
    """A parent's tensor that no tensor of the child is made from."""

    parent: int
    tensor: str
    entries: int


class Plan(Frozen):
    """A child's tensors, each exactly once, and whether the child computes its parent's function.

    derived: what to compute of the parents' tensors first. dropped: the parents' tensors that nothing reads; every
    other is the source of something. notes: why the function is another, in words.
    """

    tensors: tuple[TensorPlan, ...]
    derived: tuple[DerivedPlan, ...] = ()
    dropped: tuple[Dropped, ...] = ()
    exact: bool
    notes: tuple[str, ...] = ()


@dataclass
class _Draft:
    """What accumulates while a plan is drawn up."""

    tensors: list[TensorPlan] = field(default_factory=list)
    derived: list[DerivedPlan] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def plan(
    child: Blueprint,
    parents: Sequence[Blueprint],
    sources: Mapping[str, int] | None = None,
    *,
    takes: Mapping[str, AxisMap] | None = None,
    stacked: Collection[str] = (),
) -> Plan:
    """Draw up how `child` inherits from `parents` (none, one, or two of a crossover).

    sources: gene id of a block -> parent it came from; where not given, the first parent with an equal block, else the
    first with a block of that id. The stem and the recurrences come from the first parent. InputError when a source has
    no such block. takes: `<gene key>/<axis>` -> where that axis' entries come from, where that is known better than by
    alignment. stacked: ids of copied blocks that copy what they write too, which is lossy.
    """
    draft = _Draft()
    theirs = [{gene.key: gene for gene in parent.genes()} for parent in parents]
    homes = [{block.id: block for block in parent.blocks} for parent in parents]
    for gene in child.genes():
        if not parents:
            _fresh(draft, gene, clear_writers=False)
            continue
        which, origin, key = _find(gene, homes, sources or {})
        source = None if which is None else theirs[which].get(key)
        with anybodys(f"{gene.key}: how it inherits", InputError):
            aligned = gene.part.align(source.part, gene.ctx, source.ctx) if source else None
        if which is None or source is None or aligned is None:
            _fresh(draft, gene, clear_writers=True)
            if source is not None and not origin:
                draft.notes.append(f"{gene.key}: {source.part.label} became {gene.part.label}, nothing carried")
            if not gene.part.neutral():
                draft.notes.append(f"{gene.key} is new and does not start neutral")
        else:
            silent = origin and gene.block is not None and gene.block.id not in stacked
            if origin and not silent:
                aligned = aligned.lossy("a copy that writes")
            _carry(draft, _Descent(gene, source, which, _with_takes(gene.key, aligned, takes or {}), silent))
    if parents:
        draft.notes += _structure(child, parents[0])
        if len(parents) > 1:
            draft.notes.append("blocks of two parents")
    exact = bool(parents) and not draft.notes
    return Plan(
        tensors=tuple(draft.tensors),
        derived=tuple(draft.derived),
        dropped=_dropped(draft, parents),
        exact=exact,
        notes=tuple(draft.notes),
    )


def _with_takes(key: str, aligned: Alignment, takes: Mapping[str, AxisMap]) -> Alignment:
    """The alignment of gene `key` with the maps that are known of it."""
    known = {axis: take for full, take in takes.items() for gene, _, axis in [full.rpartition("/")] if gene == key}
    return replace(aligned, maps={**aligned.maps, **known}) if known else aligned


def _dropped(draft: _Draft, parents: Sequence[Blueprint]) -> tuple[Dropped, ...]:
    """What of the parents' tensors the draft does not read."""
    read = {(item.parent, item.source) for item in draft.tensors if not item.clear}
    read |= {(item.parent, source) for item in draft.derived for source in item.sources}
    return tuple(
        Dropped(parent=which, tensor=name, entries=math.prod(spec.shape))
        for which, parent in enumerate(parents)
        for name, (_, _, spec) in specs(parent).items()
        if (which, name) not in read
    )


def _find(gene: Gene, homes: Sequence[Mapping[str, Block]], sources: Mapping[str, int]) -> tuple[int | None, bool, str]:
    """(parent, whether it is the block this one was copied from, the gene's key there). homes: the parents' blocks."""
    if gene.block is None:
        return 0, False, gene.key
    wanted = gene.block.id
    if wanted in sources:
        if wanted not in homes[sources[wanted]]:
            raise InputError(f"block {wanted} is said to come from parent {sources[wanted]}, which has no such block")
        return sources[wanted], False, gene.key
    holders = [i for i, home in enumerate(homes) if wanted in home]
    if holders:
        equal = [i for i in holders if _same(homes[i][wanted], gene.block)] if len(holders) > 1 else holders
        return (equal or holders)[0], False, gene.key
    copied = [i for i, home in enumerate(homes) if gene.block.origin in home]
    if copied:
        return copied[0], True, f"{gene.block.origin}{gene.key.removeprefix(wanted)}"
    return None, False, gene.key


def _same(a: Block, b: Block) -> bool:
    return list(a.parts()) == list(b.parts())


def _fresh(draft: _Draft, gene: Gene, clear_writers: bool) -> None:
    for name, spec in gene.part.specs(gene.ctx).items():
        init = ZEROS if clear_writers and spec.writes else spec.init
        draft.tensors.append(
            TensorPlan(
                tensor=gene.tensor(name),
                gene=gene.key,
                name=name,
                shape=spec.shape,
                init=init.name,
                init_args=init.args,
            )
        )


@dataclass(frozen=True)
class _Descent:
    """A gene and the one that it inherits from: in parent number `which`, by `aligned`; silent: as a copy of that which
    writes nothing yet. planned: its axes, of which each is in several tensors."""

    gene: Gene
    source: Gene
    which: int
    aligned: Alignment
    silent: bool
    planned: dict[str, PlannedAxis] = field(default_factory=dict)

    @cached_property
    def sizes(self) -> tuple[Mapping[str, int], Mapping[str, int]]:
        """Lengths of the axes, the child's and the parent's."""
        return self.gene.part.sizes(self.gene.ctx), self.source.part.sizes(self.source.ctx)

    @cached_property
    def origins(self) -> Mapping[str, Spec]:
        """The parent's tensors."""
        return self.source.part.specs(self.source.ctx)


def _carry(draft: _Draft, descent: _Descent) -> None:
    """Plan every tensor of a part that inherits, and say what is lost."""
    gene, aligned, shrunk = descent.gene, descent.aligned, list[str]()
    for name, spec in gene.part.specs(gene.ctx).items():
        item = _carried(draft, descent, name, spec)
        shrunk += sorted({p.axis for dim in item.dims for p in dim if p.take.how in ("largest", "mean")})
        draft.tensors.append(item)
    if descent.silent:
        return  # it changes nothing, whatever else became of it
    if shrunk:
        draft.notes.append(f"{gene.key}: fewer along {', '.join(dict.fromkeys(shrunk))}")
    if aligned.note or not aligned.exact:
        draft.notes.append(f"{gene.key}: {aligned.note or 'another function'}")


def _carried(draft: _Draft, descent: _Descent, name: str, spec: Spec) -> TensorPlan:
    """One tensor of a part that inherits; a fresh one where nothing in the parent is like it."""
    gene, aligned = descent.gene, descent.aligned
    origin, made = aligned.sources.get(name), aligned.derived.get(name)
    init = aligned.init.get(name, spec.init)
    common = {"tensor": gene.tensor(name), "gene": gene.key, "name": name, "shape": spec.shape}
    if origin is None:
        init = ZEROS if spec.writes else init
        return TensorPlan(**common, init=init.name, init_args=init.args)
    dims = _dims(descent, name, spec)
    zero, mean, weights = _starts(descent, name, spec)
    parent_axes = made.axes if made else aligned.parent_axes.get(name, descent.origins[origin].axes)
    return TensorPlan(
        **common,
        source=_derive(draft, descent, name, made) if made else descent.source.tensor(origin),
        parent=descent.which,
        dims=dims,
        order=_order(gene, name, dims, parent_axes),
        scale=aligned.scales.get(name, 1.0),
        init=init.name,
        init_args=init.args,
        zero=zero,
        mean=mean,
        weights=weights,
        clear=descent.silent and spec.writes,
    )


def _starts(descent: _Descent, name: str, spec: Spec) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Axes along which fresh entries are zero; along which they are the mean; what weighs that mean.

    New residual channels are written zero under RMSNorm, and the mean of the others under LayerNorm.
    """
    zero, mean = descent.aligned.zero.get(name, ()), descent.aligned.mean.get(name, ())
    if not spec.writes:
        return zero, mean, ()
    if descent.gene.ctx.norm == "rmsnorm":
        return (*zero, "dim"), mean, ()
    return zero, (*mean, "dim"), _channel_scales(descent.source)


def _derive(draft: _Draft, descent: _Descent, name: str, made: Derived) -> str:
    """Plan a derived tensor; the name it will have among the parent's."""
    full = f"{made.transform} for {descent.gene.tensor(name)}"
    sources = tuple(descent.source.tensor(each) for each in made.sources)
    draft.derived.append(
        DerivedPlan(name=full, parent=descent.which, transform=made.transform, sources=sources, args=made.args)
    )
    return full


def _dims(descent: _Descent, name: str, spec: Spec) -> tuple[tuple[PlannedAxis, ...], ...]:
    """Every factor of every dimension of one tensor."""
    axes = descent.aligned.axes.get(name, spec.axes)
    return tuple(tuple(_planned(descent, axis) for axis in factors) for factors in flat(axes))


def _planned(descent: _Descent, axis: str) -> PlannedAxis:
    """Where one axis comes from: as the alignment says, else the first entries, or the largest of too many."""
    if axis in descent.planned:
        return descent.planned[axis]
    take = descent.aligned.maps.get(axis)
    if take is None:
        size, parent_size = (sizes[axis] for sizes in descent.sizes)
        take = AxisMap(how="first" if size >= parent_size else "largest", size=size, parent_size=parent_size)
    group = f"dim/{descent.which}" if axis == "dim" else f"{descent.gene.key}/{axis}"
    descent.planned[axis] = PlannedAxis(axis=axis, group=group, take=take)
    return descent.planned[axis]


def _order(gene: Gene, name: str, dims: tuple[tuple[PlannedAxis, ...], ...], parent_axes: Axes) -> tuple[int, ...]:
    """For each of the child's factors, its place among the parent's; empty when that is the same."""
    mine = [planned.axis for dim in dims for planned in dim]
    theirs = [axis for factors in flat(parent_axes) for axis in factors]
    if mine == theirs:
        return ()
    if sorted(mine) != sorted(theirs) or len(set(mine)) < len(mine):
        raise ValueError(f"{gene.key}.{name}: axes {parent_axes} cannot be aligned with {mine}")
    return tuple(theirs.index(axis) for axis in mine)


def _channel_scales(source: Gene) -> tuple[str, ...]:
    """Tensors of the parent that multiply this branch's output channel by channel."""
    if source.block is None:
        return ()
    block_prefix = ".".join(source.prefix.split(".")[:2])
    return tuple(
        f"{block_prefix}.{path}.{name}"
        for _, path, part in source.block.parts()
        if isinstance(part, Modifier)
        for name in part.channel_scales(source.slot)
    )


def _structure(child: Blueprint, parent: Blueprint) -> list[str]:
    """What differs between the two beyond the parts themselves, and changes the function."""
    notes = []
    if child.norm != parent.norm:
        notes.append(f"norm {parent.norm} became {child.norm}")
    mine, theirs = {b.id: b for b in child.blocks}, {b.id: b for b in parent.blocks}
    if gone := [i for i in theirs if i not in mine]:
        notes.append(f"blocks {', '.join(gone)} removed")
    if [i for i in mine if i in theirs] != [i for i in theirs if i in mine]:
        notes.append("blocks reordered")
    before, after = _keys(parent), _keys(child)
    for block_id in (i for i in theirs if i in mine):
        if lost := [key for key in before[block_id] if key not in after[block_id]]:
            notes.append(f"{', '.join(lost)} removed")
        kept = [key for key in after[block_id] if key in before[block_id]]
        if kept != [key for key in before[block_id] if key in after[block_id]]:
            notes.append(f"extras of {block_id} reordered")
        if mine[block_id].parallel != theirs[block_id].parallel and len(mine[block_id].branches()) > 1:
            notes.append(f"{block_id} runs {'in parallel' if mine[block_id].parallel else 'in sequence'}")
    return notes + _loops(child, parent)


def _loops(child: Blueprint, parent: Blueprint) -> list[str]:
    """Recurrences that are gone or loop over other blocks; a new one starts with an adapter that changes nothing."""
    cores = [
        {loop.id: {b.id for b in side.blocks[loop.start : loop.end]} for loop in side.recurrences}
        for side in (child, parent)
    ]
    shared = {b.id for b in child.blocks} & {b.id for b in parent.blocks}
    notes = []
    for loop, core in cores[1].items():
        if loop not in cores[0]:
            notes.append(f"recurrence {loop} removed")
        elif core & shared != cores[0][loop] & shared:
            notes.append(f"recurrence {loop} loops over other blocks")
    return notes


def _keys(blueprint: Blueprint) -> dict[str, list[str]]:
    keys: dict[str, list[str]] = {block.id: [] for block in blueprint.blocks}
    for gene in blueprint.genes():
        if gene.block is not None:
            keys[gene.block.id].append(gene.key)
    return keys
