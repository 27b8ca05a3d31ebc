"""In process: one candidate after the other, each using all the threads torch was given."""

from collections.abc import Iterable, Iterator
from functools import partial

from morphogen.candidate import Job, Report, Status
from morphogen.data.prepare import PreparedData
from morphogen.errors import MorphogenError
from morphogen.execution.base import Progress
from morphogen.training.surrogate import run_surrogate


class InProcess:
    """The default executor. `prepared`: the experiment's data, made ready once for all jobs."""

    def __init__(self, prepared: PreparedData | None = None) -> None:
        self.prepared = prepared

    def map(self, jobs: Iterable[Job], progress: Progress) -> Iterator[Report]:
        """One report per job, in order. Whatever a candidate raises is its own failure, unless it is the run's."""
        for job in jobs:
            yield self._run(job, progress)

    def _run(self, job: Job, progress: Progress) -> Report:
        try:
            return run_surrogate(job, partial(progress, job.candidate), self.prepared)
        except MorphogenError:
            raise
        except Exception as error:  # whatever went wrong is on record, and the other candidates go on
            return failure(job, error)


def failure(job: Job, error: Exception) -> Report:
    """The report of a candidate that raised: the error's kind, its first line, and where it came from."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = f" ({trace.tb_frame.f_code.co_qualname}:{trace.tb_lineno})" if trace is not None else ""
    text = (str(error) or "no message").splitlines()[0]
    return Report(id=job.candidate.id, status=Status.FAILED, reason=f"{type(error).__name__}: {text}{where}")
