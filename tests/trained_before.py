"""Trainings are not done twice, in tests of what lies around them.

A job is pure: the same one gives the same report and the same files whatever ran before, in any process, as
training/test_trial.py proves. Runs that are stopped, resumed, shown or damaged train the same few candidates again and
again; here the second time is a copy of the first: its steps are told, its files written, its report given. What
differs in anything that a training reads (the job, its text, its parents' files) is trained.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from morphogen.candidate import Job, Report, moments_path
from morphogen.data.prepare import PreparedData, prepare
from morphogen.experiment import Experiment
from morphogen.store.files import write_atomic
from morphogen.training.midway import Midway
from morphogen.training.trace import Progress, StepInfo

#: What evaluates a job, in `training.trial`.
Attempt = Callable[..., Report]
#: Of prepared data, where it lies.
PLACES = ("path", "vocabulary_path", "source")


class Training(NamedTuple):
    """What it told, left and found."""

    steps: list[StepInfo]
    files: dict[str, bytes]
    report: Report


class Remembering:
    """Does every training once."""

    def __init__(self, attempt: Attempt) -> None:
        self.attempt = attempt
        self._known: dict[str, Training] = {}

    def __call__(
        self, job: Job, midway: Midway, progress: Progress | None, prepared: PreparedData | None, *, keep: bool
    ) -> Report:
        """As `training.trial._attempt`."""
        key = None if midway.on else _key(job, prepared or _prepared(job), keep)
        if key is None:
            return self.attempt(job, midway, progress, prepared, keep=keep)
        folder = Path(job.run_dir)
        if key not in self._known:
            steps = list[StepInfo]()

            def tell(step: StepInfo) -> None:
                steps.append(step)
                if progress is not None:
                    progress(step)

            report = self.attempt(job, midway, tell, prepared, keep=keep)
            files = {name: (folder / name).read_bytes() for name in _files(folder, report.checkpoint)}
            self._known[key] = Training(steps, files, report)
            return report
        known = self._known[key]
        for step in known.steps:
            if progress is not None:
                progress(step)
        for name, content in known.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            write_atomic(folder / name, content)
        return known.report


def _prepared(job: Job) -> PreparedData:
    """What a job that comes without it finds in the cache."""
    return prepare(Experiment.model_validate(job.experiment).data)


def _files(folder: Path, checkpoint: str | None) -> list[str]:
    """Those of a checkpoint that are there, below the run's folder."""
    names = [] if checkpoint is None else [checkpoint, str(moments_path(Path(checkpoint)))]
    return [name for name in names if (folder / name).is_file()]


def _key(job: Job, prepared: PreparedData, keep: bool) -> str | None:
    """The digest of all that a training reads; None where some of it is not there."""
    folder, plain = Path(job.run_dir), job.model_dump(mode="json", exclude={"run_dir"})
    before = [parent.checkpoint for parent in job.parents]
    before += [job.before.checkpoint] if job.before is not None and job.before.checkpoint is not None else []
    if not all((folder / name).is_file() for name in before):
        return None
    found = [(folder / name).read_bytes() for checkpoint in before for name in _files(folder, checkpoint)]
    shards = (*prepared.shards, *prepared.eval_shards, *prepared.healing_shards)
    tokens = [path for shard in shards for file in shard.files.values() for path in file.paths]
    if plain["experiment"]["train"].get("init_checkpoint") is not None or not all(
        Path(path).is_file() for path in tokens
    ):
        return None
    read = [plain, dataclasses.asdict(prepared), [hashlib.sha256(data).hexdigest() for data in found], keep]
    return hashlib.sha256(json.dumps(_placeless(read), sort_keys=True, default=str).encode()).hexdigest()


def _placeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(name): _placeless(item) for name, item in value.items() if name not in PLACES}
    return [_placeless(item) for item in value] if isinstance(value, list | tuple) else value
