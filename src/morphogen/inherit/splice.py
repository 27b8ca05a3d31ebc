"""Carrying a plan out on tensors, with a count of what was carried and what was drawn afresh."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from morphogen.blueprint.diff import apply
from morphogen.blueprint.schema import Blueprint
from morphogen.candidate import Inheritance, Job
from morphogen.errors import InputError
from morphogen.inherit.checkpoint import load_checkpoint
from morphogen.inherit.plan import Plan, TensorPlan, plan
from morphogen.network import initial_state
from morphogen.parts.base import AxisMap, Init
from morphogen.parts.initial import draw, stream
from morphogen.parts.transforms import transform

State = dict[str, Tensor]


@dataclass(frozen=True)
class Marks:
    """What became of a tensor's entries over one or several splices.

    carried: 1 where the entry comes from the first ancestor; None when all do. resized: its shape changed on the way.
    """

    carried: Tensor | None = None
    resized: bool = False


@dataclass(frozen=True)
class Axis:
    """A resolved axis: entry `to[i]` of the child reads the parent's `of[i]`, or the mean of `groups[i]`."""

    size: int
    to: tuple[int, ...]
    of: tuple[int, ...]
    groups: tuple[tuple[int, ...], ...] = ()

    @property
    def fresh(self) -> list[int]:
        """Entries of the child that nothing is carried to."""
        return sorted(set(range(self.size)) - set(self.to))


@dataclass
class Spliced:
    """A child's state dict and the marks of its tensors."""

    state: State
    marks: dict[str, Marks] = field(default_factory=dict)

    def report(self, exact: bool, notes: Sequence[str]) -> Inheritance:
        """Counts of entries: carried in tensors of unchanged shape, carried in others, fresh."""
        inherited = resized = fresh = 0
        for name, tensor in self.state.items():
            mark = self.marks[name]
            carried = tensor.numel() if mark.carried is None else int(mark.carried.sum())
            fresh += tensor.numel() - carried
            if mark.resized:
                resized += carried
            else:
                inherited += carried
        return Inheritance(inherited=inherited, resized=resized, fresh=fresh, exact=exact, notes=tuple(notes))


def inherit(
    child: Blueprint,
    parents: Sequence[tuple[Blueprint, Mapping[str, Tensor]]],
    *,
    sources: Mapping[str, int] | None = None,
    seed: int = 0,
) -> tuple[State, Inheritance]:
    """The child's state dict, spliced from its parents', and the report. The parents' tensors are not touched.

    A child whose vocabulary is null takes its first parent's. InputError where a state is not its blueprint's.
    """
    whole = [(_with_vocab(blueprint, state), state) for blueprint, state in parents]
    if child.emb.vocab is None and whole:
        child = child.with_vocab(whole[0][0].context().vocab)
    drawn = plan(child, [blueprint for blueprint, _ in whole], sources)
    spliced = splice(drawn, [Spliced(dict(state), {n: Marks() for n in state}) for _, state in whole], seed)
    return spliced.state, spliced.report(drawn.exact, drawn.notes)


def _with_vocab(blueprint: Blueprint, state: Mapping[str, Tensor]) -> Blueprint:
    if blueprint.emb.vocab is None and "emb.weight" in state:
        return blueprint.with_vocab(state["emb.weight"].shape[0])
    return blueprint


def splice_job(job: Job, seed: int) -> tuple[State, Inheritance]:
    """The state dict that a candidate starts from.

    The recorded edits are made one after another and each is spliced, so that a chain of exact edits is exact.
    InputError when a parent's checkpoint is missing, damaged, or of another blueprint.
    """
    target = Blueprint.model_validate(job.candidate.blueprint)
    if not job.parents:
        state = initial_state(target, seed)
        fresh = sum(tensor.numel() for tensor in state.values())
        return state, Inheritance(inherited=0, resized=0, fresh=fresh, exact=False, notes=("no parent",))
    loaded = []
    for parent in job.parents:
        path = Path(job.run_dir) / parent.checkpoint
        state, blueprint, _ = load_checkpoint(path)
        if blueprint != Blueprint.model_validate(parent.blueprint):
            raise InputError(f"{path}: holds the weights of another blueprint than candidate {parent.id}")
        loaded.append((blueprint, Spliced(state, {name: Marks() for name in state})))
    return splice_edits(target, loaded, job, seed)


def splice_edits(
    target: Blueprint, loaded: Sequence[tuple[Blueprint, Spliced]], job: Job, seed: int
) -> tuple[State, Inheritance]:
    """Splice through the candidate's edits, from its loaded parents to `target`."""
    exact = True
    notes: list[str] = []
    here, spliced = loaded[0]
    for step, edit in enumerate(one for whole in job.candidate.edits for one in whole.single()):
        following = apply(here, edit.changes)
        if edit.sources:
            others, parts = [blueprint for blueprint, _ in loaded], [weights for _, weights in loaded]
            drawn = plan(following, others, edit.sources)
        else:
            drawn, parts = plan(following, [here]), [spliced]
        spliced = splice(drawn, parts, seed + step)
        exact, notes, here = exact and drawn.exact, [*notes, *drawn.notes], following
    if here != target:
        raise InputError(f"candidate {job.candidate.id}: its recorded edits do not lead to its blueprint")
    return spliced.state, spliced.report(exact, notes)


def splice(drawn: Plan, parents: Sequence[Spliced], seed: int) -> Spliced:
    """Carry out a plan. Fresh entries derive from `seed` and the gene; every tensor of the result is a new one."""
    parents = _with_derived(drawn, parents)
    kept = _survivors(drawn, parents)
    dtype = next(iter(parents[0].state.values())).dtype if parents else torch.float32
    out = Spliced({})
    for item in drawn.tensors:
        out.state[item.tensor], out.marks[item.tensor] = _tensor(item, parents, kept, seed, dtype)
    return out


def _with_derived(drawn: Plan, parents: Sequence[Spliced]) -> Sequence[Spliced]:
    """The parents, with what the plan wants computed of their tensors beside these."""
    if not drawn.derived:
        return parents
    made = [Spliced(dict(parent.state), dict(parent.marks)) for parent in parents]
    for item in drawn.derived:
        parent = parents[item.parent]
        tensors = [parent.state[name] for name in item.sources]
        tensor = transform(item.transform, tensors, item.args).to(tensors[0].dtype)
        whole = all(parent.marks[name].carried is None for name in item.sources)
        carried = None if whole else torch.zeros(tensor.shape, dtype=torch.bool)
        made[item.parent].state[item.name] = tensor
        made[item.parent].marks[item.name] = Marks(carried, resized=True)
    return made


def _tensor(
    item: TensorPlan, parents: Sequence[Spliced], kept: Mapping[str, tuple[int, ...]], seed: int, dtype: torch.dtype
) -> tuple[Tensor, Marks]:
    if item.source is None or item.parent is None:
        return _drawn(item, seed).to(dtype), Marks(torch.zeros(item.shape, dtype=torch.bool))
    source, marks = parents[item.parent].state[item.source].detach().cpu(), parents[item.parent].marks[item.source]
    if item.verbatim and tuple(source.shape) == item.shape:
        return source.clone(memory_format=torch.contiguous_format), marks
    if item.clear:
        return torch.zeros(item.shape, dtype=dtype), Marks(torch.zeros(item.shape, dtype=torch.bool))
    axes = [_resolve(planned.take, kept.get(planned.group)) for dim in item.dims for planned in dim]
    names = [planned.axis for dim in item.dims for planned in dim]
    sizes = [axis.size for axis in axes]
    whole = all(not axis.fresh for axis in axes)
    out = torch.empty(sizes, dtype=dtype) if whole else _drawn(item, seed).to(dtype).reshape(sizes)
    carried = _factored(source.to(dtype), item)
    flags = torch.ones(carried.shape, dtype=torch.bool) if marks.carried is None else _factored(marks.carried, item)
    for k, axis in enumerate(axes):
        carried, flags = _take(carried, k, axis), _take(flags, k, axis)
    if item.scale != 1.0:
        carried, out = (carried.double() * item.scale).to(dtype), (out.double() * item.scale).to(dtype)
    mark = torch.zeros(sizes, dtype=torch.bool)
    _put(out, carried, axes)
    _put(mark, flags, axes)
    for k, (name, axis) in enumerate(zip(names, axes, strict=True)):
        if axis.fresh and name in item.zero:
            out.index_fill_(k, torch.tensor(axis.fresh), 0.0)
    for k, (name, axis) in enumerate(zip(names, axes, strict=True)):
        if axis.fresh and name in item.mean:
            weights = [parents[item.parent].state[w].to(out) for w in item.weights]
            _fill_mean(out, k, axis, weights)
    resized = marks.resized or tuple(source.shape) != item.shape
    done = None if bool(mark.all()) else mark.reshape(item.shape)
    return out.reshape(item.shape), Marks(done, resized)


def _factored(source: Tensor, item: TensorPlan) -> Tensor:
    """A parent's tensor with one dimension per factor, in the child's order."""
    sizes = [planned.take.parent_size for dim in item.dims for planned in dim]
    if not item.order:
        return source.reshape(sizes)
    theirs = [size for _, size in sorted(zip(item.order, sizes, strict=True))]
    return source.reshape(theirs).permute(item.order)


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
    return x.index_select(k, torch.tensor(axis.of))


def _put(out: Tensor, block: Tensor, axes: Sequence[Axis]) -> None:
    """Write `block` where the axes say, in place."""
    if all(axis.to == tuple(range(len(axis.to))) for axis in axes):
        out[tuple(slice(len(axis.to)) for axis in axes)] = block
    else:
        grid = torch.meshgrid(*(torch.tensor(axis.to) for axis in axes), indexing="ij")
        out[grid] = block


def _fill_mean(out: Tensor, k: int, axis: Axis, weights: Sequence[Tensor]) -> None:
    """Fresh entries along axis k become the mean of the carried ones, each times its channel's weights; in place."""
    old = out.index_select(k, torch.tensor(axis.to))
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


def _survivors(drawn: Plan, parents: Sequence[Spliced]) -> dict[str, tuple[int, ...]]:
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
            view = _factored(source, item).double()
            norm = view.square().sum([i for i in range(view.dim()) if i != k])
            scores[planned.group] = scores[planned.group] + norm if planned.group in scores else norm
    return {
        group: tuple(sorted(torch.argsort(score, descending=True, stable=True)[: sizes[group]].tolist()))
        for group, score in scores.items()
    }
