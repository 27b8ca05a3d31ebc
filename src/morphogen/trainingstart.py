"""Where a training begins, or goes on from: weights, or its last checkpoint. Called by `trainings`."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from morphogen.beginnings import Asked
from morphogen.candidate import DonorLayer
from morphogen.data.mixture import Mixture
from morphogen.data.prepare import PreparedData, tokenizer_of
from morphogen.data.tokenizers import PieceTokenizer
from morphogen.errors import InputError, RunError
from morphogen.experiment import Experiment
from morphogen.inherit.provenance import NO_TOKENS
from morphogen.inherit.splice import StateDict
from morphogen.network import initial_state
from morphogen.reading import read_experiment
from morphogen.resuming import checksum, places
from morphogen.runfolder import library_versions, resolved_yaml
from morphogen.store.files import write_atomic
from morphogen.store.ledger import RESOLVED
from morphogen.training import snapshots
from morphogen.training.device import choose_device
from morphogen.training.ending import Ending
from morphogen.training.long_run import MODEL
from morphogen.training.news import Noted, Observer
from morphogen.training.range_test import find_rate
from morphogen.training.snapshots import Snapshot
from morphogen.training.start import from_checkpoint
from morphogen.training.terms import Origin, Wanted, drawn_seed
from morphogen.training.threads import default_threads
from morphogen.trainingfolder import (
    FORMAT,
    PICTURE,
    Begun,
    begun_with,
    check_same,
    identity,
    put_tokenizer,
    text_record,
    write_record,
)


class Begins(NamedTuple):
    """All that a training begins with, or goes on with. tokenizer: as `Beginning`."""

    experiment: Experiment
    prepared: PreparedData
    wanted: Wanted
    asked: Asked
    tokenizer: PieceTokenizer | None
    device: str


class Ready(NamedTuple):
    """A training that can go on. start: weights to begin with, or a checkpoint."""

    origin: Origin
    start: StateDict | Snapshot


def begin(folder: Path, begins: Begins) -> Ready:
    """Fresh weights, or those of `train.init_checkpoint`, and the record of what begins."""
    experiment, prepared = begins.experiment, begins.prepared
    seed = drawn_seed(experiment, "weights")
    begun, memory, donors = NO_TOKENS, "", tuple[DonorLayer, ...]()
    if experiment.train.init_checkpoint is None:
        state = initial_state(experiment.model, seed)
    else:
        inherited = from_checkpoint(experiment.model, experiment, prepared, seed)
        state, begun, memory, donors = inherited.state, inherited.begun, inherited.memory, inherited.donors
    if experiment.train.searches_rate:
        found = find_rate(
            experiment.model,
            state,
            experiment.train,
            Mixture(prepared, seed),
            total_steps=begins.wanted.steps,
            seed=seed,
            device=choose_device(begins.device),
        )
        experiment = experiment.with_train({"lr": found.rate})
    plain, data, init = experiment.model_dump(mode="json"), text_record(prepared), checksum(experiment)
    record = Begun(
        format=FORMAT,
        id=identity(experiment, data, init),
        steps=begins.wanted.steps,
        asked=begins.asked,
        experiment=plain,
        data=data,
        begun=begun,
        memory=memory,
        init_checkpoint=init,
        threads=default_threads(),
        paths=_places(folder, experiment, begins.asked),
        versions=library_versions(),
    )
    put_tokenizer(folder, begins.tokenizer)
    write_atomic(folder / RESOLVED, resolved_yaml(plain).encode())
    write_record(folder, record)
    return Ready(_origin(record, experiment, begins.tokenizer)._replace(donors=donors), state)


def _places(folder: Path, experiment: Experiment, asked: Asked) -> dict[str, str]:
    """Where the training's files lie, that which --data names too, and how that is seen from its folder."""
    lie = places(experiment, folder)
    if asked.data is not None and os.path.isabs(asked.data):
        lie[asked.data] = os.path.relpath(asked.data, folder.resolve())
    return lie


def _origin(record: Begun, experiment: Experiment, tokenizer: PieceTokenizer | None) -> Origin:
    data, found = experiment.data, tokenizer
    if tokenizer is None and (not isinstance(data.tokenizer, str) or Path(data.tokenizer).is_file()):
        known = tokenizer_of(data)
        found = known if isinstance(known, PieceTokenizer) else None
    text = "" if found is None else found.to_json()
    return Origin(record.id, experiment, experiment.model, record.begun, text, record.memory)


def go_on(folder: Path, record: Begun, begins: Begins, observer: Observer) -> Ready:
    """The latest sound checkpoint. RunError for another training than that in the folder."""
    ready = as_left(folder, record, begins, lambda text: observer(Noted(text)))
    experiment, wanted = ready.origin.experiment, begins.wanted
    snapshot = ready.start if isinstance(ready.start, Snapshot) else None
    _check_undone(folder, snapshot, experiment, wanted)
    if record.versions != library_versions():
        observer(Noted("begun with other versions of libraries: the same numbers are not promised any more"))
    put_tokenizer(folder, begins.tokenizer)
    paths = record.paths | _places(folder, experiment, begins.asked)
    write_record(folder, record.replace(steps=wanted.steps, paths=paths))
    try:
        read_experiment(folder / RESOLVED)  # in which guards may have been changed since
    except InputError:
        write_atomic(folder / RESOLVED, resolved_yaml(record.experiment).encode())
    if snapshot is not None:
        snapshots.drop_later(folder, snapshot.step)
        observer(Noted(f"goes on from step {snapshot.step}"))
    return ready


def as_left(folder: Path, record: Begun, begins: Begins, say: Callable[[str], None]) -> Ready:
    """The training in a folder as its last sound checkpoint has it, or as it begins; nothing is written. RunError for
    another training than that in the folder."""
    experiment = begins.experiment
    if experiment.train.searches_rate:
        experiment = experiment.with_train({"lr": begun_with(folder, record).train.lr})
    check_same(folder, record, experiment, begins.prepared)
    snapshot = snapshots.latest(folder, record.id, say)
    if snapshot is None and snapshots.found(folder):
        raise RunError(f"{folder}: none of its checkpoints is sound; take them away to begin the training anew")
    origin = _origin(record, experiment, begins.tokenizer)
    if snapshot is not None:
        return Ready(origin, snapshot)
    seed = drawn_seed(experiment, "weights")
    if experiment.train.init_checkpoint is None:
        return Ready(origin, initial_state(experiment.model, seed))
    inherited = from_checkpoint(experiment.model, experiment, begins.prepared, seed)
    return Ready(origin._replace(donors=inherited.donors), inherited.state)


def _check_undone(folder: Path, snapshot: Snapshot | None, experiment: Experiment, wanted: Wanted) -> None:
    """InputError where nothing is left to do: so many steps are done, or the guards have ended it already."""
    if snapshot is None:
        return
    done, whole = snapshot.step, all((folder / name).exists() for name in (MODEL, PICTURE))
    if done > wanted.steps or (done == wanted.steps and whole):
        raise InputError(f"--steps: got {wanted.steps}, but the training in {folder} has done {done} already")
    ending = Ending.told(snapshot.metadata, snapshot.path)
    if whole and wanted.early_stop and ending is not None and ending.holds(experiment.train):
        raise InputError(
            f"--early-stop: the training in {folder} ended early already, at step {done} ({ending.reason}); leave it "
            "to go on, or set the guards in train otherwise"
        )
