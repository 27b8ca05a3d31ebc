"""Merging the weights of several models into one: the same genes, aligned as inheritance aligns them.

θ_i are the weights of model i carried to the first model's architecture, w_i their weights, and with a base θ_0 the
task vectors are τ_i = θ_i − θ_0. Entries that not every model has, and tensors that are not trained, are the first
model's. Every method works tensor by tensor, in fp32. `fusion.merging` merges checkpoints, `inherit.descent` parents.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from morphogen.blueprint.schema import Blueprint
from morphogen.blueprint.stacked import stacked
from morphogen.blueprint.tensors import specs
from morphogen.candidate import Merging
from morphogen.errors import InputError
from morphogen.inherit.plan import plan
from morphogen.inherit.splice import Marks, Spliced, from_parent, splice
from morphogen.parts.contract.initial import stream

#: Vectors with a cosine beyond this are as good as parallel: an angle between them would be rounding.
PARALLEL = 0.9995


class Settings(NamedTuple):
    """weights: w_i. density: share of a task vector's entries that is kept. epsilon: of `della`, how far the chance to
    be dropped ranges. seed: of what is dropped; name: of the tensor at hand, which draws by itself."""

    weights: tuple[float, ...]
    density: float = 0.5
    epsilon: float = 0.2
    seed: int = 0
    name: str = ""


#: The models' tensors of one name, the base's where there is one, and the settings: to the merged tensor.
Merge = Callable[[Sequence[Tensor], Tensor | None, Settings], Tensor]


def linear(models: Sequence[Tensor], base: Tensor | None, how: Settings) -> Tensor:
    """Σ w_i θ_i / Σ w_i. Model soups, arXiv 2203.05482."""
    total = sum(how.weights)
    return _sum(models, [weight / total for weight in how.weights])


def slerp(models: Sequence[Tensor], base: Tensor | None, how: Settings) -> Tensor:
    """sin((1−t)Ω)/sin Ω · θ_1 + sin(tΩ)/sin Ω · θ_2, Ω the angle between the two tensors, t = w_2 / (w_1 + w_2).

    Linear where they are parallel. Shoemake 1985, Animating rotation with quaternion curves.
    """
    (a, b), t = models, how.weights[1] / sum(how.weights)
    norms = torch.linalg.vector_norm(a) * torch.linalg.vector_norm(b)
    cosine = float((a * b).sum() / norms) if float(norms) else 1.0
    if abs(cosine) > PARALLEL:
        return (1 - t) * a + t * b
    angle = torch.acos(torch.tensor(cosine, dtype=torch.float64))
    near, far = (float(torch.sin(share * angle) / torch.sin(angle)) for share in (1 - t, t))
    return near * a + far * b


def task_arithmetic(models: Sequence[Tensor], base: Tensor | None, how: Settings) -> Tensor:
    """θ_0 + Σ w_i τ_i. arXiv 2212.04089."""
    start, tasks = _tasks(models, base)
    return start + _sum(tasks, how.weights)


def ties(models: Sequence[Tensor], base: Tensor | None, how: Settings) -> Tensor:
    """θ_0 + mean of w_i τ̂_i over those whose sign is that of Σ w_i τ̂_i; τ̂_i has the largest `density` of τ_i.

    With equal weights λ that is the paper's θ_0 + λ τ_m. TIES, arXiv 2306.01708.
    """
    start, tasks = _tasks(models, base)
    return start + _elected([_trimmed(task, how.density) for task in tasks], how.weights)


def dare_ties(models: Sequence[Tensor], base: Tensor | None, how: Settings) -> Tensor:
    """As `ties`, but entries of τ_i stay with probability `density`, and are then divided by it. DARE, 2311.03099."""
    start, tasks = _tasks(models, base)
    kept = []
    for i, task in enumerate(tasks):
        stays = torch.rand(task.shape, generator=stream(how.seed, str(i), how.name)) < how.density
        kept.append(task * stays / how.density)
    return start + _elected(kept, how.weights)


def della(models: Sequence[Tensor], base: Tensor | None, how: Settings) -> Tensor:
    """As `dare_ties`, but an entry's chance to be dropped falls with its magnitude's rank in its row.

    p falls linearly from (1 − density) + epsilon/2 to (1 − density) − epsilon/2, within [0, 1); what stays is divided
    by 1 − p. MAGPRUNE of DELLA, arXiv 2406.11617.
    """
    start, tasks = _tasks(models, base)
    kept = []
    for i, task in enumerate(tasks):
        p = _chances(task, how)
        stays = torch.rand(task.shape, generator=stream(how.seed, str(i), how.name)) >= p
        kept.append(task * stays / (1.0 - p))
    return start + _elected(kept, how.weights)


#: Methods that work tensor by tensor; those that need a base.
METHODS: Mapping[str, Merge] = {f.__name__: f for f in (linear, slerp, task_arithmetic, ties, dare_ties, della)}
NEED_BASE = frozenset({"task_arithmetic", "ties", "dare_ties", "della"})
PASSTHROUGH = "passthrough"


def _sum(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    return torch.stack([weight * tensor for weight, tensor in zip(weights, tensors, strict=True)]).sum(0)


def _tasks(models: Sequence[Tensor], base: Tensor | None) -> tuple[Tensor, list[Tensor]]:
    assert base is not None  # `check` has asked for it
    return base, [model - base for model in models]


def _trimmed(task: Tensor, density: float) -> Tensor:
    """The largest `density` of the entries by magnitude, the rest zero; at least one."""
    count = max(1, round(density * task.numel()))
    if count >= task.numel():
        return task
    places = task.abs().flatten().topk(count).indices
    kept = torch.zeros_like(task).flatten()
    kept[places] = task.flatten()[places]
    return kept.view_as(task)


def _elected(tasks: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """The mean of w_i τ_i over those of the elected sign; zero where there are none."""
    weighted = torch.stack([weight * task for weight, task in zip(weights, tasks, strict=True)])
    agrees = weighted.sign() == weighted.sum(0).sign()
    agrees = agrees & (weighted != 0)
    return (weighted * agrees).sum(0) / agrees.sum(0).clamp(min=1)


def _chances(task: Tensor, how: Settings) -> Tensor:
    """p of every entry; the largest of a row is dropped least."""
    size = task.shape[-1] if task.dim() else 1
    rank = task.abs().reshape(-1, size).argsort(dim=-1, stable=True).argsort(dim=-1)
    share = rank / max(1, size - 1)  # 0 for the smallest, 1 for the largest
    p = (1.0 - how.density) + how.epsilon * (0.5 - share)
    return p.clamp(0.0, 1.0 - 1e-3).view(task.shape)


class Model(NamedTuple):
    """A blueprint and its weights."""

    blueprint: Blueprint
    state: Mapping[str, Tensor]


def merge(
    method: str, models: Sequence[Model], how: Settings, base: Model | None = None, *, ids: Sequence[str] | None = None
) -> Model:
    """`mix`, and no more than the model."""
    return mix(method, models, how, base, ids=ids)[0]


def mix(
    method: str, models: Sequence[Model], how: Settings, base: Model | None = None, *, ids: Sequence[str] | None = None
) -> tuple[Model, frozenset[str]]:
    """Merges models into one of the first's architecture, or with `passthrough` into the blocks of all, in order.

    Args:
        method: One of `METHODS`, or `passthrough`.
        models: Each a blueprint with its state dict.
        how: Weights and shares.
        base: What the others were trained from, for methods with task vectors. Where it has not what the first has,
            nothing is merged.
        ids: Of the blocks with `passthrough`; see `stacked`.

    Returns:
        The model, and the names of its tensors that are not the first's alone.

    Raises:
        InputError: Models without a gene in common, or that cannot be stacked.
    """
    if method == PASSTHROUGH:
        return _stacked(models, ids), frozenset()
    first = models[0]
    table = specs(first.blueprint)
    aligned = [_aligned(model, first, i) for i, model in enumerate(models[1:], start=2)]
    origin = _aligned(base, first) if base else None
    state: dict[str, Tensor] = {}
    several = set[str]()
    for name, (_, _, spec) in table.items():
        mine, others = first.state[name].float(), [each[name] for each in aligned]
        held = [mask for _, mask in (*others, *([origin[name]] if origin else []))]
        if not spec.trained or any(mask is not None and not bool(mask.any()) for mask in held):
            state[name] = mine.clone()
            continue
        start = origin[name][0].float() if origin else None
        merged = METHODS[method]([mine, *(each.float() for each, _ in others)], start, how._replace(name=name))
        for mask in held:
            merged = merged if mask is None else torch.where(mask, merged, mine)
        state[name] = merged
        several.add(name)
    return Model(first.blueprint, state), frozenset(several)


def _aligned(model: Model, first: Model, number: int | None = None) -> dict[str, tuple[Tensor, Tensor | None]]:
    """A model's weights in the first's places, each with where it has any (None: everywhere). number: of a model that
    has to have some; a base may have none."""
    if model.blueprint == first.blueprint:
        return {name: (tensor, None) for name, tensor in model.state.items()}
    drawn = plan(first.blueprint, [model.blueprint])
    if number and not any(item.source for item in drawn.tensors if item.tensor.startswith("blocks.")):
        raise InputError(f"merge: model {number} and the first have no gene in common, so that no weight is another's")
    spliced = splice(drawn, [from_parent(dict(model.state))], 0)
    none = {item.tensor for item in drawn.tensors if item.source is None}
    found = {}
    for name, tensor in spliced.state.items():
        carried = spliced.marks[name].carried
        found[name] = (tensor, torch.zeros(tensor.shape, dtype=torch.bool) if name in none else carried)
    return found


def _stacked(models: Sequence[Model], ids: Sequence[str] | None) -> Model:
    """The blocks of all models, one model after another, unchanged; embedding, norm and head are the first's.

    Depth up-scaling, arXiv 2312.15166; passthrough of mergekit, arXiv 2403.13257.
    """
    blueprint, places = stacked([model.blueprint for model in models], ids)
    state = {name: tensor for name, tensor in models[0].state.items() if not name.startswith("blocks.")}
    for place, (which, position) in enumerate(places):
        state |= {
            f"blocks.{place}.{name.split('.', 2)[2]}": tensor
            for name, tensor in models[which].state.items()
            if name.startswith(f"blocks.{position}.")
        }
    return Model(blueprint, {name: state[name].clone() for name in specs(blueprint)})


def merged(
    how: Merging, parents: Sequence[tuple[Blueprint, Spliced]], child: Blueprint, base: Callable[[], Model] | None
) -> tuple[Blueprint, Spliced]:
    """Parents with their weights made one, as an edit says, and of what architecture. Moments are the first's.

    child: whose ids new blocks have. base: what all weights began as, for methods with task vectors. InputError where
    there is none.
    """
    if how.method in NEED_BASE and base is None:
        raise InputError(f"merge_{how.method} needs what the parents' weights began as")
    origin = base() if base is not None and how.method in NEED_BASE else None
    models = [Model(blueprint, spliced.state) for blueprint, spliced in parents]
    ids = [block.id for block in child.blocks]
    made, several = mix(how.method, models, Settings(how.weights, how.density, how.epsilon, how.seed), origin, ids=ids)
    whole = from_parent(dict(made.state), 0, parents[0][1].moments, given=True)
    if how.method != PASSTHROUGH:
        whole.marks = {name: Marks(merged=name in several) for name in whole.state}
        return made.blueprint, whole
    _, places = stacked([model.blueprint for model in models])
    own = len(models[0].blueprint.blocks)
    for name in whole.marks:
        if name.startswith("blocks.") and int(name.split(".")[1]) >= own:
            whole.marks[name] = Marks(parent=places[int(name.split(".")[1])][0])
    return made.blueprint, whole
