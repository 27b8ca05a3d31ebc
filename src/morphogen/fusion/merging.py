"""Merging models and checkpoints into one: what `morphogen merge` does. The methods are in `inherit.merging`."""

import json
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from morphogen.blueprint.tensors import specs
from morphogen.candidate import Tokens
from morphogen.errors import InputError, unknown
from morphogen.inherit import merging
from morphogen.inherit.checkpoint import load_checkpoint, save_checkpoint
from morphogen.inherit.merging import METHODS, NEED_BASE, PASSTHROUGH, Model, Settings
from morphogen.inherit.provenance import Provenance, check_tokenizers

#: Settings that not every method reads -> the methods that do.
READ_BY = {
    "weight": frozenset(METHODS),
    "density": frozenset({"ties", "dare_ties", "della"}),
    "epsilon": frozenset({"della"}),
    "seed": frozenset({"dare_ties", "della"}),
}


def check_read(method: str, given: Collection[str]) -> None:
    """InputError for a setting that was given and that the method does not read."""
    for name in given:
        if method in (*METHODS, PASSTHROUGH) and method not in READ_BY[name]:
            raise InputError(f"--{name}: has no effect with --method {method}")


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
    """As `inherit.merging.merge`. InputError also for what does not go together, and where nothing is merged."""
    check(method, len(models), base is not None, how)
    made, several = merging.mix(method, models, how, base)
    if base is not None and not any(name.startswith("blocks.") for name in several):
        raise InputError("merge: the base and the models have no gene in common, so that no weight is another's")
    return made


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
        donors=tuple(donor for each in behind[: len(files)] for donor in each.donors),
    )
    names = [path.stem for path in files]
    extra = {**said.to_metadata(), "merged": json.dumps({**mixed, "models": names, "base": base and base.stem})}
    save_checkpoint(out, made.state, made.blueprint, extra)
    trained = [spec for _, _, spec in specs(made.blueprint).values() if spec.trained]
    parameters = sum(torch.Size(spec.shape).numel() for spec in trained)
    return Merged(out, parameters, len(made.blueprint.blocks))
