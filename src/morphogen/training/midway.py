"""Checkpoints in the middle of a candidate, from which it goes on wherever it is begun again, as though it had never
stopped.

They lie below the run's folder, or where the job says: at a path or fsspec URL that whoever carries it out next reaches
too. A candidate's own job finds them and no other: their names hold a digest of all that its report depends on.
"""

import contextlib
import hashlib
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import torch
from pydantic import ValidationError
from torch import Tensor

from morphogen import __version__
from morphogen.blueprint.schema import Blueprint
from morphogen.candidate import Job, Report, moments_path
from morphogen.errors import InputError, RunError
from morphogen.store.exchange import Exchange
from morphogen.store.files import canonical_json, remove_stale, write_atomic
from morphogen.store.outputs import PARTIAL
from morphogen.training import snapshots
from morphogen.training.saved import Saved
from morphogen.training.snapshots import Snapshot
from morphogen.training.trainer import READ_EVERY

#: What of a job changes where and how it is carried out, and nothing that is reported.
NOT_OF_REPORTS = ("run_dir", "device", "micro_batches", "shares", "checkpoint_tokens", "partial_at")
_STEP = re.compile(r"\.(\d{8,})\.safetensors")


class Midway:
    """The checkpoints of one job, or of the twin that belongs to it; none where the job asks for none. RunError where
    their place cannot be used."""

    def __init__(self, job: Job, suffix: str = "") -> None:
        """suffix: of their names; empty for the job's own."""
        self.job, self.on = job, job.checkpoint_tokens > 0
        if self.on:
            self._name = f"{job.candidate.id}-{_digest(job)}{suffix}"
            self._place = Exchange(job.partial_at or str(Path(job.run_dir) / PARTIAL))
            self._folder = self._place.folder or Path(job.run_dir) / PARTIAL

    def twin(self) -> Self:
        """Those of the job's twin, which `reached` and `clear` of the job's own count in."""
        return type(self)(self.job, ".twin")

    def due(self, step: int, tokens_per_step: int) -> int | None:
        """The first step after `step` at which a checkpoint is due; None where none ever is.

        On an accelerator it is one at which losses are read back anyway, so that guards are heard where they would be
        without checkpoints.
        """
        if not self.on:
            return None
        every = max(1, self.job.checkpoint_tokens // tokens_per_step)
        if self.job.device != "cpu":
            every = -(-every // READ_EVERY) * READ_EVERY
        return (step // every + 1) * every

    def reached(self) -> int:
        """How far the job has come: a number that rises with every checkpoint; -1 where there is none."""
        if not self.on:
            return -1
        noted = f"{self._name}.json" in self._all()
        own, twins = (max((step for step, _ in midway._found()), default=-1) for midway in (self, self.twin()))
        return own + noted + twins + 1

    def latest(self) -> Snapshot | None:
        """The latest sound checkpoint. One that is damaged, such as by a writer that died, is passed over aloud."""
        for _, name in reversed(self._found()) if self.on else ():
            try:
                with self._fetched(name) as path:
                    return snapshots.read(path)
            except FileNotFoundError:
                continue  # another that carries out the same job had no more need of it
            except InputError as error:
                warnings.warn(f"passed over, to go on from an earlier one: {error}", RuntimeWarning, stacklevel=2)
        return None

    def save(
        self,
        step: int,
        blueprint: Blueprint,
        state: Mapping[str, Tensor],
        averages: Mapping[str, Tensor],
        saved: Saved,
    ) -> None:
        """Leaves the checkpoint of a step, and then none of earlier ones. RunError where it cannot be written."""
        earlier = [name for at, name in self._found() if at < step]
        with self._written(f"{self._name}.{step:08}.safetensors") as path:
            snapshots.write(path, self.job.candidate.id, step, blueprint, state, averages, saved, {})
        for name in earlier:
            self._place.remove(name)

    def finish(self, report: Report) -> None:
        """Notes what came of the training, of which a twin is yet to be trained."""
        if not self.on:
            return
        for weights in self._weights(report) if self.job.partial_at else ():
            if weights.is_file():
                self._place.send(weights, f"{self._name}.{weights.name}")
        with self._written(f"{self._name}.json") as path:
            write_atomic(path, report.model_dump_json().encode())

    def finished(self) -> Report | None:
        """What `finish` noted, where the weights are there too."""
        there = self._all() if self.on else []
        if not self.on or f"{self._name}.json" not in there:
            return None
        try:
            report = Report.model_validate_json(self._place.read(f"{self._name}.json"))
            weights = self._weights(report)
            for path in weights if self.job.partial_at else ():
                if f"{self._name}.{path.name}" in there:
                    self._place.fetch(f"{self._name}.{path.name}", path)
        except (FileNotFoundError, ValidationError):
            return None
        return report if not weights or weights[-1].is_file() else None

    def clear(self) -> None:
        """Removes all of the job's, its twin's too: it is done, or will be begun from its start."""
        if not self.on:
            return
        for name in self._all():
            self._place.remove(name)
        remove_stale(self._folder)

    def _weights(self, report: Report) -> list[Path]:
        """Files of a trained candidate's checkpoint, in the run's folder here; the moments may be missing."""
        if report.checkpoint is None:
            return []
        path = Path(self.job.run_dir) / report.checkpoint
        return [moments_path(path), path]

    def _all(self) -> list[str]:
        """Names of all files of the job."""
        return [name for name in self._place.names() if name.startswith(f"{self._name}.")]

    def _found(self) -> list[tuple[int, str]]:
        """(step, name) of every checkpoint, the latest last."""
        matches = ((_STEP.fullmatch(name.removeprefix(self._name)), name) for name in self._all())
        return sorted((int(match[1]), name) for match, name in matches if match)

    @contextlib.contextmanager
    def _written(self, name: str) -> Iterator[Path]:
        """A path for a file to be written to at once and whole, which then lies among the checkpoints."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"{self._folder}: cannot be made: {error.strerror or error}") from None
        path = self._folder / name
        yield path
        if self._place.folder is None:
            try:
                self._place.send(path, name)
            finally:
                path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _fetched(self, name: str) -> Iterator[Path]:
        """A checkpoint as a file of this machine."""
        path = self._folder / name
        if self._place.folder is not None:
            yield path
            return
        try:
            self._place.fetch(name, path)
            yield path
        finally:
            path.unlink(missing_ok=True)


def _digest(job: Job) -> str:
    """Of all that the job's report depends on, versions too, and of what computes it."""
    told: dict[str, Any] = job.model_dump(mode="json", exclude=set(NOT_OF_REPORTS))
    told |= {"morphogen": __version__, "torch": torch.__version__, "on": job.device.partition(":")[0]}
    return hashlib.sha256(canonical_json(told).encode()).hexdigest()[:16]
