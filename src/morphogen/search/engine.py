"""The search for architectures: the state machine over blueprints, and the jobs that measure them.

ask()  ->  while pending(): tell(report of job(candidate)) for each of them  ->  close_generation()  ->  ask() ...
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Self

from morphogen.blueprint.diff import Traits
from morphogen.blueprint.record import understood
from morphogen.candidate import Ancestor, Candidate, Job, Measured, ParentRef, Report, Stage, Twin
from morphogen.cost import Step, costs, train_flops
from morphogen.errors import RunError
from morphogen.experiment import RATE_FOUND, Experiment
from morphogen.search.machine import Search
from morphogen.search.novelty import NAME as NOVELTY
from morphogen.search.outside import Outside
from morphogen.search.rungs import check_thresholds, rounds, stages
from morphogen.search.space import Architectures, Design, Placed
from morphogen.selection.objectives import unmet
from morphogen.store.ledger import Event, Start
from morphogen.store.proposals import Proposed, Refused


class Engine(Search[Design, Traits]):
    """The search of one run, as `Search`, for the blueprints of an experiment."""

    def __init__(self, experiment: Experiment, *, seed: int, run_dir: str, device: str) -> None:
        """InputError for unknown operators in mutation_weights or templates, unknown costs in rung0_thresholds, or no
        vocabulary."""
        experiment = experiment.in_precision(False)  # one in which nobody has settled it computes in float32
        evolution = experiment.evolution
        check_thresholds(
            evolution,
            costs(experiment.model, experiment.data.seq_len, Step.of(experiment.train, experiment.data.batch_size)),
        )
        scored = evolution.model_copy(update={"weights": experiment.scored_by})
        super().__init__(scored, Architectures(experiment), seed=seed)
        self.experiment, self.run_dir, self.device = experiment, run_dir, device

    @classmethod
    def replay(
        cls, events: Iterable[Event], *, run_dir: str, device: str, experiment: Experiment | None = None
    ) -> Self:
        """The engine of a recorded run, as it stood after these events.

        Args:
            events: The run's, from its start on.
            run_dir: Where checkpoints lie.
            device: What further candidates are trained on.
            experiment: Taken in place of the recorded one, such as one with more generations.

        Raises:
            RunError: The first event is no start, or the others do not follow one another.
            InputError: The experiment cannot be understood.
        """
        rest = iter(events)
        first = next(rest, None)
        if not isinstance(first, Start):
            raise RunError(f"replay: the first event is {first.kind if first else 'missing'}, expected start")
        experiment = experiment or understood(Experiment, first.experiment, "the recorded experiment")[0]
        engine = cls(experiment, seed=first.seed, run_dir=run_dir, device=device)
        for event in rest:
            engine.apply(event)
        return engine

    def placed(self, answers: Sequence[Proposed | Refused]) -> tuple[list[Placed[Design]], list[Refused]]:
        """As `Search.placed`: what was told has its places first, and there are no more than `population`."""
        taken = [*self.told, *answers][: self.evolution.population]
        return self.outside.placed(taken, self._keys) if taken else ([], [])

    @property
    def outside(self) -> Outside:
        """By what proposals for the next generation are understood: survivors and frontier may be parents."""
        assert isinstance(self.space, Architectures)
        ids = dict.fromkeys((*self.survivors, *self.frontier_ids))
        parents = {id: self._genome(id) for id in ids if self.reports[id].checkpoint is not None}
        survivors = sum(id in self.survivors for id in parents)
        return Outside(self.space, self.evolution, parents, survivors)

    @property
    def unmet(self) -> str:
        """What keeps all of the frontier outside of the constraints, or without a value of an objective; empty where
        that holds for nobody, or not for all."""
        evolution, best = self.evolution, [self.reports[id] for id in self.frontier_ids]
        return unmet(best, evolution.objectives, evolution.constraints, evolution.noise)

    def job(self, candidate: Candidate) -> Job:
        """All that evaluating a candidate needs: in this round where it is pending, else in its first one.

        Args:
            candidate: One that was asked for.

        Raises:
            RunError: A parent has no checkpoint to inherit from.
        """
        number = self.round if self.waits(candidate.id) else 0
        return self.job_in(candidate, number, self.reports[candidate.id] if number else None)

    def job_in(self, candidate: Candidate, number: int, before: Report | None) -> Job:
        """All that evaluating a candidate in one round of training needs.

        Args:
            candidate: One that was asked for.
            number: Of the round.
            before: What the round before it gave; None for the first.

        Raises:
            RunError: A parent has no checkpoint to inherit from.
        """
        budget_tokens = sum(stage.budget_tokens for stage in self.scaled(candidate, stages(self.evolution)))
        planned = self.scaled(candidate, rounds(self.evolution)[number])
        job = self.job_of(candidate, planned, before=before, budget_tokens=budget_tokens)
        if not candidate.parents or not self.evolution.twin_share:
            return job
        if candidate.continues and len(rounds(self.evolution)) == 1:
            return job.replace(twin=self._twin(candidate.parents[0]))
        return job.replace(with_twin=True)  # in each of several rounds one that was trained as long as all others

    def _twin(self, id: str) -> Twin:
        """That of a trained candidate; the root is its own."""
        report, share = self.reports[id], self.evolution.twin_share
        its = {name: dict(report)[name] for name in Measured.model_fields}
        its["metrics"] = {name: value for name, value in report.metrics.items() if name != NOVELTY}  # changes with time
        own = Twin(**its, share=share, tokens=report.tokens.own, steps=report.steps, flops=report.flops)
        return own if report.twin is None else report.twin

    def job_of(
        self,
        candidate: Candidate,
        planned: tuple[Stage, ...],
        *,
        before: Report | None = None,
        repeat: int = 0,
        budget_tokens: int = 0,
    ) -> Job:
        """All that training a candidate over these stages needs; it may be one of which the search knows nothing, a
        child of those that it knows."""
        inherits = self.evolution.weight_inheritance == "parent"
        first = candidate.generation == 0 and before is None
        return Job(
            experiment=(self.experiment if first else self.as_trained).model_dump(mode="json"),
            candidate=candidate,
            parents=tuple(self._parent(candidate, id) for id in candidate.parents) if inherits and not before else (),
            ancestors=tuple(self._ancestors(candidate)) if inherits else (),
            stages=planned,
            seed=self.seed,
            run_dir=self.run_dir,
            device=self.device,
            before=before,
            repeat=repeat,
            first_token=self._first_token(candidate),
            budget_tokens=budget_tokens,
        )

    @property
    def as_trained(self) -> Experiment:
        """The experiment as all but the root train by it: with the learning rate that the root found, where it is
        `auto`."""
        found = [self.reports[id].metrics.get(RATE_FOUND) for id in list(self.candidates)[:1] if id in self.reports]
        return self.experiment.with_train({"lr": found[0]}) if found and found[0] is not None else self.experiment

    def scaled(self, candidate: Candidate, planned: tuple[Stage, ...]) -> tuple[Stage, ...]:
        """The stages as planned; under `budget: flops` each with as many tokens as take the candidate the FLOPs that
        the experiment's own model takes for those planned."""
        if self.evolution.budget == "tokens":
            return planned
        seq_len = self.experiment.data.seq_len
        own = train_flops(self._genome(candidate.id).blueprint, seq_len, 1)
        factor = train_flops(self.experiment.model, seq_len, 1) / own
        return tuple(stage.replace(budget_tokens=max(1, math.floor(stage.budget_tokens * factor))) for stage in planned)

    def _parent(self, candidate: Candidate, id: str) -> ParentRef:
        parent, report = self.known(id)
        if report.checkpoint is None:
            raise RunError(f"candidate {candidate.id} inherits from {id}, which has no checkpoint")
        return ParentRef(id=id, blueprint=parent.as_trained(report).blueprint, checkpoint=report.checkpoint)

    def _ancestors(self, candidate: Candidate) -> Iterator[Ancestor]:
        for one, report in self._behind(candidate):
            yield Ancestor(first_token=self._first_token(one), steps=report.steps, tokens=report.tokens.own)

    def _behind(self, candidate: Candidate) -> list[tuple[Candidate, Report]]:
        """Every distinct ancestor, in order of index."""
        found: dict[str, tuple[Candidate, Report]] = {}
        left = list(candidate.parents)
        while left:
            id = left.pop()
            if id not in found:
                found[id] = self.known(id)
                left += found[id][0].parents
        return sorted(found.values(), key=lambda known: known[0].index)

    def known(self, id: str) -> tuple[Candidate, Report]:
        """A candidate, or a control of one, and what was measured of it."""
        if (repeated := self.again.get(id)) is not None:
            return repeated.candidate, repeated.report
        return self.candidates[id], self.reports[id]

    def _first_token(self, candidate: Candidate) -> int:
        """Where in the run's text a candidate begins: all of a generation at one place, where the last one ended.

        Candidates that inherit no weights of the run begin at the beginning, all with the same text.
        """
        if self.evolution.weight_inheritance != "parent":
            return 0
        each = sum(stage.budget_tokens for planned in rounds(self.evolution) for stage in planned)
        return candidate.generation * min(each, self.experiment.train.max_tokens)
