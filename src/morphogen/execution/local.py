"""In process: one candidate after the other, each using all the threads torch was given."""

from collections.abc import Iterable, Iterator
from functools import partial

from morphogen.candidate import Job, Report
from morphogen.data.prepare import PreparedData
from morphogen.errors import MorphogenError
from morphogen.execution.base import Progress, Runner, failure
from morphogen.training.surrogate import run_surrogate


class InProcess:
    """The default executor. `prepared`: the experiment's data, made ready once for all jobs."""

    def __init__(self, prepared: PreparedData | None = None, runner: Runner = run_surrogate) -> None:
        self.prepared = prepared
        self.runner = runner

    def map(self, jobs: Iterable[Job], progress: Progress) -> Iterator[Report]:
        """One report per job, in order. Whatever a candidate raises is its own failure, unless it is the run's."""
        for job in jobs:
            yield self.run(job, progress)

    def run(self, job: Job, progress: Progress) -> Report:
        """The report of one job."""
        try:
            return self.runner(job, partial(progress, job.candidate), self.prepared)
        except MorphogenError:
            raise
        except Exception as error:  # whatever went wrong is on record, and the other candidates go on
            return failure(job, error)

    def close(self) -> None:
        """There is nothing to end."""
