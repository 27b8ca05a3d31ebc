"""Checkpoints in the middle of a candidate, from which it goes on wherever it is begun again, as though it had never
stopped.

They lie below the run's folder, or where the job says: at a path or fsspec URL that whoever carries it out next reaches
too. A candidate's own job finds them and no other: their names hold a digest of all that its report depends on.
"""

import contextlib
import hashlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import fsspec
import torch
from pydantic import ValidationError
from torch import Tensor

from morphogen import __version__
from morphogen.blueprint.schema import Blueprint
from morphogen.candidate import Job, Report, moments_path
from morphogen.errors import InputError, RunError
from morphogen.store.files import canonical_json, remove_stale, write_atomic
from morphogen.training import snapshots
from morphogen.training.saved import Saved
from morphogen.training.snapshots import Snapshot
from morphogen.training.trainer import READ_EVERY

FOLDER = "partial"
#: What of a job changes where and how it is carried out, and nothing that is reported.
NOT_OF_REPORTS = ("run_dir", "device", "checkpoint_tokens", "partial_at")
_STEP = re.compile(r"\.(\d{8,})\.safetensors")


class Midway:
    """The checkpoints of one job. RunError where their place cannot be used."""

    def __init__(self, job: Job) -> None:
        self.job, self.on = job, job.checkpoint_tokens > 0
        self._here = Path(job.run_dir) / FOLDER
        self._name = f"{job.candidate.id}-{_digest(job)}" if self.on else ""
        self._remote = bool(job.partial_at)
        if not self.on:
            return
        try:
            self._files, root = fsspec.core.url_to_fs(job.partial_at or str(Path(job.run_dir).resolve()))
        except (ImportError, ValueError) as error:
            raise InputError(f"--shared: got {job.partial_at!r}: {error}") from None
        self._root = f"{root.rstrip('/')}/{FOLDER}"

    def due(self, step: int, first: int, tokens_per_step: int) -> int:
        """The first step after `step` at which a checkpoint is due, in legs that begin at step `first`. On an
        accelerator guards are heard at steps of their own, which checkpoints do not move."""
        every = max(1, self.job.checkpoint_tokens // tokens_per_step)
        if self.job.device != "cpu":
            every = -(-every // READ_EVERY) * READ_EVERY
        return first + ((step - first) // every + 1) * every

    def reached(self) -> int:
        """The step of the latest checkpoint; -1 where there is none."""
        return max((step for step, _ in self._found()), default=-1) if self.on else -1

    def latest(self) -> Snapshot | None:
        """The latest sound checkpoint; one that was cut when its writer died is passed over."""
        for _, there in sorted(self._found(), reverse=True) if self.on else ():
            with self._local(there) as path, contextlib.suppress(InputError):
                return snapshots.read(path)
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
        earlier = self._found()
        path = self._here / f"{self._name}.{step:08}.safetensors"
        snapshots.write(path, self.job.candidate.id, step, blueprint, state, averages, saved, {})
        self._move(path)
        for at, there in earlier:
            if at != step:
                with self._told():
                    self._files.rm_file(there)

    def finish(self, report: Report) -> None:
        """Notes what came of the training, of which a twin is yet to be trained."""
        if not self.on:
            return
        for weights in self._weights(report) if self._remote else ():
            if weights.is_file():
                self._send(weights, f"{self._name}.{weights.name}")
        path = self._here / f"{self._name}.json"
        self._here.mkdir(parents=True, exist_ok=True)
        write_atomic(path, report.model_dump_json().encode())
        self._move(path)

    def finished(self) -> Report | None:
        """What `finish` noted, where the weights are there too."""
        if not self.on:
            return None
        there = f"{self._root}/{self._name}.json"
        with self._told():
            raw = self._files.cat_file(there) if self._files.exists(there) else b""
        try:
            report = Report.model_validate_json(raw)
        except ValidationError:
            return None
        weights = self._weights(report)
        for path in weights if self._remote else ():
            with self._told():
                kept = f"{self._root}/{self._name}.{path.name}"
                if self._files.exists(kept):
                    path.parent.mkdir(parents=True, exist_ok=True)
                    self._files.get_file(kept, str(path))
        return report if not weights or weights[-1].is_file() else None

    def clear(self) -> None:
        """Removes all of the job's: it is done."""
        if not self.on:
            return
        for there in self._all():
            with self._told():
                self._files.rm_file(there)
        remove_stale(self._here)

    def _weights(self, report: Report) -> list[Path]:
        """Files of a trained candidate's checkpoint, in the run's folder here; the moments may be missing."""
        if report.checkpoint is None:
            return []
        path = Path(self.job.run_dir) / report.checkpoint
        return [moments_path(path), path]

    def _all(self) -> list[str]:
        """Where all files of the job lie."""
        with self._told():
            self._files.invalidate_cache()
            try:
                names: list[str] = self._files.ls(self._root, detail=False)
            except FileNotFoundError:
                return []
        return [there for there in names if there.rpartition("/")[2].startswith(f"{self._name}.")]

    def _found(self) -> list[tuple[int, str]]:
        """(step, where) of every checkpoint of the job."""
        matches = ((_STEP.fullmatch(there.rpartition("/")[2].removeprefix(self._name)), there) for there in self._all())
        return [(int(match[1]), there) for match, there in matches if match]

    def _move(self, path: Path) -> None:
        """Brings a file from here to where the checkpoints lie, where that is elsewhere."""
        if self._remote:
            self._send(path, path.name)
            path.unlink()

    def _send(self, path: Path, name: str) -> None:
        with self._told():
            self._files.makedirs(self._root, exist_ok=True)
            self._files.put_file(str(path), f"{self._root}/{name}")

    @contextlib.contextmanager
    def _local(self, there: str) -> Iterator[Path]:
        """A file that lies there, as a file here."""
        path = self._here / there.rpartition("/")[2]
        if not self._remote:
            yield path
            return
        with self._told():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._files.get_file(there, str(path))
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise RunError(f"{self._root}: checkpoints cannot be kept there: {error.strerror or error}") from None


def _digest(job: Job) -> str:
    """Of all that the job's report depends on, versions too, and of what computes it."""
    told: dict[str, Any] = job.model_dump(mode="json", exclude=set(NOT_OF_REPORTS))
    told |= {"morphogen": __version__, "torch": torch.__version__, "on": job.device.partition(":")[0]}
    return hashlib.sha256(canonical_json(told).encode()).hexdigest()[:16]
