"""Is a run's folder what its ledger says? Looks at everything, changes nothing."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from morphogen import runfolder
from morphogen.analysis.repeated import against_root
from morphogen.blueprint.record import understood
from morphogen.blueprint.schema import Blueprint
from morphogen.differences import words
from morphogen.errors import InputError, MorphogenError
from morphogen.experiment import Experiment
from morphogen.inherit.checkpoint import load_checkpoint, load_moments
from morphogen.reading import read_experiment
from morphogen.resuming import read_environment, settings
from morphogen.search.engine import Engine
from morphogen.search.failures import common_reason, failed_alike, retry
from morphogen.store.holding import holder_of
from morphogen.store.ledger import FILE as LEDGER
from morphogen.store.ledger import FINISHED, LOCK, RESOLVED, Event, Generation, Ledger, Start, Stop, last_stop
from morphogen.store.places import TRAINING
from morphogen.training.device import choose_device
from morphogen.training.precision import bf16_warning

RETRAIN = "restore it from a copy, or add --resume --retrain-lost to the run's command, which trains it again"
RESTORE = f"restore {LEDGER} from a copy, or start anew in another folder"
RETRY = "once the cause is mended, the run's command with --resume --retry-failed trains them again"
GO_ON = "the run's command with --resume puts it right"


@dataclass(frozen=True)
class Finding:
    """Something wrong: where (a path), what, and what to do about it."""

    place: str
    wrong: str
    remedy: str


def examine(folder: Path) -> list[Finding]:
    """Everything that is wrong with the run in `folder`; it may be in use meanwhile.

    Looked at: the database and its chain of hashes, whether its events follow one another, the experiment and the
    environment, exports against the ledger, the checkpoints that are still needed, every checkpoint's header, checksum
    and blueprint, and temporary files that nobody is writing.
    """
    try:
        runfolder.check_files(folder)
    except MorphogenError as error:
        return [Finding(str(folder), str(error), "no run writes to such a folder; put a file or folder in its place")]
    try:
        with Ledger.open(folder, readonly=True) as ledger:
            ledger.check()
            events = list(ledger.events())
    except MorphogenError as error:
        training = (folder / TRAINING).is_file() and not (folder / LEDGER).exists()
        return [Finding(str(folder), str(error), "give a run's folder" if training else RESTORE)]
    if not events:
        return [Finding(str(folder), "the ledger is empty: the run had only just begun", GO_ON)]
    try:
        engine, settled = _replayed(events, folder)
    except MorphogenError as error:
        return [Finding(str(folder), str(error), "it was made by another version of morphogen, or changed by hand")]
    running = holder_of(folder, LOCK) is not None
    finished = last_stop(events) == FINISHED
    found = [*_settings(folder, events[0]), *_checkpoints(folder, engine, finished), *_failures(folder, engine)]
    return found if running else [*found, *_exports(folder, events[0], settled), *_leftovers(folder)]


def remarks(folder: Path) -> list[str]:
    """What is not wrong, but should be known: a run that computes in what this machine has no instructions for."""
    try:
        experiment, told = read_experiment(folder / RESOLVED), read_environment(folder)
        warning = bf16_warning(experiment.train, choose_device(told["device"]))
    except MorphogenError:  # a finding already, or a device that this machine lacks
        return []
    return [warning] if warning else []


def _replayed(events: list[Event], folder: Path) -> tuple[Engine, Engine]:
    """The search as it stands, and as it stood when a generation was last closed or the run last finished, which is
    what exports show."""
    settled = (
        place
        for place, event in enumerate(events)
        if isinstance(event, Generation) or (isinstance(event, Stop) and event.reason == FINISHED)
    )
    shown = events[: max(settled, default=0) + 1]

    def at(part: list[Event]) -> Engine:
        return Engine.replay(part, run_dir=str(folder), device="cpu")

    try:
        return at(events), at(shown)
    except ValidationError as error:
        what = error.errors(include_url=False)[0]
        place = ".".join(str(step) for step in what["loc"])
        raise InputError(f"the recorded experiment cannot be read: {place}: {what['msg']}") from None


def _settings(folder: Path, start: Event) -> Iterator[Finding]:
    assert isinstance(start, Start)
    path = folder / RESOLVED
    try:
        there, _ = understood(Experiment, start.experiment, "the recorded experiment")
        for place, old, new in settings(there, read_experiment(path)):
            yield Finding(str(path), f"{place} is {words(new)}, and the run was begun with {words(old)}", GO_ON)
    except MorphogenError as error:
        yield Finding(str(path), str(error), GO_ON)
    try:
        read_environment(folder)
    except MorphogenError as error:
        yield Finding(str(folder / "environment.json"), str(error), "restore it from a copy; --resume needs it")


def _checkpoints(folder: Path, engine: Engine, finished: bool) -> Iterator[Finding]:
    """Those still needed must be there, and all that are there must be what they are called.

    finished: nobody is to breed any more. The recorded number of generations does not tell: some may have been added.
    """
    breeders = () if finished else engine.survivors
    for id in dict.fromkeys((*breeders, *engine.frontier_ids)):
        path = folder / (engine.reports[id].checkpoint or "")
        if not path.is_file():
            who = (
                "a survivor, and the run stops where a child inherits from it" if id in breeders else "on the frontier"
            )
            yield Finding(str(path), f"missing; {id} is {who}", RETRAIN)
    for report in engine.reports.values():
        path = folder / (report.checkpoint or "")
        if report.checkpoint is None or not path.is_file():
            continue
        wanted = Blueprint.model_validate(engine.candidates[report.id].as_trained(report).blueprint)
        try:
            _, blueprint, extra = load_checkpoint(path)
            held = extra.get("candidate")
            if held != report.id or blueprint != wanted:
                yield Finding(str(path), f"holds {held}, not {report.id}", RETRAIN)
            elif engine.experiment.evolution.keeps_moments:
                load_moments(path, blueprint)
        except MorphogenError as error:
            wrong = str(error).removeprefix(f"{path}: ")
            yield Finding(str(path), wrong, RETRAIN)


def _failures(folder: Path, engine: Engine) -> Iterator[Finding]:
    """Generations of which nothing was trained, where that can be mended."""
    back = retry(engine)
    for number in range(back.generation if back else engine.generation + 1, engine.generation + 1):
        if len(failures := failed_alike(engine, number)) > 1:
            wrong = f"generation {number}: all of it failed ({len(failures)}), most often because of: "
            yield Finding(str(folder), wrong + common_reason(failures), RETRY)


def _exports(folder: Path, start: Event, settled: Engine) -> Iterator[Finding]:
    assert isinstance(start, Start)
    objectives = settled.experiment.evolution.objectives
    shown = against_root(settled)
    generations, continues = settled.generations, start.continues
    files = runfolder.records(start.run, settled.candidates, settled.reports, generations, objectives, shown, continues)
    for name, text in files.items():
        path = folder / name
        if not path.is_file():
            yield Finding(str(path), "missing", GO_ON)
        elif path.read_bytes() != text.encode():
            yield Finding(str(path), "is not what the ledger gives", GO_ON)


def _leftovers(folder: Path) -> Iterator[Finding]:
    for path in runfolder.leftovers(folder):
        yield Finding(str(path), "a temporary file, left by a process that was killed", GO_ON)
