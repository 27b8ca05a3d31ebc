"""What carries jobs out. An executor knows nothing of the search; the same job gives the same report in all of them.

A candidate's own faults (out of memory, a mistake in its layers, a worker that it kills, a limit) are reported as its
failure, for good. Faults from outside (files that are gone, a full disk, no handles, a library or a device that is not
there, workers that do not even start) are raised: they say nothing of the candidate, which can be trained later.
"""

import errno
import os
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from morphogen.candidate import Candidate, Job, Report, Status
from morphogen.data.prepare import PreparedData
from morphogen.errors import RunError, first_line, raised
from morphogen.store.exchange import Exchange
from morphogen.store.files import write_atomic
from morphogen.store.outputs import PARTIAL
from morphogen.training.trace import StepInfo

#: Called after every training step of a candidate.
Progress = Callable[[Candidate, StepInfo], None]
#: Evaluates one candidate, telling of its steps; `run_surrogate` is one.
Runner = Callable[[Job, Callable[[StepInfo], None] | None, PreparedData | None], Report]
#: A job whose worker dies is begun at most so many times: whatever killed it may have had nothing to do with it.
ATTEMPTS = 2
#: A machine that is lost was most likely taken away, so that so many may be.
MACHINES = 8
#: What libraries that know no OSError say when the system has no more threads, handles or room to give.
_EXHAUSTED = (
    "can't start new thread",
    *(
        os.strerror(number)
        for number in (errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.EDQUOT, errno.EIO)
    ),
)
#: In a run's folder for checkpoints in the middle of candidates: what the one is called that machines share.
NOTE = ".place"
#: More processes than these are taken for a slip.
MOST_WORKERS = 4096


@dataclass(frozen=True)
class Limits:
    """What one candidate may take; None is no limit. A candidate beyond either is ended, and recorded as failed.

    Attributes:
        seconds: Of wall time, from when a worker begins with it.
        memory_bytes: Resident in its worker, libraries included (about 300 MB before anything is trained).
    """

    seconds: float | None = None
    memory_bytes: int | None = None


NO_LIMITS = Limits()


@dataclass(frozen=True)
class Execution:
    """How a run's candidates are carried out. It changes how long that takes, not what is found, unless a limit is hit.

    Attributes:
        executor: On this machine, or on a Ray cluster.
        workers: Processes (local) or candidates (ray) at a time; None is in process, or as many as the cluster has room
            for.
        limits: Of each candidate.
        address: Of a cluster that runs; None starts one here. For ray.
        gpus_per_candidate: The share of a GPU that a candidate takes; None: what its memory is predicted to need. For
            ray.
        shared: A path or fsspec URL through which nodes without the run folder exchange checkpoints. For ray.
        checkpoint_tokens: Tokens between two checkpoints in the middle of a candidate; 0: none.
    """

    executor: Literal["local", "ray"] = "local"
    workers: int | None = None
    limits: Limits = NO_LIMITS
    address: str | None = None
    gpus_per_candidate: float | None = 0.0
    shared: str | None = None
    checkpoint_tokens: int = 0

    @property
    def elsewhere(self) -> bool:
        """Whether candidates are trained on other machines, which may have devices that this one lacks."""
        return self.executor == "ray" and self.address is not None


#: One candidate after the other, without limits.
IN_PROCESS = Execution()


class Executor(Protocol):
    """Runs jobs."""

    def map(self, jobs: Iterable[Job], progress: Progress) -> Iterator[Report]:
        """Carries out jobs.

        A candidate that fails is reported as failed, with its reason; what is not its fault is raised.

        Args:
            jobs: What to do.
            progress: Called after every step of training.

        Returns:
            One report per job, as each is finished.

        Raises:
            RunError: A fault from outside.
            InputError: A fault from outside, of what the user gave.
            Exception: Whatever `progress` raises.
        """
        ...

    def close(self) -> None:
        """Ends its processes, whatever they do."""
        ...


class Checkpointing:
    """Another executor, for jobs that leave checkpoints in their middle every so many tokens and go on from them."""

    def __init__(self, executor: Executor, tokens: int, shared: str | None = None) -> None:
        """shared: a path or fsspec URL where they lie; None: in the run's folder."""
        self.executor, self.tokens, self.shared = executor, tokens, shared

    def map(self, jobs: Iterable[Job], progress: Progress) -> Iterator[Report]:
        """As the other's. What lies at a shared place is gone when all are done."""
        jobs = list(jobs)
        place = self._place(Path(jobs[0].run_dir)) if self.shared and jobs else ""
        yield from self.executor.map(
            [job.replace(checkpoint_tokens=self.tokens, partial_at=place) for job in jobs], progress
        )
        if place:
            Exchange(f"{self.shared}/{PARTIAL}").remove_all()

    def _place(self, run_dir: Path) -> str:
        """Where they lie that this run left: no other, not even one that was in the same folder, goes on from them."""
        note = run_dir / PARTIAL / NOTE
        if not note.is_file():
            note.parent.mkdir(exist_ok=True)
            write_atomic(note, uuid.uuid4().hex.encode())
        return f"{self.shared}/{PARTIAL}/{note.read_text()}"

    def close(self) -> None:
        """As the other's."""
        self.executor.close()


@dataclass(frozen=True)
class Losses:
    """How often what carried a job out was lost, a worker or a whole machine, and how far it had come by then
    (`Midway.reached`)."""

    times: int = 0
    machines: int = 0
    reached: int = -1

    def another(self, reached: int, *, machine: bool = False) -> "Losses":
        """After one more. One by which more was trained than by the last counts as the first: whatever loses a
        candidate again and again at the same place may well be the candidate."""
        times, machines = (0, 0) if reached > self.reached else (self.times, self.machines)
        return Losses(times + (not machine), machines + machine, reached)

    @property
    def why_no_more(self) -> str:
        """Why the job is given up; empty where it is begun once more."""
        if self.machines >= MACHINES:
            return f"the machines that it was on were lost {self.machines} times"
        return f"its worker died {self.times} times" if self.times >= ATTEMPTS else ""


#: Nothing was lost yet.
NO_LOSSES = Losses()


def failed(job: Job, reason: str) -> Report:
    """The report of a candidate of which nothing else is known."""
    return Report(id=job.candidate.id, status=Status.FAILED, reason=reason)


def from_outside(error: BaseException | None) -> bool:
    """Whether what a candidate raised, or what that was raised from, is the machine's or the installation's fault."""
    while error is not None:
        if isinstance(error, OSError | ImportError):
            return True
        if isinstance(error, RuntimeError) and any(sign in str(error) for sign in _EXHAUSTED):
            return True
        error = error.__cause__
    return False


def outside(job: Job, error: BaseException) -> RunError:
    """A fault from outside, in one line that says which candidate met it."""
    found = error.__cause__ if error.__cause__ is not None else error
    where = f"{found.filename}: " if isinstance(found, OSError) and found.filename is not None else ""
    text = (found.strerror if isinstance(found, OSError) else None) or first_line(found)
    return RunError(f"{where}{text} (while candidate {job.candidate.id} was trained)")


def failure(job: Job, error: BaseException) -> Report:
    """The report of a candidate that raised: the error's kind, its first line, and where it came from."""
    return failed(job, raised(error))
