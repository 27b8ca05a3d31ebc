"""One training in a folder of its own: what it begins with, and going on with it. What `morphogen train` calls.

DIR/training.json       what the training is: its id, its experiment as resolved, what was asked for, its text
DIR/experiment.yaml     that experiment
DIR/checkpoints/        step-00000500.safetensors, ...: all that it goes on from
DIR/steps.csv evals.csv growth.csv growth.log
DIR/model.safetensors   the finished model, as a candidate's checkpoint is
DIR/growth.png          how it went
"""

import hashlib
from collections.abc import Mapping
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import PositiveInt

from morphogen import resuming
from morphogen.beginnings import CHECKPOINT, TOKENIZER, Asked, experiment_of
from morphogen.blueprint.diff import changes
from morphogen.blueprint.record import recorded, understood
from morphogen.blueprint.schema import Blueprint
from morphogen.blueprint.triggers import ManualTrigger
from morphogen.candidate import Record, Tokens, stream
from morphogen.data.mixture import Mixture
from morphogen.data.prepare import PreparedData, text_of, tokenizer_of
from morphogen.data.tokenizers import PieceTokenizer
from morphogen.differences import Difference, differences, words
from morphogen.errors import InputError, RunError, unknown
from morphogen.experiment import Experiment
from morphogen.foresight import foreseen
from morphogen.growth.rules import unheard
from morphogen.growth.triggers import parts
from morphogen.inherit.provenance import NO_TOKENS
from morphogen.inherit.splice import StateDict
from morphogen.network import initial_state
from morphogen.paths import user_path
from morphogen.reading import dotted, found_again, local_paths, located, placed, placeless, said_of
from morphogen.report.growth import picture
from morphogen.run import settle
from morphogen.runfolder import library_versions, resolved_yaml
from morphogen.store.files import canonical_json, parsed_json, remove_stale, write_atomic
from morphogen.store.ledger import FILE as LEDGER
from morphogen.store.ledger import RESOLVED, hold
from morphogen.store.ordinary import check_own, read_ordinary
from morphogen.training import journal, snapshots
from morphogen.training.allocator import memory_kept
from morphogen.training.device import choose_device
from morphogen.training.long_run import MODEL, LongRun, Noted, Observer, Origin, Outcome, Wanted
from morphogen.training.precision import bf16_warning
from morphogen.training.range_test import find_rate
from morphogen.training.snapshots import Snapshot
from morphogen.training.start import from_checkpoint
from morphogen.training.threads import default_threads, threads

RECORD, FORMAT, LOCK, PICTURE = "training.json", "morphogen-training-1", "training.lock", "growth.png"
FILES = (RECORD, RESOLVED, LOCK, MODEL, TOKENIZER, PICTURE, *journal.FILES)
FOLDERS = (snapshots.FOLDER, journal.BOARD)
#: Settings that a training may be gone on with otherwise than it was begun: those that only say when it is stopped.
MAY_DIFFER = frozenset(
    f"train.{name}"
    for name in (
        "max_tokens",
        "entropy_threshold",
        "entropy_patience",
        "instability_threshold",
        "no_improve_patience",
        "improvement_tolerance",
        "ppl_stop_threshold",
    )
)
#: A message names at most so many differences.
SHOWN = 3


class Begun(Record):
    """What `training.json` holds. begun: tokens behind the weights that it began with. memory: of their growth."""

    format: str
    id: str
    steps: PositiveInt
    asked: Asked
    experiment: dict[str, Any]
    data: dict[str, Any]
    begun: Tokens
    memory: str
    init_checkpoint: str | None
    threads: PositiveInt
    device: str
    versions: dict[str, str]


class Ready(NamedTuple):
    """A training that can go on. start: weights to begin with, or a checkpoint."""

    origin: Origin
    start: StateDict | Snapshot


def train(
    source: str | Path,
    out: str | Path,
    *,
    steps: int,
    asked: Asked | None = None,
    resume: bool = False,
    device: str = "cpu",
    checkpoint_every: int | None = None,
    keep: int = 3,
    eval_every: int | None = None,
    grow: tuple[str, ...] = (),
    early_stop: bool = False,
    tensorboard: bool = False,
    observer: Observer = lambda news: None,
) -> Outcome:
    """Trains one model, which may grow by the rules in its blueprint, in a folder that is the training's own.

    After an interrupt or a kill the same call with `resume=True` (and without `grow`, which every call does anew) goes
    on, and gives what it would have given: on a CPU bit for bit.

    Args:
        source: An experiment's YAML file, or a checkpoint of a run or a training.
        out: The training's folder.
        steps: Of the optimizer, in all.
        asked: What is otherwise than in the experiment; for what it leaves open, a training that goes on has what it
            was begun with.
        resume: Go on with the training in `out`; where there is none, begin one.
        device: `cpu`, `cuda`, `cuda:N`, `mps` or `auto`.
        checkpoint_every: Steps between checkpoints; None: a tenth of all, but at most 500.
        keep: Checkpoints that stay; 0: all.
        eval_every: Steps between measurements on held-out text; None: a tenth of all, 0: only at the end.
        grow: Ids of rules with the trigger `manual`, which act before the next step.
        early_stop: Whether the guards in `train` may end it.
        tensorboard: Whether to write TensorBoard's events.
        observer: Is told of every step and event.

    Returns:
        How it ended; the model is in `out`.

    Raises:
        InputError: Source, options or text cannot be used.
        RunError: The folder cannot be used, or holds another training.
        DivergedError: The loss is no number any more.
    """
    folder = user_path(out, "output_dir")
    check_usable(folder, resume)
    place = str(choose_device(device))
    before = read_record(folder) if (folder / RECORD).exists() else None
    asked = (asked or Asked()) if before is None else (asked or Asked()).over(before.asked)
    wanted = _wanted(steps, checkpoint_every, keep, eval_every, grow, early_stop, tensorboard)
    experiment, prepared = _settled(source, folder, asked, wanted, place, observer)
    folder.mkdir(parents=True, exist_ok=True)
    with closing(hold(folder, LOCK, "training")), threads(before.threads if before else default_threads()):
        with memory_kept():
            outcome = _readied(folder, before, experiment, prepared, wanted, asked, place, observer).run()
        if not outcome.interrupted:
            write_atomic(folder / PICTURE, picture(folder))
    return outcome


def _wanted(
    steps: int,
    checkpoint_every: int | None,
    keep: int,
    eval_every: int | None,
    grow: tuple[str, ...],
    early_stop: bool,
    tensorboard: bool,
) -> Wanted:
    """The options of `train`, with what stands where one is left open."""
    tenth = max(1, steps // 10)
    return Wanted(
        steps,
        min(500, tenth) if checkpoint_every is None else checkpoint_every,
        keep,
        tenth if eval_every is None else eval_every,
        grow,
        early_stop,
        tensorboard,
    )


def _settled(
    source: str | Path, folder: Path, asked: Asked, wanted: Wanted, device: str, observer: Observer
) -> tuple[Experiment, PreparedData]:
    """The experiment as it is trained, and its text; tells what is odd about them. InputError for what cannot be."""
    experiment = found_again(experiment_of(str(source), asked, folder), folder)
    _check_places(folder, experiment)
    experiment, prepared = settle(experiment)
    _check_asked(experiment.model, wanted.grow)
    remarks = _remarks(experiment, wanted.steps, None if str(source).endswith(CHECKPOINT) else source)
    for line in (*remarks, *prepared.remarks(), bf16_warning(experiment.train.bf16, choose_device(device))):
        if line:
            observer(Noted(line))
    return experiment, prepared


def _readied(
    folder: Path,
    before: Begun | None,
    experiment: Experiment,
    prepared: PreparedData,
    wanted: Wanted,
    asked: Asked,
    device: str,
    observer: Observer,
) -> LongRun:
    """The training in a folder that is held: begun, or the one that was, which goes on."""
    remove_stale(folder)
    (folder / snapshots.FOLDER).mkdir(exist_ok=True)
    if before is None:
        ready = _begin(folder, experiment, prepared, wanted, asked, device)
    else:
        ready = _go_on(folder, before, experiment, prepared, wanted, observer)
    return LongRun(folder, ready.origin, prepared, wanted, ready.start, observer, device)


def check_usable(folder: Path, resume: bool) -> None:
    """RunError unless a training may be begun in `folder`, or with `resume` gone on with there."""
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{folder}: is a file, expected a folder for the training")
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    check_own(folder, FILES, FOLDERS)
    if LEDGER in names:
        raise RunError(f"{folder}: holds a run of a search; choose another --output-dir")
    if RECORD in names:
        if not resume:
            raise RunError(
                f"{folder}: holds a training already; add --resume to go on with it, or choose another --output-dir"
            )
        return
    strangers = sorted(name for name in names if name not in (*FILES, *FOLDERS) and not name.startswith("."))
    if strangers or MODEL in names:
        first = strangers[0] if strangers else MODEL
        raise RunError(f"{folder}: not empty ({first}, ...) and not a training; choose another --output-dir")


def read_record(folder: Path) -> Begun:
    """What a training's folder says of it. InputError where that cannot be read."""
    path = folder / RECORD
    try:
        told = parsed_json(read_ordinary(path))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None
    found = recorded(Begun, told, str(path))
    if found.format != FORMAT:
        raise InputError(f"{path}: format is {found.format!r}, expected {FORMAT!r}")
    return found


def _check_places(folder: Path, experiment: Experiment) -> None:
    for loc, text in local_paths(experiment).items():
        if loc[-1] == "source" and folder.resolve().is_relative_to(Path(text).resolve()):
            raise InputError(f"--output-dir: {folder}: lies in the text {text}, which it would change")


def _check_asked(model: Blueprint, grow: tuple[str, ...]) -> None:
    """InputError for rules that do not exist, or have no `manual` among their triggers."""
    manual = [rule.id for rule in model.growth if any(isinstance(one, ManualTrigger) for one in parts(rule.when))]
    for id in grow:
        if id not in manual and id in (rule.id for rule in model.growth):
            raise InputError(
                f"--grow: the trigger of rule {id!r} is not manual, so that it cannot be asked for by hand"
            )
        if id not in manual:
            raise InputError(unknown("--grow", id, manual) if manual else f"--grow: got {id!r}, but no rule is manual")


def _remarks(experiment: Experiment, steps: int, file: str | Path | None) -> list[str]:
    """What is odd about the architecture and the text, with its place in the file, if there is one. InputError for what
    cannot be; what only matters to a search is none of a training's."""
    model = experiment.model
    found = [it for it in foreseen(experiment, model, whole=True) if it.loc[0] in ("model", "data")]
    if experiment.train.init_checkpoint is None:  # else nobody knows here what lies behind its weights
        found += unheard(model, steps, steps * experiment.tokens_per_step)
    with nullcontext() if file is None else placed(file):
        if wrong := [f"{dotted(it.loc)}: {it.said}" for it in found if it.refused]:
            raise InputError("\n".join(wrong))
    return [f"{dotted(it.loc)}: {it.said}" for it in found] if file is None else said_of(file, found)


def _begin(
    folder: Path, experiment: Experiment, prepared: PreparedData, wanted: Wanted, asked: Asked, device: str
) -> Ready:
    """Fresh weights, or those of `train.init_checkpoint`, and the record of what begins."""
    seed = int(stream(experiment.train.seed, 0, f"weights/{experiment.train.seed}").integers(2**31))
    begun, memory, state = NO_TOKENS, "", None
    if experiment.train.init_checkpoint is None:
        state = initial_state(experiment.model, seed)
    else:
        inherited = from_checkpoint(experiment.model, experiment, prepared, seed)
        state, begun, memory = inherited.state, inherited.begun, inherited.memory
    if experiment.train.searches_rate:
        rate = find_rate(
            experiment.model,
            state,
            experiment.train,
            Mixture(prepared, seed),
            total_steps=wanted.steps,
            seed=seed,
            device=choose_device(device),
        )
        experiment = experiment.with_train({"lr": rate})
    data = parsed_json(canonical_json(prepared.environment()).encode())
    plain = experiment.model_dump(mode="json")
    init = resuming.checksum(experiment)
    record = Begun(
        format=FORMAT,
        id=_identity(experiment, data, init),
        steps=wanted.steps,
        asked=asked,
        experiment=plain,
        data=data,
        begun=begun,
        memory=memory,
        init_checkpoint=init,
        threads=default_threads(),
        device=device,
        versions=library_versions(),
    )
    write_atomic(folder / RESOLVED, resolved_yaml(plain).encode())
    _write_record(folder, record)
    return Ready(_origin(record, experiment), state)


def _write_record(folder: Path, record: Begun) -> None:
    write_atomic(folder / RECORD, (canonical_json(record.model_dump(mode="json"), indent=2) + "\n").encode())


def _identity(experiment: Experiment, data: Mapping[str, Any], init: str | None) -> str:
    """Of a training: what it trains, on what, from which weights."""
    plain = placeless(located(experiment)).model_dump(mode="json", exclude={"evolution"})
    whole = canonical_json([plain, text_of(data), init])
    return hashlib.blake2b(whole.encode(), digest_size=16).hexdigest()


def _origin(record: Begun, experiment: Experiment) -> Origin:
    data, text = experiment.data, ""
    if not isinstance(data.tokenizer, str) or Path(data.tokenizer).is_file():
        found = tokenizer_of(data)
        text = found.to_json() if isinstance(found, PieceTokenizer) else ""
    return Origin(record.id, experiment, experiment.model, record.begun, text, record.memory)


def _go_on(
    folder: Path,
    record: Begun,
    experiment: Experiment,
    prepared: PreparedData,
    wanted: Wanted,
    observer: Observer,
) -> Ready:
    """The latest sound checkpoint. RunError for another training than that in the folder."""
    there, _ = understood(Experiment, record.experiment, f"{folder / RECORD}: the recorded experiment")
    if experiment.train.searches_rate:
        experiment = experiment.with_train({"lr": there.train.lr})
    data = parsed_json(canonical_json(prepared.environment()).encode())
    wrong = [f"{path} is {words(old)} there and {words(new)} here" for path, old, new in settings(there, experiment)]
    wrong += resuming.other_text(record.data, data)
    if wrong:
        more = f"; and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        raise RunError(
            f"{folder}: holds another training: {'; '.join(wrong[:SHOWN])}{more}. With --resume may change: --steps, "
            f"--device, --early-stop, how often it is measured and kept; go on with {folder / RESOLVED}, or choose "
            "another --output-dir"
        )
    snapshot = snapshots.latest(folder, record.id, lambda text: observer(Noted(text)))
    if snapshot is None and snapshots.found(folder):
        raise RunError(f"{folder}: none of its checkpoints is sound; take them away to begin the training anew")
    done = 0 if snapshot is None else snapshot.step
    if done > wanted.steps or (done == wanted.steps and (folder / MODEL).exists()):
        raise InputError(f"--steps: got {wanted.steps}, but the training in {folder} has done {done} already")
    if record.versions != library_versions():
        observer(Noted("begun with other versions of libraries: the same numbers are not promised any more"))
    _write_record(folder, record.replace(steps=wanted.steps))
    origin = _origin(record, experiment)
    if snapshot is not None:
        snapshots.drop_later(folder, snapshot.step)
        observer(Noted(f"goes on from step {snapshot.step}"))
        return Ready(origin, snapshot)
    seed = int(stream(experiment.train.seed, 0, f"weights/{experiment.train.seed}").integers(2**31))
    if experiment.train.init_checkpoint is None:
        return Ready(origin, initial_state(experiment.model, seed))
    return Ready(origin, from_checkpoint(experiment.model, experiment, prepared, seed).state)


def settings(there: Experiment, here: Experiment) -> list[Difference]:
    """What of two trainings' experiments differs that may not; where files lie may."""
    one, other = (placeless(located(experiment)) for experiment in (there, here))
    plain, given = (it.model_dump(mode="json", include={"train", "data"}) for it in (one, other))
    rest = differences(plain, given, MAY_DIFFER)
    return [*((f"model.{c.path}", c.before, c.after) for c in changes(one.model, other.model)), *rest]
