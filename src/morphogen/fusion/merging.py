"""Merging the weights of several models into one: the same genes, aligned as inheritance aligns them.

θ_i are the weights of model i carried to the first model's architecture, w_i their weights, and with a base θ_0 the
task vectors are τ_i = θ_i − θ_0. Entries that not every model has, and tensors that are not trained, are the first
model's. Every method works tensor by tensor, in fp32.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from morphogen.blueprint.schema import Block, Blueprint
from morphogen.blueprint.tensors import specs
from morphogen.candidate import Tokens
from morphogen.errors import InputError, unknown
from morphogen.inherit.checkpoint import load_checkpoint, save_checkpoint
from morphogen.inherit.descent import from_parent
from morphogen.inherit.plan import plan
from morphogen.inherit.provenance import Provenance, check_tokenizers
from morphogen.inherit.splice import splice
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


# ------------------------------------------------------------------------------------------------- whole models


class Model(NamedTuple):
    """A blueprint and its weights."""

    blueprint: Blueprint
    state: Mapping[str, Tensor]


def weights_for(method: str, given: Sequence[float], models: int) -> tuple[float, ...]:
    """A weight for each model. One alone is the second's share of two that are averaged, and else that of every delta;
    without any, all are alike: 1 for a delta."""
    averages = method in ("linear", "slerp")
    if len(given) == 1 and averages and models == 2:
        return (1.0 - given[0], given[0])
    if len(given) == 1:
        return (given[0],) * models
    return tuple(given) or (1.0,) * models


def check(method: str, models: int, based: bool, how: Settings) -> None:
    """InputError for what does not go together."""
    if method not in (*METHODS, PASSTHROUGH):
        raise InputError(unknown("--method", method, [*METHODS, PASSTHROUGH]))
    if len(how.weights) != models:
        raise InputError(f"--weight: got {len(how.weights)} weights for {models} models, expected one each")
    if wrong := [weight for weight in how.weights if not math.isfinite(weight)]:
        raise InputError(f"--weight: got {wrong[0]}, expected finite numbers")
    if method == "slerp" and models != 2:
        raise InputError(f"--method slerp: got {models} models, expected two")
    if method in NEED_BASE and not based:
        raise InputError(f"--method {method}: needs --base, the model that the others were trained from")
    if based and method not in NEED_BASE:
        raise InputError(f"--base: has no effect with --method {method}")
    if method in ("linear", "slerp") and not sum(how.weights) > 0:
        raise InputError(f"--weight: the sum is {sum(how.weights):g}, expected more than 0")
    if not 0.0 < how.density <= 1.0:
        raise InputError(f"--density: got {how.density:g}, expected more than 0 and at most 1")
    if not 0.0 <= how.epsilon <= 1.0:
        raise InputError(f"--epsilon: got {how.epsilon:g}, expected 0 to 1")


def merge(method: str, models: Sequence[Model], how: Settings, base: Model | None = None) -> Model:
    """Merges models into one of the first's architecture, or with `passthrough` into the blocks of all, in order.

    Args:
        method: One of `METHODS`, or `passthrough`.
        models: Each a blueprint with its state dict.
        how: Weights and shares.
        base: What the others were trained from, for methods with task vectors.

    Raises:
        InputError: For what does not go together, and models without a gene in common.
    """
    check(method, len(models), base is not None, how)
    if method == PASSTHROUGH:
        return _stacked(models)
    first = models[0]
    table = specs(first.blueprint)
    aligned = [_aligned(model, first, i) for i, model in enumerate(models[1:], start=2)]
    origin = _aligned(base, first, 0) if base else None
    state: dict[str, Tensor] = {}
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
    return Model(first.blueprint, state)


def _aligned(model: Model, first: Model, number: int) -> dict[str, tuple[Tensor, Tensor | None]]:
    """A model's weights in the first's places, each with where it has any (None: everywhere)."""
    if model.blueprint == first.blueprint:
        return {name: (tensor, None) for name, tensor in model.state.items()}
    drawn = plan(first.blueprint, [model.blueprint])
    if not any(item.source for item in drawn.tensors if item.tensor.startswith("blocks.")):
        what = "the base" if number == 0 else f"model {number}"
        raise InputError(f"merge: {what} and the first have no gene in common, so that no weight is another's")
    spliced = splice(drawn, [from_parent(dict(model.state))], 0)
    none = {item.tensor for item in drawn.tensors if item.source is None}
    found = {}
    for name, tensor in spliced.state.items():
        carried = spliced.marks[name].carried
        found[name] = (tensor, torch.zeros(tensor.shape, dtype=torch.bool) if name in none else carried)
    return found


def _stacked(models: Sequence[Model]) -> Model:
    """The blocks of all models, one model after another, unchanged; embedding, norm and head are the first's.

    Depth up-scaling, arXiv 2312.15166; passthrough of mergekit, arXiv 2403.13257.
    """
    first, blocks, state = models[0].blueprint, list[Block](), dict[str, Tensor]()
    state |= {name: tensor for name, tensor in models[0].state.items() if not name.startswith("blocks.")}
    for number, (blueprint, weights) in enumerate(models, start=1):
        if (blueprint.emb.dim, blueprint.norm) != (first.emb.dim, first.norm):
            raise InputError(
                f"merge: model {number} has width {blueprint.emb.dim} and {blueprint.norm}, the first {first.emb.dim} "
                f"and {first.norm}; passthrough needs them equal"
            )
        if blueprint.recurrences:
            raise InputError(f"merge: model {number} has recurrences, whose places passthrough cannot keep")
        for i, block in enumerate(blueprint.blocks):
            place = len(blocks)
            state |= {
                f"blocks.{place}.{name.split('.', 2)[2]}": tensor
                for name, tensor in weights.items()
                if name.startswith(f"blocks.{i}.")
            }
            taken = {each.id for each in blocks}
            renamed = next(name for k in range(10**9) if (name := f"{block.id}_{k}") not in taken)
            again = {"id": renamed, "origin": block.id} if block.id in taken else {}
            blocks.append(block.model_copy(update=again))
    made = Blueprint.model_validate({**first.to_json(), "blocks": [block.model_dump(mode="json") for block in blocks]})
    return Model(made, {name: state[name].clone() for name in specs(made)})


@dataclass(frozen=True)
class Merged:
    """What a merge wrote."""

    checkpoint: Path
    parameters: int
    blocks: int


def merge_checkpoints(
    files: Sequence[Path], out: Path, method: str, how: Settings, *, base: Path | None = None, force: bool = False
) -> Merged:
    """Merges checkpoints and writes one.

    Args:
        files: Of the models; the architecture is the first's.
        out: The checkpoint to write.
        method: One of `METHODS`, or `passthrough`.
        how: Weights and shares.
        base: The checkpoint that the others were trained from.
        force: Whether what lies at `out` is overwritten.

    Raises:
        InputError: A checkpoint cannot be read, tokenizers differ, `out` is there, or it does not go together.
        RunError: It cannot be written.
    """
    check(method, len(files), base is not None, how)
    if out.exists() and not force:
        raise InputError(f"{out}: is there already; --force overwrites it")
    every = [*files, *([base] if base else [])]
    loaded = [load_checkpoint(path, measured=True) for path in every]
    behind = [Provenance.from_metadata(metadata, path) for (_, _, metadata), path in zip(loaded, every, strict=True)]
    check_tokenizers([each.tokenizer for each in behind], [str(path) for path in every])
    models = [Model(blueprint, state) for state, blueprint, _ in loaded]
    made = merge(method, models[: len(files)], how, models[-1] if base else None)
    tokens = max((each.tokens for each in behind), key=lambda each: each.lineage)
    mixed = {"method": method, "weights": how.weights, "density": how.density, "epsilon": how.epsilon, "seed": how.seed}
    said = Provenance(
        behind[0].tokenizer,
        behind[0].name,
        behind[0].vocabulary,
        Tokens(own=0, lineage=tokens.lineage, unique=tokens.unique),
    )
    names = [path.stem for path in files]
    extra = {**said.to_metadata(), "merged": json.dumps({**mixed, "models": names, "base": base and base.stem})}
    save_checkpoint(out, made.state, made.blueprint, extra)
    trained = [spec for _, _, spec in specs(made.blueprint).values() if spec.trained]
    parameters = sum(torch.Size(spec.shape).numel() for spec in trained)
    return Merged(out, parameters, len(made.blueprint.blocks))
