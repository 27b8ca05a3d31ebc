"""One training in a folder of its own, from what is asked for to its model. What `morphogen train` calls."""

from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from morphogen.beginnings import CHECKPOINT, Asked, beginning_of
from morphogen.blueprint.schema import Blueprint
from morphogen.blueprint.triggers import ManualTrigger
from morphogen.errors import InputError, RunError, unknown
from morphogen.experiment import Experiment
from morphogen.foresight import foreseen
from morphogen.growth.rules import unheard
from morphogen.growth.triggers import parts
from morphogen.paths import user_path
from morphogen.plugins import allow_code, code_allowed
from morphogen.reading import dotted, found_again, local_paths, placed, said_of
from morphogen.report.growth import picture
from morphogen.run import settle
from morphogen.store.files import remove_stale, write_atomic
from morphogen.store.holding import hold
from morphogen.store.ledger import RESOLVED
from morphogen.training import boards, snapshots
from morphogen.training.allocator import memory_kept
from morphogen.training.compiling import check_compiles
from morphogen.training.device import choose_device
from morphogen.training.distributed import Ranks, check_shared
from morphogen.training.launching import together
from morphogen.training.long_run import LongRun
from morphogen.training.news import Noted, Observer
from morphogen.training.precision import bf16_warning, chosen
from morphogen.training.terms import Outcome, Wanted
from morphogen.training.threads import default_threads, threads
from morphogen.trainingfolder import LOCK, PICTURE, RECORD, Begun, begun_with, check_usable, read_record
from morphogen.trainingstart import Begins, as_left, begin, go_on


def train(
    source: str | Path,
    out: str | Path,
    *,
    steps: int,
    asked: Asked | None = None,
    resume: bool = False,
    device: str = "cpu",
    nproc: int = 1,
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
        nproc: Processes that share the work, on CUDA one a device; a step's `train.accumulate` batches are shared out
            among them. They go on where others stopped, whatever their number.
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
    _check_least(1, nproc=nproc)
    folder = user_path(out, "output_dir")
    with _told_of(folder):
        check_usable(folder, resume)
    place = str(choose_device(device))
    before = _recorded(folder)
    asked = _over(before, (asked or Asked()).located(), source, folder)
    wanted = _wanted(steps, checkpoint_every, keep, eval_every, grow, early_stop, tensorboard)
    begins = _settled(source, folder, before, asked, wanted, place, observer)
    if nproc > 1:
        check_shared(begins.experiment, place, nproc)
    return _in_folder(folder, before, begins, observer, _Source(source, nproc))


def _check_least(least: int, **options: int | None) -> None:
    """InputError for an option below the least that it may be."""
    for name, value in options.items():
        if value is not None and value < least:
            raise InputError(f"{name}: got {value}, expected at least {least}")


@contextmanager
def _told_of(folder: Path) -> Iterator[None]:
    """RunError for what the operating system refuses inside."""
    try:
        yield
    except OSError as error:
        raise RunError(f"{folder}: cannot be the training's folder: {error.strerror or error}") from None


def _recorded(folder: Path) -> Begun | None:
    """The training that was begun in a folder; None where none was."""
    return read_record(folder) if (folder / RECORD).exists() else None


def _in_folder(folder: Path, before: Begun | None, begins: Begins, observer: Observer, by: "_Source") -> Outcome:
    """Holds the folder, trains in it, and draws how it went. RunError where another process has trained there since
    `before` was read."""
    with _told_of(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with closing(hold(folder, LOCK, "training")), threads(before.threads if before else default_threads()):
        if before != _recorded(folder):
            raise RunError(f"{folder}: another process has trained there meanwhile; give the command again")
        outcome = _trained(folder, before, begins, observer, by)
        if not outcome.interrupted:
            write_atomic(folder / PICTURE, picture(folder))
    return outcome


def _over(before: Begun | None, asked: Asked, source: str | Path, folder: Path) -> Asked:
    """What is asked for, and for what that leaves open what the training was begun with."""
    if before is None or _is_own(source, folder):  # its own experiment has them already
        return asked
    return asked.over(before.asked.found_again(folder))


def _is_own(source: str | Path, folder: Path) -> bool:
    """Whether the source is the experiment that a training's folder holds itself."""
    return user_path(source, "EXPERIMENT").resolve() == (folder / RESOLVED).resolve()


def _wanted(
    steps: int,
    checkpoint_every: int | None,
    keep: int,
    eval_every: int | None,
    grow: tuple[str, ...],
    early_stop: bool,
    tensorboard: bool,
) -> Wanted:
    """The options of `train`, with what stands where one is left open. InputError for one out of range, and for
    what this machine lacks."""
    _check_least(1, steps=steps, checkpoint_every=checkpoint_every)
    _check_least(0, keep=keep, eval_every=eval_every)
    if tensorboard:
        boards.check_installed()
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
    source: str | Path,
    folder: Path,
    before: Begun | None,
    asked: Asked,
    wanted: Wanted,
    device: str,
    observer: Observer,
) -> Begins:
    """The experiment as it is trained, and its text; tells what is odd about them. InputError for what cannot be."""
    found = beginning_of(str(source), asked, folder)
    experiment = found_again(found.experiment, folder)
    _check_places(folder, experiment)
    experiment, prepared = settle(experiment, found.tokenizer)
    if experiment.train.bf16 == "auto":
        begun = None if before is None else begun_with(folder, before).train
        bf16 = chosen(experiment.train, choose_device(device)).bf16 if begun is None else begun.in_bf16
        experiment = experiment.in_precision(bf16)
    check_compiles(experiment.train, choose_device(device))
    _check_asked(experiment.model, wanted.grow)
    file = None if str(source).endswith(CHECKPOINT) else source
    remarks = _remarks(experiment, wanted.steps, file, has_tokenizer=found.tokenizer is not None)
    for line in (*remarks, *prepared.remarks(), bf16_warning(experiment.train, choose_device(device))):
        if line:
            observer(Noted(line))
    return Begins(experiment, prepared, wanted, asked, found.tokenizer, device)


class _Source(NamedTuple):
    """What a training was asked for by, and how many processes share it."""

    source: str | Path
    nproc: int


def _trained(folder: Path, before: Begun | None, begins: Begins, observer: Observer, by: _Source) -> Outcome:
    """Trains in a folder that is held: from the beginning, or on from where the training was."""
    remove_stale(folder)
    (folder / snapshots.FOLDER).mkdir(exist_ok=True)
    with memory_kept():
        ready = begin(folder, begins) if before is None else go_on(folder, before, begins, observer)
        if by.nproc > 1:
            del ready  # every process reads it for itself
            share = _Share(str(by.source), folder, begins.asked, begins.wanted, code_allowed())
            return together(share, by.nproc, choose_device(begins.device).type, observer)
        run = LongRun(folder, ready.origin, begins.prepared, begins.wanted, ready.start, observer, begins.device)
        return run.run()


@dataclass(frozen=True)
class _Share:
    """What one of several processes does of a training that is recorded in its folder."""

    source: str
    folder: Path
    asked: Asked
    wanted: Wanted
    code: bool

    def __call__(self, ranks: Ranks, device: str, observer: Observer) -> Outcome:
        """Goes on from the last checkpoint, or begins, together with the others."""
        folder, record = self.folder, read_record(self.folder)
        with allow_code(self.code), threads(record.threads), memory_kept():
            begins = _settled(self.source, folder, record, self.asked, self.wanted, device, lambda news: None)
            ready = as_left(folder, record, begins, lambda text: observer(Noted(text)))
            run = LongRun(
                folder, ready.origin, begins.prepared, self.wanted, ready.start, observer, device, ranks=ranks
            )
            return run.run()


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


def _remarks(experiment: Experiment, steps: int, file: str | Path | None, *, has_tokenizer: bool) -> list[str]:
    """What is odd about the architecture and the text, with its place in the file, if there is one. InputError for what
    cannot be; what only matters to a search is none of a training's. has_tokenizer: at hand, wherever its file is."""
    model = experiment.model
    found = [it for it in foreseen(experiment, model, whole=True) if it.loc[0] in ("model", "data")]
    if has_tokenizer:
        found = [it for it in found if it.loc != ("data", "tokenizer")]
    if experiment.train.init_checkpoint is None:  # else nobody knows here what lies behind its weights
        found += unheard(model, steps, steps * experiment.tokens_per_step)
    with nullcontext() if file is None else placed(file):
        if wrong := [f"{dotted(it.loc)}: {it.said}" for it in found if it.refused]:
            raise InputError("\n".join(wrong))
    return [f"{dotted(it.loc)}: {it.said}" for it in found] if file is None else said_of(file, found)
