"""Beginning a run and going on with it: what it was begun with against what is given now. Called by `session`.

Settings that an earlier version lacked had their defaults; those it had and this one lacks are told and left out. Where
files lie may change, what stands in them may not.
"""

import hashlib
import json
import os
import platform
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from morphogen.blueprint.diff import changes
from morphogen.blueprint.record import understood
from morphogen.data.prepare import PreparedData, text_of
from morphogen.differences import Difference, differences, words
from morphogen.errors import InputError, RunError
from morphogen.experiment import Experiment
from morphogen.ops.paths import paths
from morphogen.reading import ROLES, local_paths, located, placeless
from morphogen.runfolder import commit, environment, library_versions
from morphogen.store.files import canonical_json, parsed_json
from morphogen.store.ledger import RESOLVED, Event, Start
from morphogen.store.ordinary import open_ordinary, read_ordinary
from morphogen.store.places import ENVIRONMENT
from morphogen.training.device import is_here
from morphogen.training.kernels import kernels_of
from morphogen.training.precision import Precision, check_settles, chosen
from morphogen.training.threads import default_threads

#: Settings of the experiment that may differ when a run is resumed: what may be added to its end, and who proposes
#: candidates, which is recorded with each.
MAY_DIFFER = frozenset(f"evolution.{name}" for name in ("generations", "repeat", "anneal_tokens", "proposer"))
MAY_CHANGE = (
    "--generations, --device, --executor, --workers, --timeout, --memory-limit, --checkpoint-tokens, --disk-budget, "
    "evolution.repeat, evolution.anneal_tokens, evolution.proposer, which checkpoints are kept, and where files lie"
)
#: A message names at most so many differences.
SHOWN = 3


def entered(
    folder: Path,
    events: Sequence[Event],
    experiment: Experiment,
    seed: int | None,
    device: str,
    prepared: PreparedData,
) -> tuple[int, dict[str, Any], tuple[str, ...]]:
    """The run's seed, its environment, and what is to be said of it: checked where it goes on.

    A run that goes on has the seed it had unless another is asked for, which is refused.
    """
    if not events:
        seed = experiment.train.seed if seed is None else seed
        told = environment(seed, device, default_threads(), prepared.environment())
        told["read"] = prepared.read()
        if is_here(place := torch.device(device)):
            told["kernels"] = {"kinds": kernels_of(experiment.model, place), "ops": paths(place)}
        told |= {"paths": places(experiment, folder), "init_checkpoint": checksum(experiment)}
        return seed, told, ()
    if not isinstance(start := events[0], Start):
        raise RunError(f"{folder}: the ledger does not begin with the start of a run")
    seed = start.seed if seed is None else seed
    told, remarks = begun(folder, start, experiment, seed, prepared.environment())
    return seed, told, remarks


def precise(events: Sequence[Event], experiment: Experiment, device: str) -> tuple[Experiment, dict[str, Any]]:
    """The experiment with `train.bf16` settled, and what is to be recorded of that: a run that goes on computes as it
    was begun, on whatever device."""
    asked = experiment.train.bf16
    if events and isinstance(start := events[0], Start):
        bf16 = start.experiment.get("train", {}).get("bf16") is True  # the earliest versions knew no other than fp32
        found = Precision(bf16, "as the run was begun")
    else:
        check_settles(experiment.train, torch.device(device))
        found = chosen(experiment.train, torch.device(device))
    return experiment.in_precision(found.bf16), {"asked": asked, "bf16": found.bf16, "why": found.why}


def begun(
    folder: Path, start: Start, experiment: Experiment, seed: int, data: Mapping[str, Any]
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Checks that a run may be gone on with.

    Gives its environment, with where its files are now, and what is otherwise than when the run began, and may be.

    Args:
        folder: The run's.
        start: The first event of its ledger.
        experiment: As given now, settled.
        seed: As given now.
        data: What `PreparedData.environment` tells now.

    Raises:
        RunError: Experiment, seed or text are not those it was begun with; the message says what differs, what may
            differ, and how to go on.
        InputError: The ledger's experiment or `environment.json` cannot be read.
    """
    there, removed = understood(Experiment, start.experiment, f"{folder}: the recorded experiment")
    told = read_environment(folder)
    wrong = [f"{path} is {words(old)} there and {words(new)} here" for path, old, new in settings(there, experiment)]
    if start.seed != seed:
        wrong.append(f"the seed is {start.seed} there and {seed} here")
    changed = other_text(folder / ENVIRONMENT, told["data"], json.loads(canonical_json(data)))
    if "init_checkpoint" in told:
        changed += other_weights(told["init_checkpoint"], experiment)
    versions = _versions(told)
    if wrong or changed:
        raise RunError(_another(folder, wrong, changed, versions))
    remarks = [f"{path} was {words(value)}; this version has no such setting" for path, value in removed]
    if versions:
        remarks.append(f"begun with {versions[0]}, now {versions[1]}: the same numbers are not promised any more")
    told = {**told, "paths": {**told.get("paths", {}), **places(experiment, folder)}}
    return told, tuple(remarks)


def settings(there: Experiment, here: Experiment) -> list[Difference]:
    """What of two experiments differs that may not; where files lie may, and blocks are told apart by their ids.

    `train.bf16: auto` is what it was settled to there."""
    there, here = there.in_precision(False), here.in_precision(there.train.in_bf16)
    one, other = (placeless(located(experiment)) for experiment in (there, here))
    plain, given = (it.model_dump(mode="json", exclude={"model"}) for it in (one, other))
    rest = differences(plain, given, MAY_DIFFER)
    return [*((f"model.{c.path}", c.before, c.after) for c in changes(one.model, other.model)), *rest]


def _another(folder: Path, wrong: list[str], changed: list[str], versions: tuple[str, str] | None) -> str:
    """Why a run cannot be gone on with as asked, and how it can be."""
    found = [*changed, *wrong]
    more = f"; and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    since = f" It was begun with {versions[0]}: defaults may have changed since." if versions and wrong else ""
    command = shlex.join(["morphogen", "run", str(folder / RESOLVED), "--out", str(folder), "--resume"])
    remedy = "Put back what it was begun with" if changed else f"As it was, it goes on with: {command}"
    return (
        f"{folder}: holds another experiment: {'; '.join(found[:SHOWN])}{more}.{since} With --resume may change: "
        f"{MAY_CHANGE}. {remedy}; or choose another --out"
    )


def other_weights(there: Any, experiment: Experiment) -> list[str]:
    """What of the weights that training starts from is not what it was. there: their `checksum` then."""
    if (path := experiment.train.init_checkpoint) is None or checksum(experiment) == there:
        return []
    return [f"train.init_checkpoint: {path} does not hold what it held then"]


def other_text(place: Path, there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """What of the text or its tokens is not what it was. InputError where what `place` says of it is damaged."""
    try:
        return [*_other_text(there, here)]
    except (KeyError, TypeError, AttributeError):
        raise InputError(f"{place}: cannot be read: data is damaged") from None


def _other_text(there: Mapping[str, Any], here: Mapping[str, Any]) -> Iterator[str]:
    if text_of(there) == text_of(here):
        return
    for role in ROLES:
        for old, new in zip(there["corpora"].get(role, []), here["corpora"].get(role, []), strict=False):
            if old["digest"] != new["digest"]:
                sizes = [f"{one['documents']:,} documents of {one['n_bytes']:,} bytes" for one in (old, new)]
                yield f"the text of {new['name']} ({new['source']}) has changed: {sizes[0]} there and {sizes[1]} here"
                return
    if there["tokenizer"] != here["tokenizer"]:
        yield "the tokenizer has changed: its tokens are not those that the run was begun with"
    else:
        yield "the text is encoded or split otherwise than when the run was begun"


def _versions(told: Mapping[str, Any]) -> tuple[str, str] | None:
    """Versions of what has changed since the run began, then and now; None where nothing has."""
    then = _with_commit(told["versions"], told["commit"]) | {"python": told.get("python", "unknown")}
    now = _with_commit(library_versions(), commit()) | {"python": platform.python_version()}
    changed = [name for name in now if name in then and then[name] != now[name]]
    changed += sorted(then.keys() - now.keys())
    if not changed:
        return None
    lists = (", ".join(f"{name} {versions.get(name, 'missing')}" for name in changed) for versions in (then, now))
    return next(lists), next(lists)


def _with_commit(versions: Mapping[str, str], commit: str | None) -> dict[str, str]:
    known = f"{versions.get('morphogen')}{f' at {commit}' if commit else ''}"
    return {**versions, "morphogen": known}


def places(experiment: Experiment, folder: Path) -> dict[str, str]:
    """Every path of the experiment, and how it leads there from the run's folder."""
    return {path: os.path.relpath(path, folder.resolve()) for path in local_paths(located(experiment)).values()}


def checksum(experiment: Experiment) -> str | None:
    """The SHA-256 of the checkpoint that training starts from; None where there is none."""
    path = experiment.train.init_checkpoint
    return None if path is None else file_checksum(Path(path), "train.init_checkpoint: ")


def file_checksum(path: Path, place: str = "") -> str:
    """The SHA-256 of a file. InputError, which begins with `place`, where it cannot be read."""
    try:
        with open_ordinary(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{place}{path}: cannot be read: {error.strerror or error}") from None


def read_environment(folder: Path) -> dict[str, Any]:
    """`environment.json` of a run; InputError when it cannot be read, or is not what a run writes."""
    path = folder / ENVIRONMENT
    try:
        told = parsed_json(read_ordinary(path))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None
    found: dict[str, Any] = told if isinstance(told, dict) else {}
    for name, kind in (("data", dict), ("versions", dict), ("threads", int), ("device", str), ("commit", str | None)):
        if name not in found or not isinstance(found[name], kind):
            raise InputError(f"{path}: cannot be read: {name} is missing or damaged")
    if not isinstance(found.get("paths", {}), dict):
        raise InputError(f"{path}: cannot be read: paths is damaged")
    if found["threads"] < 1:
        raise InputError(f"{path}: cannot be read: threads is {found['threads']}, expected at least 1")
    return found
