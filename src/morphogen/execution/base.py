"""What carries jobs out. An executor knows nothing of the search; the same job gives the same report in all of them."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

from morphogen.candidate import Candidate, Job, Report, Status
from morphogen.data.prepare import PreparedData
from morphogen.training.loop import StepInfo

#: Called after every training step of a candidate.
Progress = Callable[[Candidate, StepInfo], None]
#: Evaluates one candidate, telling of its steps; `run_surrogate` is one.
Runner = Callable[[Job, Callable[[StepInfo], None] | None, PreparedData | None], Report]
#: A job whose worker dies is begun at most so many times: whatever killed it may have had nothing to do with it.
ATTEMPTS = 2


@dataclass(frozen=True)
class Limits:
    """What one candidate may take; None is no limit.

    seconds: of wall time, from when a worker begins with it. memory_bytes: resident in its worker, libraries included
    (about 300 MB before anything is trained). A candidate beyond either is ended, and recorded as failed.
    """

    seconds: float | None = None
    memory_bytes: int | None = None


NO_LIMITS = Limits()


@dataclass(frozen=True)
class Execution:
    """How a run's candidates are carried out. It changes how long that takes, not what is found, unless a limit is hit.

    workers: processes (local) or candidates (ray) at a time; None is in process, or as many as the cluster has room
    for. The others are for ray: address of a cluster that runs (None starts one here), the share of a GPU that a
    candidate takes, and a path or fsspec URL through which nodes without the run folder exchange checkpoints.
    """

    executor: Literal["local", "ray"] = "local"
    workers: int | None = None
    limits: Limits = NO_LIMITS
    address: str | None = None
    gpus_per_candidate: float = 0.0
    shared: str | None = None


#: One candidate after the other, without limits.
IN_PROCESS = Execution()


class Executor(Protocol):
    """Runs jobs."""

    def map(self, jobs: Iterable[Job], progress: Progress) -> Iterator[Report]:
        """One report per job, as each is finished.

        A candidate that fails is reported as failed, with its reason. Only what concerns the whole run (a run folder
        that cannot be written, an interrupt) is raised.
        """
        ...

    def close(self) -> None:
        """Ends its processes, whatever they do."""
        ...


def failed(job: Job, reason: str) -> Report:
    """The report of a candidate of which nothing else is known."""
    return Report(id=job.candidate.id, status=Status.FAILED, reason=reason)


def failure(job: Job, error: Exception) -> Report:
    """The report of a candidate that raised: the error's kind, its first line, and where it came from."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = f" ({trace.tb_frame.f_code.co_qualname}:{trace.tb_lineno})" if trace is not None else ""
    text = (str(error) or "no message").splitlines()[0]
    return failed(job, f"{type(error).__name__}: {text}{where}")
