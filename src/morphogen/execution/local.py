"""In process: one candidate after the other, each using all the threads torch was given."""

from collections.abc import Iterable, Iterator

from morphogen.candidate import Job, Report
from morphogen.data.prepare import PreparedData
from morphogen.errors import MorphogenError
from morphogen.execution.base import Progress, Runner, failure, from_outside, outside
from morphogen.training.trace import StepInfo
from morphogen.training.trial import run_surrogate


class InProcess:
    """The default executor. `prepared`: the experiment's data, made ready once for all jobs."""

    def __init__(self, prepared: PreparedData | None = None, runner: Runner = run_surrogate) -> None:
        self.prepared = prepared
        self.runner = runner

    def map(self, jobs: Iterable[Job], progress: Progress) -> Iterator[Report]:
        """One report per job, in order."""
        for job in jobs:
            yield self.run(job, progress)

    def run(self, job: Job, progress: Progress) -> Report:
        """The report of one job. What `progress` raises is raised, whatever the runner makes of it."""
        raised: list[BaseException] = []

        def tell(step: StepInfo) -> None:
            try:
                progress(job.candidate, step)
            except BaseException as error:
                raised.append(error)
                raise

        try:
            outcome: Report | BaseException = self.runner(job, tell, self.prepared)
        except (Exception, SystemExit) as error:  # whatever went wrong is on record, and the other candidates go on
            outcome = error
        if raised:
            raise raised[0]
        if isinstance(outcome, Report):
            return outcome
        if isinstance(outcome, MorphogenError):
            raise outcome
        if from_outside(outcome):
            raise outside(job, outcome) from outcome
        return failure(job, outcome)

    def close(self) -> None:
        """There is nothing to end."""
