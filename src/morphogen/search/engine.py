"""The search as a state machine fed by events: ask for candidates, tell what was measured, close the generation.

It runs nothing and writes nothing. Its state is a function of the events it was given, so that replaying a ledger's
events resumes a run exactly. What is decided next depends on that state and on `stream(seed, candidate index,
purpose)`; not on the clock, on hash seeds, or on the order in which reports come in.

    ask()  ->  job(candidate) for each of pending()  ->  tell(report) for each  ->  close_generation()  ->  ask() ...
"""

from collections.abc import Iterable, Iterator
from typing import Self

import numpy as np

from morphogen.blueprint.diff import digest
from morphogen.blueprint.schema import Blueprint
from morphogen.candidate import Ancestor, Candidate, Job, ParentRef, Report, Status, stream
from morphogen.cost import costs
from morphogen.errors import OperatorError, RunError, nearest
from morphogen.experiment import Experiment, Train
from morphogen.search.novelty import NAME as NOVELTY
from morphogen.search.novelty import Novelty
from morphogen.search.rungs import check_thresholds, rejection, stages
from morphogen.selection.objectives import hypervolume, matrix, reference_point, resolve
from morphogen.selection.parents import select_parent
from morphogen.selection.survival import front, survive
from morphogen.store.ledger import Asked, Event, Generation, Reported, Start, Stop
from morphogen.variation.act import identity, trained
from morphogen.variation.crossover import crossover
from morphogen.variation.operator import Proposal
from morphogen.variation.policy import Policy

#: Proposals drawn for one place in a generation before the generation stays smaller.
TRIES = 50
#: Candidates that rung 0 may turn away in one generation, per offspring wanted.
REJECTIONS = 8
#: Operator names in a candidate's id take at most this many characters.
ID_LENGTH = 60


def candidate_id(operators: Iterable[str], index: int, blueprint: Blueprint) -> str:
    """`<operators joined by +>-<index>-<digest4>`; of many operators those that fit are named, the others counted."""
    names = list(operators)
    shown = len(names)
    while shown > 1 and len("+".join(names[:shown])) > ID_LENGTH:
        shown -= 1
    rest = [f"{len(names) - shown}more"] if shown < len(names) else []
    return f"{'+'.join([*names[:shown], *rest])}-{index}-{digest(blueprint)[:4]}"


class Engine:
    """The search of one run.

    candidates, reports: everything asked for and everything known of it, by id. survivors: best first.
    frontier_ids: the non-dominated among all trained candidates of the run, as of the last closed generation.
    generations: the events of the closed ones. generation: the last one asked for, -1 before the first.
    """

    def __init__(self, experiment: Experiment, *, seed: int, run_dir: str, device: str) -> None:
        """InputError for unknown operators in mutation_weights or templates, unknown costs in rung0_thresholds, or no
        vocabulary."""
        evolution = experiment.evolution
        check_thresholds(evolution, costs(experiment.model, experiment.data.seq_len))
        self.experiment, self.seed, self.run_dir, self.device = experiment, seed, run_dir, device
        self.candidates: dict[str, Candidate] = {}
        self.reports: dict[str, Report] = {}
        self.survivors: tuple[str, ...] = ()
        self.frontier_ids: tuple[str, ...] = ()
        self.generations: list[Generation] = []
        self.generation = -1
        self._blueprints: dict[str, Blueprint] = {}
        self._identities: set[str] = set()
        self._policy = Policy.of(evolution)
        self._novelty = Novelty(self._blueprints)

    @classmethod
    def replay(
        cls, events: Iterable[Event], *, run_dir: str, device: str, experiment: Experiment | None = None
    ) -> Self:
        """The engine of a recorded run; its first event is Start. RunError where the events do not follow one another.

        experiment: taken in place of the recorded one, e.g. with more generations.
        """
        rest = iter(events)
        first = next(rest, None)
        if not isinstance(first, Start):
            raise RunError(f"replay: the first event is {first.kind if first else 'missing'}, expected start")
        experiment = experiment or Experiment.model_validate(first.experiment)
        engine = cls(experiment, seed=first.seed, run_dir=run_dir, device=device)
        for event in rest:
            engine.apply(event)
        return engine

    def apply(self, event: Event) -> None:
        """Take a recorded event into account. RunError where it does not follow the state."""
        match event:
            case Asked():
                self._take_asked(event)
            case Reported():
                self.tell(event.report)
            case Generation():
                self._take_closed(event)
            case Stop():
                pass  # says why a process ended, nothing about the search
            case Start():
                raise RunError("replay: a second start event")

    # ------------------------------------------------------------------------------------------------- state

    @property
    def open(self) -> bool:
        """Whether a generation was asked for and is not closed."""
        return self.generation >= len(self.generations)

    @property
    def done(self) -> bool:
        """Whether the root's and all offspring generations are closed."""
        return len(self.generations) > self.experiment.evolution.generations

    def pending(self) -> list[Candidate]:
        """Candidates asked for, of which nothing is known yet, in order of index."""
        return [candidate for candidate in self.candidates.values() if candidate.id not in self.reports]

    def scored(self, ids: Iterable[str]) -> list[Report]:
        """Reports as selection sees them: trained ones have `novelty` where an objective or a weight asks for it."""
        evolution = self.experiment.evolution
        weighed = {resolve(name, evolution.objectives)[0] for name in evolution.weights}
        if NOVELTY not in weighed | evolution.objectives.keys():
            return [self.reports[id] for id in ids]
        return [
            report.replace(metrics={**report.metrics, NOVELTY: self._novelty.of(report.id)})
            if report.status is Status.TRAINED
            else report
            for report in (self.reports[id] for id in ids)
        ]

    # --------------------------------------------------------------------------------------------------- ask

    def ask(self) -> Asked:
        """The next generation's candidates: the root alone, then `population` offspring a generation.

        Offspring differ in architecture from everything in the run, save for the copies of the control without edits
        (mutation_steps 0). Those that rung 0 turns away stand among the candidates too, in `reports` as rejected.
        RunError when a generation is open, when the run is done, or when rung 0 turns the root away.
        """
        if self.open:
            raise RunError(f"ask: generation {self.generation} is open; tell its reports and close it first")
        if self.done:
            raise RunError(f"ask: all {self.experiment.evolution.generations} generations are done")
        number = self.generation + 1
        event = Asked(generation=number, candidates=tuple(self._offspring(number) if number else [self._root()]))
        self._take_asked(event)
        return event

    def _root(self) -> Candidate:
        model = self.experiment.model
        if reason := self._gate(model, root=True)[0]:
            raise RunError(f"the root is rejected by rung 0: {reason}")
        return Candidate(id=candidate_id(["root"], 0, model), index=0, generation=0, blueprint=model.to_json())

    def _offspring(self, number: int) -> Iterator[Candidate]:
        evolution = self.experiment.evolution
        seen, breeders = set(self._identities), self.scored(self.survivors)
        wanted, first = evolution.population, len(self.candidates)
        for index in range(first, first + (1 + REJECTIONS) * evolution.population):
            made = self._new(index, breeders, seen) if wanted else None
            if made is None:
                return
            (child, edits), parents = made
            train = trained(self._train(parents[0]), edits)
            seen.add(identity(child, train))
            wanted -= not self._gate(child)[0]
            operators = ["xover"] if len(parents) > 1 else [edit.operator for edit in edits] or ["copy"]
            yield Candidate(
                id=candidate_id(operators, index, child),
                index=index,
                generation=number,
                blueprint=child.to_json(),
                parents=parents,
                edits=edits,
                train={name: value for name, value in train if value != dict(self.experiment.train)[name]},
            )

    def _new(self, index: int, breeders: list[Report], seen: set[str]) -> tuple[Proposal, tuple[str, ...]] | None:
        """A proposal of an architecture not in `seen`, and its parents; None when `TRIES` draws found none."""
        rng, control = stream(self.seed, index, "variation"), self.experiment.evolution.mutation_steps == 0
        for _ in range(TRIES):
            drawn = self._draw(breeders, rng)
            if drawn is None or control:
                return drawn
            (child, edits), parents = drawn
            if identity(child, trained(self._train(parents[0]), edits)) not in seen:
                return drawn
        return None

    def _draw(self, breeders: list[Report], rng: np.random.Generator) -> tuple[Proposal, tuple[str, ...]] | None:
        """One crossover or mutation of selected parents, or a copy of one in the control; None where it fails."""
        evolution = self.experiment.evolution
        first = self._select(breeders, rng)
        parent, train = self._blueprints[first], self._train(first)
        if evolution.mutation_steps == 0:
            return Proposal(parent, ()), (first,)
        others = [report for report in breeders if report.id != first]
        if rng.random() < evolution.crossover_prob and others:
            second = self._select(others, rng)
            crossed = crossover(parent, self._blueprints[second], rng, evolution.crossover)
            if crossed is not None:
                return self._policy.repaired(evolution, crossed, train, rng), (first, second)
        try:
            mutated = self._policy.mutated(evolution, parent, train, rng)
        except OperatorError:
            return None  # nothing applies to this parent
        return self._policy.repaired(evolution, mutated, train, rng), (first,)

    def _train(self, id: str) -> Train:
        """How a candidate is trained."""
        return self.experiment.with_train(self.candidates[id].train).train

    def _select(self, breeders: list[Report], rng: np.random.Generator) -> str:
        evolution = self.experiment.evolution
        return select_parent(evolution.parent_selection, breeders, evolution.objectives, evolution.weights, rng)

    def _gate(self, blueprint: Blueprint, *, root: bool = False) -> tuple[str, dict[str, float]]:
        """Rung 0: why the blueprint is turned away (empty: it is not), and its costs."""
        evolution, found = self.experiment.evolution, costs(blueprint, self.experiment.data.seq_len)
        return rejection(found, evolution, gated=not root or evolution.structural_gates == "reject"), found

    def _take_asked(self, event: Asked) -> None:
        if self.open or event.generation != self.generation + 1:
            state = "open" if self.open else "closed"
            raise RunError(
                f"generation {event.generation} was asked for, but {self.generation} is the last and {state}"
            )
        for candidate in event.candidates:
            if candidate.id in self.candidates or candidate.index != len(self.candidates):
                raise RunError(f"candidate {candidate.id} is number {candidate.index}, expected {len(self.candidates)}")
            blueprint = Blueprint.model_validate(candidate.blueprint)
            self.candidates[candidate.id] = candidate
            self._blueprints[candidate.id] = blueprint
            self._identities.add(identity(blueprint, self._train(candidate.id)))
            reason, found = self._gate(blueprint, root=candidate.index == 0)
            if reason:
                self.reports[candidate.id] = Report(
                    id=candidate.id, status=Status.REJECTED, reason=reason, rung=-1, costs=found
                )
        self.generation = event.generation

    # -------------------------------------------------------------------------------------------- job and tell

    def job(self, candidate: Candidate) -> Job:
        """All that evaluating `candidate` needs. RunError when a parent has no checkpoint to inherit from."""
        inherits = self.experiment.evolution.weight_inheritance == "parent"
        return Job(
            experiment=self.experiment.model_dump(mode="json"),
            candidate=candidate,
            parents=tuple(self._parent(candidate, id) for id in candidate.parents) if inherits else (),
            ancestors=tuple(self._ancestors(candidate)) if inherits else (),
            stages=stages(self.experiment.evolution),
            seed=self.seed,
            run_dir=self.run_dir,
            device=self.device,
        )

    def _parent(self, candidate: Candidate, id: str) -> ParentRef:
        checkpoint = self.reports[id].checkpoint
        if checkpoint is None:
            raise RunError(f"candidate {candidate.id} inherits from {id}, which has no checkpoint")
        return ParentRef(id=id, blueprint=self.candidates[id].blueprint, checkpoint=checkpoint)

    def _ancestors(self, candidate: Candidate) -> Iterator[Ancestor]:
        """Every distinct ancestor, in order of index."""
        found: set[str] = set()
        left = list(candidate.parents)
        while left:
            id = left.pop()
            if id not in found:
                found.add(id)
                left += self.candidates[id].parents
        for id in sorted(found, key=lambda id: self.candidates[id].index):
            report = self.reports[id]
            yield Ancestor(index=self.candidates[id].index, steps=report.steps, tokens=report.tokens.own)

    def tell(self, report: Report) -> None:
        """Take in what was measured of a pending candidate; in any order. RunError for any other, or a second time."""
        if report.id not in self.candidates:
            hint = nearest(report.id, self.candidates)
            raise RunError(f"tell: there is no candidate {report.id!r}" + (f"; did you mean {hint!r}?" if hint else ""))
        if report.id in self.reports:
            raise RunError(f"tell: candidate {report.id} was already {self.reports[report.id].status.value}")
        if report.status in (Status.PROPOSED, Status.REJECTED):
            raise RunError(f"tell: got status {report.status.value} for {report.id}, expected failed, gated or trained")
        self.reports[report.id] = report

    # ------------------------------------------------------------------------------------------------- close

    def close_generation(self) -> Generation:
        """Choose the survivors among the last ones and the offspring; find the frontier and its hypervolume.

        RunError while reports are missing, when no generation is open, or when the root could not be trained.
        """
        if not self.open:
            raise RunError("close_generation: no generation is open; ask for one first")
        if waiting := self.pending():
            raise RunError(f"close_generation: {len(waiting)} reports are missing, {waiting[0].id} is the first")
        evolution, number = self.experiment.evolution, self.generation
        if number == 0:
            self._check_root()
        newborn = [candidate.id for candidate in self.candidates.values() if candidate.generation == number]
        frontier = self.scored(front(self.scored(self.reports), evolution.objectives))
        scored = matrix(frontier, evolution.objectives)
        reference = self.generations[0].reference if self.generations else reference_point(scored)
        event = Generation(
            generation=number,
            survivors=survive(self.scored([*self.survivors, *newborn]), evolution.objectives, evolution.topk_keep),
            frontier=scored.ids,
            hypervolume=hypervolume(scored, reference),
            reference=reference,
        )
        self._take_closed(event)
        return event

    def _check_root(self) -> None:
        """RunError unless the root was trained and has every objective: there is nothing else to breed from."""
        (report,) = self.scored(self.reports)
        if report.status is not Status.TRAINED:
            why = report.reason or "no reason given"
            raise RunError(f"the root {report.id} was not trained ({report.status.value}): {why}")
        if not matrix([report], self.experiment.evolution.objectives).ids:
            found = {name: report.value(name) for name in self.experiment.evolution.objectives}
            raise RunError(f"the root {report.id} was trained, but its objectives are not all finite numbers: {found}")

    def _take_closed(self, event: Generation) -> None:
        if not self.open or event.generation != self.generation or self.pending():
            raise RunError(f"generation {event.generation} was closed, but it is not open with all reports in")
        newborn = [candidate for candidate in self.candidates.values() if candidate.generation == event.generation]
        self._policy = self._policy.after(self.experiment.evolution, newborn, event.survivors)
        self.survivors, self.frontier_ids = event.survivors, event.frontier
        self.generations.append(event)
