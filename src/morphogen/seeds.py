"""A candidate as what the next search begins with, and a run's frontier put away: experiments in YAML with weights
beside them. A comment in each says where it comes from, what was measured of it, and by which edits it came to be.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from morphogen.analysis.recorded import Recorded
from morphogen.analysis.undoing import lineage_edits
from morphogen.blueprint.tensors import specs
from morphogen.blueprint.yaml import dumps
from morphogen.candidate import Candidate, Report
from morphogen.continued import Continued, Forebear
from morphogen.errors import InputError, RunError, unknown
from morphogen.escape import visible
from morphogen.experiment import Experiment
from morphogen.inherit.checkpoint import load_checkpoint, load_whole, save_checkpoint
from morphogen.inherit.excerpts import CARRIED, FOLDER, excerpts, layers_taken
from morphogen.inherit.provenance import CONTINUES
from morphogen.reading import with_sources
from morphogen.report.wording import number
from morphogen.runfolder import check_files, remove_checkpoints
from morphogen.search.space import Design
from morphogen.store.files import canonical_json, write_atomic
from morphogen.store.frontier import Frontier
from morphogen.store.ledger import FILE as LEDGER
from morphogen.store.ledger import Ledger

#: What a seed says of itself, and by which an older one is known.
TITLE = "# Seed: candidate "
SUFFIX = ".safetensors"
#: What becomes of checkpoints in an archive.
Kept = Literal["drop", "bf16", "full"]


@dataclass(frozen=True)
class Seed:
    """What was written. checkpoint: None where the next run begins with fresh weights."""

    config: Path
    checkpoint: Path | None
    notes: tuple[str, ...] = ()


def export_seed(
    path: Path,
    id: str,
    config: Path,
    *,
    checkpoint: Path | None = None,
    checkpoint_dir: Path | None = None,
    force: bool = False,
) -> Seed:
    """Writes a candidate as an experiment that begins with it: the run's, with its architecture, its settings of
    training, and its weights, whose tokens the next run counts.

    Args:
        path: The run's folder, or its frontier.json.
        id: Of the candidate.
        config: The YAML file to write.
        checkpoint: Where to put its weights; None: the experiment begins with fresh ones. A name that ends otherwise
            than in `.safetensors` is changed, since no pickle is ever written.
        checkpoint_dir: Where the run's checkpoints lie now, if not where they were.
        force: Whether to overwrite a file that is no older seed.

    Raises:
        InputError: There is no such candidate, its weights are gone, or a file of something else is in the way.
        RunError: Nothing can be written.
    """
    run, notes = Recorded.read(path), list[str]()
    design = design_of(run, id)
    if config.suffix not in (".yaml", ".yml"):
        raise InputError(f"--out-config: {config}: expected a name that ends in .yaml")
    check_free(config, "--out-config", force)
    if checkpoint is not None and checkpoint.suffix != SUFFIX:
        checkpoint = checkpoint.with_suffix(SUFFIX)
        notes.append(f"weights are kept as safetensors only, so that they go to {checkpoint}")
    if checkpoint is None:
        notes.append("the next run begins with fresh weights; --out-checkpoint hands on those of the candidate")
    else:
        source = checkpoint_of(run, id, checkpoint_dir)
        if checkpoint.exists() and checkpoint.resolve() == source.resolve():
            raise InputError(f"--out-checkpoint: {checkpoint}: is the run's own; expected another file")
        if any((place / LEDGER).exists() for place in checkpoint.absolute().parents[:2]):
            raise InputError(f"--out-checkpoint: {checkpoint}: lies among a run's own files; choose another place")
        if checkpoint.exists() and not force and not _is_seed(checkpoint):
            raise InputError(f"--out-checkpoint: {checkpoint}: is there already, and is no seed; --force overwrites it")
        whole = load_whole(source)
        carried = excerpts([whole.blueprint], checkpoint.parent)
        metadata = {**whole.metadata, CONTINUES: _continued(run, id).model_dump_json(), **_told(carried)}
        save_checkpoint(checkpoint, whole.state, whole.blueprint, metadata, whole.averages)
        design = _carrying(design, carried, checkpoint, config)
        if carried:
            notes.append(f"layers of other models go along, in {checkpoint.parent / FOLDER}")
        if donors := run.experiment.evolution.donors:
            notes.append(f"evolution.donors names {', '.join(donors)}, which the next search takes layers from")
        if run.experiment.evolution.twin_share:
            notes.append("rank_by is 'inherited': twins would begin with nothing, beside what goes on")
    write_seed(run, id, design, config, checkpoint)
    return Seed(config, checkpoint, tuple(notes))


def _told(carried: Mapping[str, str]) -> dict[str, str]:
    """What a checkpoint says of the models whose excerpts lie beside it."""
    return {CARRIED: canonical_json(dict(carried))} if carried else {}


def _carrying(design: Design, carried: Mapping[str, str], checkpoint: Path, config: Path) -> Design:
    """The design with excerpts beside the checkpoint in the place of models, as seen from the experiment's file."""
    here = os.path.relpath(checkpoint.parent.resolve(), config.resolve().parent)
    seen = {model: os.path.join(".", here, folder) for model, folder in carried.items()}
    blueprint = with_sources(design.blueprint, lambda _, model: seen.get(model, model))
    return design._replace(blueprint=blueprint)


def design_of(run: Recorded, id: str) -> Design:
    """A candidate's architecture and training. InputError with the nearest name where the run has none of that id, or
    has not trained it."""
    trained = [candidate.id for candidate in run.trained]
    if id not in trained:
        raise InputError(unknown(f"--id (of {run.folder})", id, trained))
    return run.design(id)


def weights_of(run: Recorded, id: str) -> Path:
    """Where the run put a candidate's weights, be they there or not."""
    return run.folder / (run.reports[id].checkpoint or f"checkpoints/{id}{SUFFIX}")


def checkpoint_of(run: Recorded, id: str, elsewhere: Path | None = None) -> Path:
    """Where a candidate's weights lie. InputError where they are gone."""
    own = weights_of(run, id)
    places = [own] if elsewhere is None else [elsewhere / own.name, elsewhere / f"{id}{SUFFIX}"]
    for place in places:
        if place.is_file():
            return place
    flag = "" if elsewhere is None else "--checkpoint-dir: "
    raise InputError(f"{flag}{places[0]}: the weights of candidate {id} are gone")


def _continued(run: Recorded, id: str) -> Continued:
    """The candidate as the beginning of another run."""
    line, waiting = dict[str, Candidate](), [id]
    while waiting:
        one = waiting.pop()
        if one not in line:
            line[one] = run.candidates[one]
            waiting += line[one].parents
    own = [
        Forebear(run=run.name, id=it.id, parents=it.parents, operators=tuple(edit.operator for edit in it.edits))
        for it in sorted(line.values(), key=lambda it: it.index)
    ]
    earlier = () if run.continues is None else run.continues.forebears
    return Continued(run=run.name, id=id, tokens=run.reports[id].tokens.lineage, forebears=(*earlier, *own))


def write_seed(run: Recorded, id: str, design: Design, config: Path, checkpoint: Path | None) -> None:
    """Writes the experiment of a candidate. RunError where it cannot be written."""
    text = seed_text(run, id, design, config, checkpoint)
    try:
        config.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{config}: cannot be written: {error.strerror or error}") from None
    write_atomic(config, text.encode())


def seed_text(run: Recorded, id: str, design: Design, config: Path, checkpoint: Path | None) -> str:
    """What `write_seed` writes to `config`."""
    start = None if checkpoint is None else os.path.relpath(checkpoint.resolve(), config.resolve().parent)
    return f"{_comment(run, id)}{dumps(_experiment(run.experiment, design, start))}"


def _experiment(experiment: Experiment, design: Design, start: str | None) -> Experiment:
    """The run's, beginning with a design and, from a path, its weights."""
    train = design.train.model_copy(update={"init_checkpoint": start, "init_tokenizer": "same"})
    evolution = experiment.evolution
    if start is not None and evolution.twin_share:  # twins begin with nothing, and would be compared with what has much
        evolution = evolution.model_copy(update={"rank_by": "inherited"})
    return experiment.model_copy(update={"model": design.blueprint, "train": train, "evolution": evolution})


def _comment(run: Recorded, id: str) -> str:
    """Where a seed comes from, as comments of its YAML."""
    report = run.reports[id]
    edits = [done.name.removeprefix("undo:") for done in lineage_edits(run.candidates, id)]
    told = [
        f"{id} of the run {run.name}.",
        f"Measured: {_figures(report)}.",
        f"Tokens behind its weights: {report.tokens.lineage:,}, {report.tokens.own:,} of them its own.",
        f"Edits behind it, oldest first: {', '.join(edits) or 'none'}.",
    ]
    return TITLE + "\n# ".join(visible(line).replace("\n", " ") for line in told) + "\n"


def _figures(report: Report) -> str:
    known = {**report.costs, **report.metrics}
    shown = ("bpb", "ppl", "long_recall", "params", "flops_per_token", "kv_bytes_per_token")
    return ", ".join(f"{name} {number(known[name])}" for name in shown if name in known)


def check_free(path: Path, flag: str, force: bool) -> None:
    """InputError for a file that is no older seed of ours."""
    if path.is_dir():
        raise InputError(f"{flag}: {path}: is a folder, expected a file to write to")
    if not path.exists() or force:
        return
    with path.open("rb") as file:
        if file.read(len(TITLE)) != TITLE.encode():
            raise InputError(f"{flag}: {path}: is there already, and is no seed; --force overwrites it")


def _is_seed(path: Path) -> bool:
    """Whether a checkpoint was written to begin another run."""
    try:
        return CONTINUES in load_checkpoint(path)[2]
    except InputError:
        return False


# ------------------------------------------------------------------------------------------------------------ archive


@dataclass(frozen=True)
class Archive:
    """What was put away. files: every one, by its name below the folder. bytes_freed: of the run's own checkpoints."""

    folder: Path
    files: tuple[str, ...]
    bytes_freed: int = 0


def archive(path: Path, folder: Path, *, checkpoints: Kept = "drop", free: bool = False) -> Archive:
    """Writes every candidate of a frontier as an experiment in YAML with its figures, and frontier.json, lineage.json.

    checkpoints: whether to leave weights out, keep those that were measured in bfloat16, or all as they are. free:
    whether to delete the run's own checkpoints afterwards. InputError for a folder that holds something else, RunError
    where nothing can be written, or a process holds the run.
    """
    run = Recorded.read(path)
    if folder.exists() and not _is_archive(folder):
        raise InputError(f"--out: {folder}: holds something else than an archive; choose another folder")
    if folder.resolve() == run.folder.resolve() or folder.resolve() in run.folder.resolve().parents:
        raise InputError(f"--out: {folder}: holds the run itself; choose another folder")
    frontier = Frontier.read(path if path.is_file() else run.folder / "frontier.json")
    kept, files = dict[str, str](), ["frontier.json"]
    sources = {} if checkpoints == "drop" else {id: checkpoint_of(run, id) for id in run.frontier}
    carried = excerpts([run.design(id).blueprint for id in sources], folder / "checkpoints") if sources else {}
    for id in run.frontier:
        if id in sources:
            kept[id] = f"checkpoints/{id}{SUFFIX}"
            _put_away(sources[id], folder / kept[id], checkpoints, carried)
        place = folder / f"{id}.yaml"
        design = run.design(id)
        if id in kept:
            design = _carrying(design, carried, folder / kept[id], place)
        write_seed(run, id, design, place, folder / kept[id] if id in kept else None)
        files += [place.name, *([kept[id]] if id in kept else [])]
    entries = tuple(entry.replace(checkpoint=kept.get(entry.id)) for entry in frontier.candidates)
    if (lineage := run.folder / "lineage.json").is_file():
        write_atomic(folder / lineage.name, lineage.read_bytes())
        files.append(lineage.name)
    frontier.replace(candidates=entries).write(folder / "frontier.json")
    for older in (*folder.glob("*.yaml"), *folder.glob(f"checkpoints/*{SUFFIX}")):
        if str(older.relative_to(folder)) not in files:
            older.unlink()  # of an archive that lay there before
    return Archive(folder, tuple(sorted(files)), _freed(run) if free else 0)


def _is_archive(folder: Path) -> bool:
    """Whether a folder holds what `archive` writes, or began to, and nothing else."""
    if not folder.is_dir():
        return False
    for path in folder.iterdir():
        if path.name == "checkpoints" and path.is_dir():
            if any(below.suffix != SUFFIX and below.name != FOLDER for below in path.iterdir()):
                return False
        elif path.suffix == ".yaml" and path.is_file():
            with path.open("rb") as file:
                if file.read(len(TITLE)) != TITLE.encode():
                    return False
        elif path.name not in ("frontier.json", "lineage.json"):
            return False
    return True


def _put_away(source: Path, place: Path, how: Kept, carried: Mapping[str, str]) -> None:
    whole = load_whole(source)
    metadata = {**whole.metadata, **_told({model: carried[model] for model in layers_taken([whole.blueprint])})}
    if how == "full":
        save_checkpoint(place, whole.state, whole.blueprint, metadata, whole.averages)
        return
    trained = {name for name, (_, _, spec) in specs(whole.blueprint).items() if spec.trained}
    measured = whole.state | whole.averages
    save_checkpoint(place, _rounded(measured, trained), whole.blueprint, metadata)


def _rounded(state: Mapping[str, Tensor], names: set[str]) -> dict[str, Tensor]:
    """Trained tensors in bfloat16; constants, such as a norm's eps, as they are."""
    return {name: tensor.to(torch.bfloat16) if name in names else tensor for name, tensor in state.items()}


def _freed(run: Recorded) -> int:
    """Deletes the run's checkpoints, while it holds the run; how many bytes they took."""
    check_files(run.folder)
    with Ledger.open(run.folder):
        sizes = [path.stat().st_size for path in (run.folder / "checkpoints").glob(f"*{SUFFIX}")]
        remove_checkpoints(run.folder, keep=())
    return sum(sizes)
