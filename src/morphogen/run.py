"""The main loop: joins the search, which decides, to an executor, which trains. Everything is on disk before it counts.

A run lives in one folder; its ledger is the one truth, and resuming is replaying it. A run may be killed at any moment
and goes on with the same candidates, edits and repeatable metrics as if it had not been.
"""

from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from morphogen import runfolder
from morphogen.arguments import expected, whole
from morphogen.checks import check_possible, examined
from morphogen.data.prepare import PreparedData, prepare
from morphogen.data.tokenizers import Tokenizer
from morphogen.errors import InputError, RunError
from morphogen.execution import IN_PROCESS, Execution, Executor, open_executor
from morphogen.experiment import Experiment
from morphogen.keeping import KEEP_ALL, MEND_NOTHING, Keep, Mend
from morphogen.notices import Observer, nobody
from morphogen.ops.ambient import as_usual
from morphogen.paths import user_path
from morphogen.reading import found_again, local_paths, located, placed, read_experiment
from morphogen.session import Hearing, Session
from morphogen.store.lineage import Lineage
from morphogen.store.outputs import Kind, check_output
from morphogen.training.compiling import check_compiles
from morphogen.training.device import device_for
from morphogen.training.precision import bf16_warning
from morphogen.training.threads import threads
from morphogen.variation.template import resolve_templates
from morphogen.winners import Winners


@dataclass(frozen=True)
class Run:
    """A run in its folder.

    Attributes:
        folder: Where it lies, absolute.
        experiment: What it searches, as resolved.
        seed: Of its random streams.
        device: What its candidates were trained on.
    """

    folder: Path
    experiment: Experiment
    seed: int
    device: str = "cpu"

    @property
    def frontier(self) -> Winners:
        """The Pareto frontier, as in `frontier.json`; `frontier["ID"]` has a blueprint for `build`, and weights."""
        return Winners.of(self.folder)

    @property
    def lineage(self) -> Lineage:
        """Every candidate and how it came about, as in `lineage.json`."""
        return Lineage.read(self.folder / "lineage.json")

    def resume(
        self,
        generations: int | None = None,
        execution: Execution = IN_PROCESS,
        observer: Observer = nobody,
        mend: Mend = MEND_NOTHING,
    ) -> "Run":
        """Goes on where the run was interrupted, or adds generations.

        Args:
            generations: How many there are to be in all, after the root's; by default as many as before.
            execution: How candidates are carried out.
            observer: Is told of all that happens.
            mend: What to do again.

        Returns:
            The run, all its generations closed.

        Raises:
            InputError: As `evolve`.
            RunError: As `evolve`.
        """
        return evolve(
            self.experiment,
            self.folder,
            generations=generations,
            seed=self.seed,
            device=self.device,
            resume=True,
            execution=execution,
            observer=observer,
            mend=mend,
        )


def load(path: str | Path) -> Experiment:
    """Reads an experiment from a YAML file, and fills in the size of its vocabulary.

    Where the tokenizer is a BPE to be trained, it is trained now, and kept for later.

    Args:
        path: The file. Relative paths in it are meant from its own folder.

    Returns:
        The experiment, ready for `evolve`; its `model` is ready for `build`.

    Raises:
        InputError: The file cannot be read, or one line with file, line and column for every mistake in it.
    """
    experiment = read_experiment(path)
    with placed(path):
        return experiment if experiment.model.emb.vocab is not None else settle(experiment)[0]


def settle(experiment: Experiment, tokenizer: Tokenizer | None = None) -> tuple[Experiment, PreparedData]:
    """The experiment with the vocabulary size and the templates of its file filled in, and its data made ready.

    What is still a relative path in it is meant from the working directory. tokenizer: as `prepare`.
    """
    experiment = located(experiment)
    templates = resolve_templates(experiment.evolution.templates)
    prepared = prepare(experiment.data, experiment.train.accumulate, tokenizer)
    model = experiment.model.with_vocab(prepared.vocab_size)
    evolution = experiment.evolution.model_copy(update={"templates": templates})
    return experiment.model_copy(update={"model": model, "evolution": evolution}), prepared


def evolve(
    experiment: Experiment,
    out: str | Path,
    *,
    generations: int | None = None,
    seed: int | None = None,
    device: str | torch.device = "cpu",
    resume: bool = False,
    keep: Keep = KEEP_ALL,
    execution: Execution = IN_PROCESS,
    executor: Executor | None = None,
    observer: Observer = nobody,
    mend: Mend = MEND_NOTHING,
) -> Run:
    """Evolves an experiment in a folder, and returns when all its generations are closed.

    Everything is on disk before it counts: after an error, an interrupt or a kill the same call with `resume=True` goes
    on, and gives what it would have given.

    Args:
        experiment: What to search and how, as `load` gives it.
        out: The run's folder.
        generations: How many after the root's; by default as the experiment says.
        seed: Of the run; by default what it was begun with, or `train.seed`.
        device: `cpu`, `cuda`, `cuda:N`, `mps` or `auto`.
        resume: Go on with the run in `out`; where there is none, start one.
        keep: What becomes of checkpoints, and where copies of files go.
        execution: How candidates are carried out: in this process, in workers, on a cluster; and their limits.
        executor: What carries them out instead; it is left open for the caller to close.
        observer: Is told of all that happens.
        mend: What to do again of a run that is resumed.

    Returns:
        The run, whose frontier and lineage can be read.

    Raises:
        InputError: The experiment asks for something that it cannot have.
        RunError: The folder cannot be used; something is amiss that is no candidate's fault, such as text, weights,
            disk, device or workers; or all of a generation failed.
        Exception: Whatever the observer raises, as it is.
    """
    seed = _check_asked(experiment, seed, execution, keep, observer)
    folder = user_path(out, "out")
    place = folder.absolute()  # of now: an observer may go elsewhere
    runfolder.check_usable(folder, resume, keep.checkpoint_dir)
    if mend != MEND_NOTHING and not resume:
        raise InputError("to train what failed or is lost again: only a run that is resumed has any; add --resume")
    device = str(device_for(str(device), elsewhere=execution.elsewhere))
    experiment, prepared = _ready(experiment, folder, generations, device, keep)
    heard = Hearing(observer)
    with _faults_of_files(folder, heard), as_usual(), ExitStack() as undo:
        if executor is None:
            executor = undo.enter_context(closing(open_executor(execution, prepared)))
        opened = Session.open(folder, experiment, seed, device, prepared, keep, heard, resume, mend)
        session = undo.enter_context(opened)
        undo.enter_context(threads(session.threads))
        remarks = prepared.remarks()
        session.note({f"text of {source!r}: {account}" for source, account in prepared.accounts().items()} - {*remarks})
        session.loop(executor, [*remarks, bf16_warning(session.experiment.train, torch.device(device))])
    return Run(place, session.experiment, session.engine.seed, device)


def _check_asked(
    experiment: Experiment, seed: int | None, execution: Execution, keep: Keep, observer: Observer
) -> int | None:
    """The seed as a plain number. InputError for arguments of `evolve` that are not what they can be."""
    expected("experiment", experiment, Experiment, "`load` reads one from a file")
    expected("execution", execution, Execution)
    expected("keep", keep, Keep)
    if not callable(observer):
        raise InputError(f"observer: got {observer!r}, expected a function of a notice")
    return None if seed is None else whole("seed", seed)


@contextmanager
def _faults_of_files(folder: Path, heard: Hearing) -> Iterator[None]:
    """Says as a RunError what is amiss with disk or files meanwhile; what the observer raised stays as it is."""
    try:
        yield
    except OSError as error:
        if error is heard.raised:
            raise
        raise RunError(f"{error.filename or folder}: {error.strerror or error}") from error


def _ready(
    experiment: Experiment, folder: Path, generations: int | None, device: str, keep: Keep
) -> tuple[Experiment, PreparedData]:
    """The experiment as it will be run, looked through, and its data. InputError for what it cannot have."""
    if generations is not None:
        changed = {**dict(experiment.evolution), "generations": whole("generations", generations)}
        experiment = experiment.model_copy(update={"evolution": type(experiment.evolution).model_validate(changed)})
    experiment = found_again(located(experiment), folder)
    _check_places(folder, experiment, keep)
    examined(experiment)
    experiment, prepared = settle(experiment)
    check_possible(experiment, prepared)
    check_compiles(experiment.train, torch.device(device))
    return experiment, prepared


def _check_places(folder: Path, experiment: Experiment, keep: Keep) -> None:
    """InputError for copies that would go over something else, and for anything written into a folder of text."""
    outputs: list[tuple[str, Path]] = [("out", folder)]
    copies: tuple[tuple[str, Path | None, Kind], ...] = (
        ("lineage_out", keep.lineage_out, "lineage.json"),
        ("frontier_out", keep.frontier_out, "frontier.json"),
    )
    for flag, copy, kind in copies:
        if copy is not None:
            check_output(copy, kind, folder, flag)
            outputs.append((flag, copy))
    if keep.checkpoint_dir is not None:
        outputs.append(("checkpoint_dir", keep.checkpoint_dir))
    for loc, text in local_paths(experiment).items():
        for flag, path in outputs if loc[-1] == "source" else ():
            if path.resolve().is_relative_to(Path(text).resolve()):
                raise InputError(f"{flag}: {path}: lies in the text {text}, which it would change; put it elsewhere")
