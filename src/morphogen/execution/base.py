"""What carries jobs out. An executor knows nothing of the search; the same job gives the same report in all of them."""

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from morphogen.candidate import Candidate, Job, Report
from morphogen.training.loop import StepInfo

#: Called after every training step of a candidate.
Progress = Callable[[Candidate, StepInfo], None]


class Executor(Protocol):
    """Runs jobs."""

    def map(self, jobs: Iterable[Job], progress: Progress) -> Iterator[Report]:
        """One report per job, as each is finished.

        A candidate that fails is reported as failed, with its reason. Only what concerns the whole run (a run folder
        that cannot be written, an interrupt) is raised.
        """
        ...
