"""The search as a state machine fed by events: ask for candidates, tell what was measured, close the generation.

It runs nothing and writes nothing, and knows genomes only through a `Space`. Its state is a function of the events it
was given, so that replaying a ledger's events resumes a run exactly. What is decided next depends on that state and on
`stream(seed, candidate index, purpose)`; not on the clock, on hash seeds, or on the order in which reports come in.

    ask()  ->  while pending(): tell(report) for each of them  ->  close_generation()  ->  ask() ...
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Generic

from morphogen.candidate import ANNEALED, Candidate, Report, Status, stream
from morphogen.errors import RunError, nearest
from morphogen.experiment import Evolution
from morphogen.search.births import Child, Known, born, check_next, examined
from morphogen.search.breeding import Breeding
from morphogen.search.closing import birth, check_founders, standing, survivors
from morphogen.search.novelty import NAME as NOVELTY
from morphogen.search.novelty import Novelty, wanted
from morphogen.search.rungs import decide, rounds
from morphogen.search.screening import Draw, Figures, Screen, Screening, asked_for
from morphogen.search.space import G, Placed, Space, T
from morphogen.selection.objectives import Matrix, hypervolume, reference_point
from morphogen.selection.parents import Pool, Rules
from morphogen.selection.survival import front
from morphogen.store.ledger import Asked, Event, Generation, Repeated, Reported, Retry, Start, Stop, Told
from morphogen.store.proposals import Proposed, Refused

#: Candidates that rung 0 may turn away in one generation, per offspring wanted.
REJECTIONS = 8


class Search(Generic[G, T]):
    """The search of one run, for genomes of any kind.

    candidates, reports: everything asked for and everything known of it, by id. survivors: those that may breed, best
    first. frontier_ids: the non-dominated among all trained candidates of the run, as of the last closed generation.
    generations: the events of the closed ones. generation: the last one asked for, -1 before the first. newborn: its
    candidates. round: of its training. again: what `search.repeats` measured besides, by id. told: proposals from
    outside that wait for the next generation.
    """

    def __init__(self, evolution: Evolution, space: Space[G, T], *, seed: int) -> None:
        self.evolution, self.space, self.seed = evolution, space, seed
        self.candidates: dict[str, Candidate] = {}
        self.reports: dict[str, Report] = {}
        self.survivors: tuple[str, ...] = ()
        self.frontier_ids: tuple[str, ...] = ()
        self.generations: list[Generation] = []
        self.generation = -1
        self.newborn: tuple[str, ...] = ()
        self.round = 0
        self.again: dict[str, Repeated] = {}
        self._in_round: tuple[str, ...] = ()
        self._due: dict[str, Candidate] = {}
        self._keys: set[str] = set()
        self._asked: dict[str, Known[G]] = {}
        self._genomes: dict[str, G] = {}
        self.told: tuple[Proposed, ...] = ()
        self._novelty = Novelty(space.distance) if wanted(evolution) else None
        self._screening = Screening(evolution, seed) if asked_for(evolution) else None
        self._rules = Rules(
            objectives=evolution.objectives,
            said=evolution.directions,
            constraints=evolution.constraints,
            weights=evolution.weights,
            cases=evolution.lexicase_cases,
            downsample=evolution.downsample,
            tournament_size=evolution.tournament_size,
            descriptors=evolution.map_elites,
            noise=evolution.noise,
            strict=False,  # names were checked before the run; survivors may lose what others had
        )

    def apply(self, event: Event) -> None:
        """Takes a recorded event into account.

        Args:
            event: The next one.

        Raises:
            RunError: It does not follow the state.
        """
        match event:
            case Told():
                self.told += event.proposed
            case Asked():
                self._take_asked(event)
            case Reported():
                self.tell(event.report)
            case Generation():
                self._take_closed(event)
            case Repeated():
                self._take_repeated(event)
            case Stop():
                pass  # says why a process ended, nothing about the search
            case Start() | Retry():  # a ledger's events are given without what a retry took back
                raise RunError(f"replay: a {event.kind} event in the middle of a run")

    @property
    def open(self) -> bool:
        """Whether a generation was asked for and is not closed."""
        return self.generation >= len(self.generations)

    @property
    def done(self) -> bool:
        """Whether the root's and all offspring generations are closed."""
        return len(self.generations) > self.evolution.generations

    def pending(self) -> list[Candidate]:
        """Candidates of which this round's report is missing, in order of index. When the last report of a round is
        told, those that go on to the next are pending."""
        return list(self._due.values())

    @property
    def in_round(self) -> int:
        """How many candidates this round is about."""
        return len(self._in_round)

    def waits(self, id: str) -> bool:
        """Whether this round's report of the candidate is missing."""
        return id in self._due

    def ask(self, answers: Sequence[Proposed | Refused] = ()) -> Asked:
        """The next generation's candidates: the founders, then `population` offspring a generation, before them the
        survivors where these train on.

        Offspring differ from everything in the run, save for the copies of the control without edits. Those that rung 0
        turns away stand among the candidates too, in `reports` as rejected.

        Args:
            answers: From outside, for places after those that were told have theirs. One that makes no candidate takes
                its place all the same; the rest is bred.

        Raises:
            RunError: A generation is open, the run is done, or rung 0 turns every founder away.
        """
        if self.open:
            raise RunError(f"ask: generation {self.generation} is open; tell its reports and close it first")
        if self.done:
            raise RunError(f"ask: all {self.evolution.generations} generations are done")
        number = self.generation + 1
        placed, refused = self.placed(answers) if number else ([], [])
        screen = self._screen(number) if number else None
        offspring = self._offspring(number, screen, placed, len(refused)) if number else self._founders()
        candidates = (*self._continued(number), *offspring)
        rejected = tuple(candidate.id for candidate in candidates if self._asked[candidate.id].rejected)
        event = Asked(generation=number, candidates=candidates, rejected=rejected, refused=tuple(refused))
        if screen is not None:
            event = screen.recorded(event)
        self._take_asked(event)
        return event

    def placed(self, answers: Sequence[Proposed | Refused]) -> tuple[list[Placed[G]], list[Refused]]:
        """What was told and answered from outside, as children and refusals. A space that cannot read it has none."""
        return [], []

    def _founders(self) -> Iterator[Candidate]:
        genomes = self.space.founders(stream(self.seed, 0, "founders"))
        founders = [examined(self.evolution, self.space, genome, founder=True) for genome in genomes]
        if all(known.rejected for known in founders):
            raise RunError(f"the root is rejected by rung 0: {founders[0].rejected}")
        for index, known in enumerate(founders):
            yield self._candidate(Child(known), index, 0)

    def _continued(self, number: int) -> Iterator[Candidate]:
        """Each survivor once more, as it is, where survivors train on: it reads what its children read."""
        for index, id in enumerate(self.survivors if self.evolution.trains_on else (), start=len(self.candidates)):
            known = examined(self.evolution, self.space, self._genome(id), founder=True)
            yield self._candidate(Child(known, (id,)), index, number)

    def _screen(self, number: int) -> Screen | None:
        if self._screening is None:
            return None
        known = [self.reports[id] for id in dict.fromkeys((*self.survivors, *self.frontier_ids))]
        return self._screening.screen(known, number)

    def _offspring(
        self, number: int, screen: Screen | None, placed: Sequence[Placed[G]], refused: int
    ) -> Iterator[Candidate]:
        evolution, made_now = self.evolution, set[str]()
        pool = Pool.of([self.reports[id] for id in self.survivors], self._rules)
        breeding = Breeding(evolution, self.space, self.survivors, pool, self._genome, number)
        wanted = max(0, evolution.population - len(placed) - refused)
        first = len(self.candidates) + (len(self.survivors) if evolution.trains_on else 0)
        for index, ((genome, edits), parents, proposer) in enumerate(placed, start=first):
            child = Child(examined(evolution, self.space, genome), parents, edits, proposer)
            made_now.add(child.known.key)
            yield self._candidate(child, index, number)
        first += len(placed)
        for index in range(first, first + (1 + REJECTIONS) * evolution.population):
            draws = screen.draws(index) if screen is not None else 1
            children = self._children(breeding, index, draws, made_now) if wanted else []
            if not children:
                return
            draws_of = [self._draw(child.known, child.parents) for child in children] if screen is not None else []
            child = children[screen.choose(index, draws_of) if screen is not None else 0]
            made_now.add(child.known.key)
            wanted -= not child.known.rejected
            yield self._candidate(child, index, number)

    def _children(self, breeding: Breeding[G, T], index: int, count: int, made_now: Collection[str]) -> list[Child[G]]:
        """At most `count` different children for one place, with their parents; none when nothing new was found."""
        rng, found = stream(self.seed, index, "variation"), list[Child[G]]()
        seen: Collection[str] = ()

        def is_new(key: str) -> bool:
            return all(key not in known for known in (self._keys, made_now, seen))

        while len(found) < count and (made := breeding.propose(rng, is_new)):
            (genome, edits), parents = made
            # a copy cannot be mended
            found.append(Child(examined(self.evolution, self.space, genome, founder=not edits), parents, edits))
            seen = {child.known.key for child in found}
        return found

    def _draw(self, known: Known[G], parents: Iterable[str]) -> Draw:
        """A child as a model sees it."""
        assert self._screening is not None
        features = self.space.features(known.genome)
        found = self._screening.features(features, known.costs, [self.reports[id] for id in parents])
        return Draw(found, known.costs, bool(known.rejected))

    def _candidate(self, child: Child[G], index: int, generation: int) -> Candidate:
        candidate = born(self.space, child, index, generation)
        self._asked[candidate.id] = child.known
        return candidate

    def _genome(self, id: str) -> G:
        """A candidate's genome, as trained where it is."""
        if id not in self._genomes:
            self._genomes[id] = self.space.load(self.candidates[id].as_trained(self.reports.get(id)))
        return self._genomes[id]

    def _take_asked(self, event: Asked) -> None:
        if self.open or event.generation != self.generation + 1:
            state = "open" if self.open else "closed"
            raise RunError(
                f"generation {event.generation} was asked for, but {self.generation} is the last and {state}"
            )
        features: dict[str, Figures] = {}
        for candidate in event.candidates:
            check_next(candidate, self.candidates)
            known = self._asked.get(candidate.id)
            if known is None:
                genome, founder = self.space.load(candidate), not candidate.parents or candidate.continues
                known = examined(self.evolution, self.space, genome, founder=founder)
            self.candidates[candidate.id] = candidate
            self._genomes[candidate.id] = known.genome
            self._keys.add(known.key)
            if self._novelty is not None:
                self._novelty.add(candidate.id, known.digest, self.space.traits(known.genome))
            if self._screening is not None:
                features[candidate.id] = self._draw(known, candidate.parents).features
            if known.rejected:
                self.reports[candidate.id] = Report(
                    id=candidate.id, status=Status.REJECTED, reason=known.rejected, rung=-1, costs=known.costs
                )
            else:
                self._due[candidate.id] = candidate
        if self._screening is not None:
            self._screening.asked(features, event.predicted)
        self._asked.clear()
        self.told = self.told[self.evolution.population :] if event.generation else self.told
        self.generation, self.round = event.generation, 0
        self.newborn, self._in_round = tuple(candidate.id for candidate in event.candidates), tuple(self._due)
        if not self._due:
            self._end_round()

    def tell(self, report: Report) -> None:
        """Takes in what was measured of a pending candidate; in any order.

        A candidate that fails or is gated after it went on to a further round keeps what was measured before.

        Args:
            report: Of one that is pending.

        Raises:
            RunError: It is of none that is pending, or of one that was told of already.
        """
        if report.id not in self.candidates:
            hint = nearest(report.id, self.candidates)
            raise RunError(f"tell: there is no candidate {report.id!r}" + (f"; did you mean {hint!r}?" if hint else ""))
        if report.id not in self._due:
            raise RunError(f"tell: candidate {report.id} was already {self.reports[report.id].status.value}")
        if report.status in (Status.PROPOSED, Status.REJECTED):
            raise RunError(f"tell: got status {report.status.value} for {report.id}, expected failed, gated or trained")
        if self.round and report.status is not Status.TRAINED:
            rung = rounds(self.evolution)[self.round][-1].rung
            reason = f"rung {rung}: {report.status.value}: {report.reason}"
            status = Status.TRAINED if self._promoting else Status.GATED
            self.reports[report.id] = self.reports[report.id].replace(status=status, reason=reason).having_spent(report)
        else:
            self.reports[report.id] = report.with_composites(self.evolution.composite_metrics)
            self._take_trained(report)
        del self._due[report.id]
        if not self._due:
            self._end_round()

    def _take_trained(self, report: Report) -> None:
        """A candidate that changed in training is from then on what it became."""
        if report.blueprint is None:
            return
        self._genomes.pop(report.id, None)
        genome = self._genome(report.id)
        self._keys.add(self.space.key(genome))
        if self._novelty is not None:
            self._novelty.add(report.id, self.space.digest(genome), self.space.traits(genome))

    @property
    def _promoting(self) -> bool:
        """Whether this round is the extra one of the promoted."""
        return self.evolution.promotion_prob > 0.0 and self.round == len(rounds(self.evolution)) - 1

    def _end_round(self) -> None:
        """All reports of a round are in: novelty is measured, and some go on to the next round."""
        if self._novelty is not None:
            for id in dict.fromkeys((*self.survivors, *self.frontier_ids, *self.newborn)):
                if (report := self.reports[id]).status is Status.TRAINED:
                    figures = {**report.metrics, NOVELTY: self._novelty.of(id)}
                    self.reports[id] = report.replace(metrics=figures).with_composites(self.evolution.composite_metrics)
        draws = {}
        if self.evolution.promotion_prob:
            indices = {id: self.candidates[id].index for id in self._in_round}
            draws = {id: float(stream(self.seed, index, "promotion").random()) for id, index in indices.items()}
        decision = decide(self.evolution, self.round, [self.reports[id] for id in self._in_round], draws)
        for id, reason in decision.stopped.items():
            self.reports[id] = self.reports[id].replace(status=Status.GATED, reason=reason)
        if decision.on:
            self.round += 1
            going = set(decision.on)
            self._in_round = tuple(id for id in self.newborn if id in going)
            self._due = {id: self.candidates[id] for id in self._in_round}

    def _take_repeated(self, event: Repeated) -> None:
        id = event.candidate.id
        if id in self.again or id in self.candidates:
            raise RunError(f"{id} was measured again, but there is one of that name")
        self.again[id] = event.replace(report=event.report.with_composites(self.evolution.composite_metrics))
        base = id.removesuffix(ANNEALED)
        if base != id and "bpb" in event.report.metrics:
            report = self.reports[base]
            metrics = {**report.metrics, "bpb_annealed": event.report.metrics["bpb"]}
            self.reports[base] = report.replace(metrics=metrics).having_spent(event.report)

    def close_generation(self) -> Generation:
        """Choose the survivors among the last ones and the offspring; find the frontier and its hypervolume.

        Of candidates that were trained on only the newest counts. The frontier is sought among the last one and the
        offspring. RunError while reports are missing, when no generation is open, or when no founder could be trained.
        """
        if not self.open:
            raise RunError("close_generation: no generation is open; ask for one first")
        if waiting := self.pending():
            raise RunError(f"close_generation: {len(waiting)} reports are missing, {waiting[0].id} is the first")
        evolution, number = self.evolution, self.generation
        if number == 0:
            check_founders([self.reports[id] for id in self.newborn])
        known = self._standing(self.frontier_ids)
        best = front(known, evolution.objectives, evolution.constraints, evolution.noise)
        reference = (self.generations[-1].reference if self.generations else {}) or reference_point(best)
        event = Generation(
            generation=number,
            survivors=self._survivors(best),
            frontier=best.ids,
            hypervolume=hypervolume(best, reference),
            reference=reference,
            screening=self._screening.judgement(self.reports) if self._screening is not None else None,
        )
        self._take_closed(event)
        return event

    def _standing(self, earlier: Iterable[str]) -> list[Report]:
        return standing(self.evolution, self.candidates, self.reports, earlier, self.newborn)

    def _survivors(self, best: Matrix) -> tuple[str, ...]:
        """Who breeds next. best: the run's frontier."""
        if self.evolution.baseline == "random" and self.generation:
            return self.survivors  # the founders, from whom all walks begin
        pool = self._standing(self.survivors)
        births = {report.id: birth(self.evolution, self.candidates, report.id) for report in pool}
        return survivors(self.evolution, pool, births, best, stream(self.seed, self.generation, "survival"))

    def _take_closed(self, event: Generation) -> None:
        if not self.open or event.generation != self.generation or self.pending():
            raise RunError(f"generation {event.generation} was closed, but it is not open with all reports in")
        if strangers := [id for id in (*event.survivors, *event.frontier) if id not in self.reports]:
            raise RunError(f"generation {event.generation} was closed with {strangers[0]}, which is no candidate")
        self.space = self.space.after([self.candidates[id] for id in self.newborn], event.survivors)
        if self._screening is not None and event.screening is not None:
            self._screening.closed(self.reports, event.screening)
        stood = {*self.survivors, *self.frontier_ids, *self.newborn}
        self.survivors, self.frontier_ids = event.survivors, event.frontier
        self.generations.append(event)
        self._genomes = {id: self._genomes[id] for id in self.survivors if id in self._genomes}
        for id in stood.difference(self.survivors, self.frontier_ids):
            self.reports[id] = self.reports[id].without_influence  # compared with nobody any more: memory
        if self._novelty is not None:
            self._novelty.forget({*self.survivors, *self.frontier_ids})
