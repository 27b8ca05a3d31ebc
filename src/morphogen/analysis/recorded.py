"""A run as its ledger tells it, for whoever measures again."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from morphogen.candidate import Candidate, Report, Status
from morphogen.continued import Continued
from morphogen.errors import InputError, RunError, unknown
from morphogen.experiment import Experiment
from morphogen.figures import Direction, direction, find
from morphogen.reading import found_again, located
from morphogen.search.engine import Engine
from morphogen.search.space import Architectures, Design
from morphogen.store.frontier import Frontier
from morphogen.store.ledger import FILE as LEDGER
from morphogen.store.ledger import Generation, Ledger, Start


@dataclass(frozen=True)
class Recorded:
    """A run as of its last closed generation: its experiment as resolved, everything asked for and what became of it by
    id, and the frontier's ids."""

    folder: Path
    name: str
    seed: int
    experiment: Experiment
    candidates: dict[str, Candidate]
    reports: dict[str, Report]
    frontier: tuple[str, ...]
    continues: Continued | None = None

    @classmethod
    def read(cls, path: Path) -> Self:
        """The run in a folder, or the one that a frontier file belongs to (its finalists are then that file's).

        A frontier file lies in its run's folder, or beside a folder of its name. InputError where no run is found,
        RunError as `Ledger`, or where no generation is closed.
        """
        folder = run_of(path)
        with Ledger.open(folder, readonly=True) as ledger:
            events = list(ledger.events())
        last = max((place for place, event in enumerate(events) if isinstance(event, Generation)), default=None)
        if last is None or not isinstance(events[0], Start):
            raise RunError(f"{folder}: no generation of this run is closed yet, so there is nothing to measure again")
        # what a report was told as is not what became of it: halving stops some, and a later rung may fail
        engine = Engine.replay(events[: last + 1], run_dir=str(folder), device="cpu")
        candidates, frontier = engine.candidates, engine.frontier_ids
        if path != folder:
            frontier = tuple(entry.id for entry in Frontier.read(path).candidates)
            if strangers := [id for id in frontier if id not in candidates]:
                raise InputError(f"{path}: {strangers[0]} is no candidate of the run in {folder}")
        return cls(
            folder=folder,
            name=events[0].run,
            seed=events[0].seed,
            experiment=found_again(located(engine.as_trained), folder),
            candidates=candidates,
            reports=engine.reports,
            frontier=frontier,
            continues=events[0].continues,
        )

    @property
    def trained(self) -> list[Candidate]:
        """Candidates measured at the highest rung, by index."""
        found = [self.candidates[id] for id, report in self.reports.items() if report.status is Status.TRAINED]
        return sorted(found, key=lambda candidate: candidate.index)

    @property
    def budget_tokens(self) -> int:
        """The most training tokens that any one candidate had for itself."""
        return max(report.tokens.own for report in self.reports.values())

    def value(self, id: str, metric: str) -> float:
        """A candidate's metric as the run measured it. InputError where it has none, with the nearest name."""
        found = self.reports[id].value(metric)
        if found is None:
            raise InputError(unknown(f"--metric (of {id})", metric, self.reports[id].metrics))
        return found

    def check_metric(self, metric: str, ids: Iterable[str]) -> None:
        """InputError, with the nearest name, unless training these candidates' designs from scratch measures it, and
        one way of it is better."""
        alike = frozenset.intersection(*(frozenset(self.reports[id].metrics) for id in ids))
        allowed = {name for name in alike if (figure := find(name)) is not None and figure.sort == "metric"}
        allowed -= self.experiment.evolution.composite_metrics.keys()
        if metric not in allowed:
            raise InputError(unknown("--metric", metric, allowed))
        self.direction(metric)

    def best(self, metric: str) -> list[str]:
        """The frontier, best first."""
        sign = 1.0 if self.direction(metric) == "min" else -1.0
        return sorted(self.frontier, key=lambda id: (sign * self.value(id, metric), id))

    def key(self, design: Design) -> str:
        """Equal for designs that the run took for the same."""
        return Architectures(self.experiment).key(design)

    def design(self, id: str) -> Design:
        """A candidate's blueprint as trained, and how it is trained."""
        return Architectures(self.experiment).load(self.candidates[id].as_trained(self.reports.get(id)))

    def direction(self, metric: str) -> Direction:
        """Which way the metric is better."""
        return direction(metric, self.experiment.evolution.directions, "--metric")

    @property
    def generations(self) -> int:
        """The last generation that has trained candidates; 0 is the root's."""
        return max(candidate.generation for candidate in self.trained)


def run_of(path: Path) -> Path:
    if path.is_dir():
        return path
    if not path.exists():
        raise InputError(f"{path}: no such run folder or frontier file")
    for folder in (path.parent, path.with_suffix("")):
        if (folder / LEDGER).is_file():
            return folder
    raise InputError(
        f"{path}: no run beside it ({path.parent / LEDGER} is missing); expected a run folder or its frontier.json"
    )
