"""Trainings beside a run, from scratch or from its weights, each done once: what is finished is kept and never
repeated."""

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from morphogen import __version__
from morphogen.analysis.recorded import Recorded
from morphogen.analysis.records import Split
from morphogen.blueprint.diff import changes
from morphogen.blueprint.schema import Blueprint
from morphogen.candidate import (
    Ancestor,
    Candidate,
    Edit,
    Job,
    ParentRef,
    Report,
    Stage,
    Status,
    StopReason,
    stream,
)
from morphogen.data.prepare import PreparedData, prepare, text_of
from morphogen.data.store import SplitName
from morphogen.errors import InputError, RunError
from morphogen.execution import Execution, Executor, open_executor
from morphogen.execution.base import MOST_WORKERS
from morphogen.experiment import Experiment
from morphogen.reading import placeless
from morphogen.search.space import Design
from morphogen.store.files import canonical_json, scratch, write_atomic
from morphogen.store.ordinary import check_own, read_ordinary
from morphogen.training.device import choose_device

#: Where finished trainings lie, below the run folder.
FOLDER = "trials"
#: What the run's folder is called where a trial is carried out.
HOME = "run"
#: More trainings of one design, designs, resamples or tokens than these are taken for a slip.
MOST_SEEDS, MOST_DESIGNS, MOST_RESAMPLES, MOST_TOKENS = 1000, 100_000, 100_000, 10**15
#: Guards that end nothing: whoever is compared has been trained on all the tokens.
UNGUARDED = {
    "entropy_threshold": 0.0,
    "instability_threshold": 1e30,
    "no_improve_patience": 10**9,
    "ppl_stop_threshold": None,
    "init_checkpoint": None,
    "init_tokenizer": "same",
}

Say = Callable[[str], None]


def silent(line: str) -> None:
    """Says nothing."""


def check_range(options: Mapping[str, tuple[int | None, int, int]]) -> None:
    """InputError for an option out of its range. options: name -> (value, least, most)."""
    for name, (value, least, most) in options.items():
        if value is not None and value < least:
            raise InputError(f"--{name}: got {value}, expected at least {least}")
        if value is not None and value > most:
            raise InputError(f"--{name}: got {value}, expected at most {most}")


def check_tokens(tokens: int, prepared: PreparedData) -> None:
    """InputError for fewer tokens than one batch has."""
    if tokens < prepared.tokens_per_step:
        raise InputError(f"tokens: got {tokens}, expected at least one batch of {prepared.tokens_per_step}")


def drawn_seeds(run_seed: int, count: int, purpose: str) -> tuple[int, ...]:
    """The seeds of `count` trainings of one design, the same for every design of a run."""
    return tuple(int(stream(run_seed, k, purpose).integers(2**31)) for k in range(count))


@dataclass(frozen=True)
class Heritage:
    """Weights of a candidate of the run that a trial goes on from. checkpoint: below the run's folder. tokens: behind
    the weights. digest: of the file."""

    id: str
    blueprint: Blueprint
    checkpoint: str
    tokens: int
    digest: str

    @classmethod
    def of(cls, run: Recorded, id: str) -> "Heritage | None":
        """Those that a candidate has left; None where there are none any more."""
        checkpoint = run.reports[id].checkpoint
        if checkpoint is None or not (path := run.folder / checkpoint).is_file():
            return None
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "blake2b").hexdigest()[:24]
        return cls(id, run.design(id).blueprint, checkpoint, run.reports[id].tokens.lineage, digest)


@dataclass(frozen=True)
class Trial:
    """One design, to be trained on `tokens` tokens: from scratch, or from weights that it inherits. label: what
    progress calls it.

    Trials of one seed read the same text in the same order, whatever their blueprints.
    """

    label: str
    design: Design
    seed: int
    tokens: int
    heritage: Heritage | None = None


@dataclass(frozen=True)
class Workshop:
    """What trials have in common: where they are kept, how they are trained, on which text they are measured.

    workers: processes that train, None for this one alone.
    """

    folder: Path
    experiment: Experiment
    prepared: PreparedData
    split: Split = "eval"
    device: str = "cpu"
    workers: int | None = None
    say: Say = silent


def opened(path: Path, *, device: str, workers: int | None, say: Say) -> tuple[Recorded, Workshop]:
    """The run in a folder (or of a frontier file), and what trials of its designs have in common, measured on the eval
    split. InputError for what does not fit, RunError as `Recorded.read`."""
    check_range({"workers": (workers, 1, MOST_WORKERS)})
    device = str(choose_device(device))
    run = Recorded.read(path)
    check_own(run.folder, folders=[FOLDER])
    return run, Workshop(
        run.folder,
        run.experiment,
        prepare(run.experiment.data, run.experiment.train.accumulate),
        "eval",
        device,
        workers,
        say,
    )


def measurable(prepared: PreparedData, split: SplitName) -> bool:
    """Whether every measured shard holds at least one sequence in `split`."""
    return all(shard.windows(split, prepared.seq_len) > 0 for shard in prepared.eval_shards)


def run_trials(shop: Workshop, trials: Sequence[Trial], executor: Executor | None = None) -> list[Report]:
    """One report per trial, in order. Those on disk are read, the others trained and put there as each is done.

    A trial whose numbers are not finite has a report with status FAILED, which is kept too; one that failed for another
    reason is tried again the next time. InputError for fewer tokens than one batch has.
    """
    for trial in trials:
        check_tokens(trial.tokens, shop.prepared)
    places = [_place(shop, trial) for trial in trials]
    known = {place: report for place in places if (report := _kept(place)) is not None}
    todo = {place: trial for place, trial in zip(places, trials, strict=True) if place not in known}
    if len(todo) < len(set(places)):
        shop.say(f"{len(set(places)) - len(todo)} of {len(set(places))} trainings were done before")
    prepared = _measured_on(shop.prepared, shop.split)
    started = time.monotonic()
    with ExitStack() as undo:
        folder = undo.enter_context(scratch("morphogen-trials-"))
        (folder / "checkpoints").mkdir()
        (folder / HOME).symlink_to(shop.folder.resolve())
        jobs = {f"trial-{i}": (place, trial) for i, (place, trial) in enumerate(todo.items())}
        if executor is None:
            execution = Execution(workers=shop.workers)
            executor = undo.enter_context(closing(open_executor(execution, prepared)))
        work = [_job(shop, id, trial, str(folder)) for id, (_, trial) in jobs.items()]
        for done, report in enumerate(executor.map(work, lambda candidate, step: None), start=1):
            place, trial = jobs[report.id]
            if report.checkpoint is not None:
                (folder / report.checkpoint).unlink()
            known[place] = report.replace(checkpoint=None)
            if report.status is Status.TRAINED or report.stop_reason is StopReason.NOT_FINITE:
                place.parent.mkdir(exist_ok=True)
                write_atomic(place, canonical_json(known[place].model_dump(mode="json")).encode())
            left = (time.monotonic() - started) / done * (len(jobs) - done)
            shop.say(f"[{done}/{len(jobs)}] {trial.label}: {_told(report)}, about {left:.0f} s left")
    return [known[place] for place in places]


def check_some_trained(shop: Workshop, reports: Sequence[Report]) -> None:
    """RunError unless some training came to an end: there is nothing to tell then, and what was told stays."""
    if reports and all(report.status is not Status.TRAINED for report in reports):
        raise RunError(f"{shop.folder}: none of {len(reports)} trainings came to an end: {reports[0].reason}")


def _told(report: Report) -> str:
    return report.reason or f"bpb {report.metrics['bpb']:.4f}"


def _kept(place: Path) -> Report | None:
    """The report of a finished trial; None where there is none that can be read."""
    try:
        return Report.model_validate_json(read_ordinary(place))
    except (OSError, ValidationError):
        return None


def _place(shop: Workshop, trial: Trial) -> Path:
    """The trial's file, named after all that its numbers depend on."""
    decides = {
        "version": __version__,
        "train": _alone(shop.experiment, trial)["train"],
        "data": placeless(shop.experiment).data.model_dump(mode="json"),
        "text": text_of(shop.prepared.environment()),
        "split": shop.split,
        "blueprint": _architecture(trial),
        "seed": trial.seed,
        "tokens": trial.tokens,
        "device": shop.device,
        **({} if trial.heritage is None else {"inherits": [trial.heritage.id, trial.heritage.digest]}),
    }
    name = hashlib.blake2b(canonical_json(decides).encode(), digest_size=12).hexdigest()
    return shop.folder / FOLDER / f"{name}.json"


def _architecture(trial: Trial) -> dict[str, Any]:
    """What is compared: an architecture as it is, which does not grow."""
    return trial.design.blueprint.model_copy(update={"growth": ()}).to_json()


def _alone(experiment: Experiment, trial: Trial) -> dict[str, Any]:
    """The experiment as data: on all tokens, trained as the design says, never ended early, on the same text whatever
    became of the weights."""
    plain = experiment.model_dump(mode="json")
    plain["train"] = {**trial.design.train.model_dump(mode="json"), **UNGUARDED, "max_tokens": trial.tokens}
    how = "scratch" if trial.heritage is None else "parent"
    plain["evolution"] |= {"weight_inheritance": how, "inherit_optimizer": False, "crossover_prob": 0.0}
    plain["data"] |= {"healing_tokens": 0}
    return plain


def _job(shop: Workshop, id: str, trial: Trial, run_dir: str) -> Job:
    """The same candidate index for all: streams then differ by the trial's seed alone."""
    blueprint = _architecture(trial)
    job = Job(
        experiment=_alone(shop.experiment, trial),
        candidate=Candidate(id=id, index=0, generation=0, blueprint=blueprint),
        parents=(),
        ancestors=(),
        stages=(Stage(rung=2, budget_tokens=trial.tokens),),
        seed=trial.seed,
        run_dir=run_dir,
        device=shop.device,
    )
    if (heritage := trial.heritage) is None:
        return job
    found = changes(heritage.blueprint, Blueprint.model_validate(blueprint))
    edits = (Edit(operator="trial", target="model", preserves=False, changes=found),) if found else ()
    steps = heritage.tokens // shop.prepared.tokens_per_step
    return job.replace(
        candidate=job.candidate.replace(parents=(heritage.id,), edits=edits),
        parents=(
            ParentRef(
                id=heritage.id, blueprint=heritage.blueprint.to_json(), checkpoint=f"{HOME}/{heritage.checkpoint}"
            ),
        ),
        ancestors=(Ancestor(first_token=0, steps=steps, tokens=heritage.tokens),),
    )


def _measured_on(prepared: PreparedData, split: Split) -> PreparedData:
    """The data with `split` in the place of the eval split."""
    shards = tuple(replace(shard, files={**shard.files, "eval": shard.files[split]}) for shard in prepared.eval_shards)
    return replace(prepared, eval_shards=shards)
