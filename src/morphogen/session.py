"""A run that is open for writing: its ledger, its engine, and what becomes of its files. Opened by `run.evolve`."""

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Self

from morphogen import pages, proposers, resuming, runfolder
from morphogen.analysis.repeated import against_root
from morphogen.candidate import Candidate, Job, Report, Status
from morphogen.continued import Continued
from morphogen.data.prepare import PreparedData
from morphogen.errors import MorphogenError, RunError
from morphogen.execution import Executor
from morphogen.experiment import RATE_FOUND, Experiment
from morphogen.inherit.checkpoint import continued
from morphogen.keeping import Keep, Mend
from morphogen.notices import (
    Again,
    Began,
    Closed,
    Ended,
    Measured,
    Notice,
    Observer,
    Training,
    Warned,
    log_line,
    switched_off,
)
from morphogen.report.html import report_html
from morphogen.report.shown import RunShown
from morphogen.report.wording import verdict
from morphogen.retrain import retrain_lost
from morphogen.search import annealing
from morphogen.search.engine import Engine
from morphogen.search.failures import common_reason, retry, worth_a_stop
from morphogen.search.repeats import bases, due
from morphogen.store.files import write_atomic
from morphogen.store.ledger import (
    FINISHED,
    INTERRUPTED,
    RESOLVED,
    Ledger,
    Repeated,
    Reported,
    Retry,
    Start,
    Stop,
    last_stop,
)
from morphogen.store.ordinary import open_own
from morphogen.store.proposals import Refused
from morphogen.training.trace import StepInfo


class Hearing:
    """An observer, and what it raised: that is never the run's error, nor a candidate's."""

    def __init__(self, observer: Observer) -> None:
        self.observer = observer
        self.raised: Exception | None = None

    def __call__(self, notice: Notice) -> None:
        try:
            self.observer(notice)
        except Exception as error:
            self.raised = error
            raise


@dataclass
class Session:
    """A run that is open for writing."""

    folder: Path
    experiment: Experiment
    ledger: Ledger
    engine: Engine
    keep: Keep
    observer: Hearing
    told: dict[str, Any]
    devices: str
    log: IO[str]
    finished: bool
    threads: int
    begun_on: str
    mend: Mend
    back: Retry | None
    remarks: tuple[str, ...]
    refused: tuple[Refused, ...]
    continues: Continued | None
    position: int = 0
    total: int = 0
    pace: pages.Pace = field(default_factory=pages.Pace)

    @classmethod
    def open(
        cls,
        folder: Path,
        experiment: Experiment,
        seed: int | None,
        device: str,
        prepared: PreparedData,
        keep: Keep,
        observer: Hearing,
        resume: bool,
        mend: Mend,
    ) -> Self:
        """Opens the folder's ledger, starts the run or replays it. RunError when the ledger is another run's."""
        with ExitStack() as undo:
            begun = (folder / RESOLVED).exists()  # it is written before the first event
            ledger = undo.enter_context(Ledger.open(folder, create=not begun, go_on=resume))
            runfolder.remove_leftovers(folder)
            runfolder.link_checkpoints(folder, keep.checkpoint_dir)
            events = list(ledger.events())
            experiment, precision = resuming.precise(events, experiment, device)
            seed, told, remarks = resuming.entered(folder, events, experiment, seed, device, prepared)
            told.setdefault("precision", precision)
            engine = Engine(experiment, seed=seed, run_dir=str(folder), device=device)
            for event in events[1:]:  # nothing is written to a run that cannot be gone on with
                engine.apply(event)
            runfolder.write_environment(folder, told)
            write_atomic(folder / RESOLVED, runfolder.resolved_yaml(_plain(experiment)).encode())
            first = events[0] if events else None
            continues = first.continues if isinstance(first, Start) else continued(experiment.train.init_checkpoint)
            if not events:
                plain, name = _plain(experiment), _name(experiment, seed)
                ledger.append(Start(run=name, seed=seed, experiment=plain, continues=continues))
            if (back := retry(engine) if mend.failed else None) is not None:
                ledger.append(back)
                events = list(ledger.events())
                engine = Engine(experiment, seed=seed, run_dir=str(folder), device=device)
                for event in events[1:]:
                    engine.apply(event)
            log = undo.enter_context(_open_log(folder))
            runfolder.link_log(folder, keep.frontier_out)
            undo.pop_all()
        return cls(
            folder,
            experiment,
            ledger,
            engine,
            keep,
            observer,
            told,
            device if device == told["device"] else f"{told['device']}, later {device}",
            log,
            last_stop(events) == FINISHED,
            threads=told["threads"],
            begun_on=told["device"],
            mend=mend,
            back=back,
            remarks=remarks,
            refused=tuple(proposers.refusals(events)),
            continues=continues,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        try:
            with suppress(RunError, OSError):  # a full disk, of which `error` tells already
                if kind is not None and issubclass(kind, KeyboardInterrupt):
                    self._interrupted()
                elif error is not None:
                    self._write_log(f"stopped: {error}")
        finally:
            self.ledger.close()
            with suppress(OSError):  # every line was flushed, or its error raised
                self.log.close()

    def note(self, lines: Iterable[str]) -> None:
        """Puts lines into `run.log` that need not be shown."""
        for line in sorted(lines):
            self._write_log(line)

    def loop(self, executor: Executor, warnings: Sequence[str] = ()) -> None:
        """Generation after generation until the engine is done. On disk first, then in memory.

        warnings: what the user should know before; empty ones are passed over.
        """
        engine, name = self.engine, _name(self.experiment, self.engine.seed)
        done = sum(report.status is not Status.REJECTED for report in engine.reports.values())
        self._tell(Began(name, self.folder, self.experiment, done, engine.device, self.begun_on))
        for text in filter(None, (*self.remarks, *warnings)):
            self._tell(Warned(text))
        if self.back is not None:
            failed = len(self.back.candidates)
            self._write_log(
                f"went back to generation {self.back.generation}, to train {failed} failed candidates again"
            )
        if self.mend.lost:
            retrain_lost(engine, self.folder, executor, self._write_log)
        while not engine.done:
            self._generation(executor)
        self._measure_again(executor)
        runfolder.remove_partial(self.folder)
        if not self.finished:
            self.ledger.append(Stop(reason=FINISHED))
        self._export(ongoing=False)
        if self.keep.prune:
            self._drop_checkpoints({*engine.frontier_ids, *annealing.done(engine)})
        if engine.unmet:
            self._tell(Warned(engine.unmet))
        shown = against_root(engine)
        if line := verdict(shown, engine.reports, engine.evolution.objectives):
            self._write_log(line)
        self._tell(Ended(self.folder, tuple(engine.generations), dict(engine.candidates), dict(engine.reports), shown))

    def _generation(self, executor: Executor) -> None:
        """Asks for the next one, or goes on with the open one, until it is closed and all that follows is written."""
        engine = self.engine
        told = False
        if not engine.open:
            self._ask()
        while pending := engine.pending():  # round after round: of the later ones only those that went on
            self.total, again = engine.in_round, engine.round > 0
            self.position = self.total - len(pending) + 1
            for report in self._carried_out(executor, [engine.job(candidate) for candidate in pending]):
                self.ledger.append(Reported(report=report))
                engine.tell(report)
                if (rate := report.metrics.get(RATE_FOUND)) is not None and not again:
                    self._write_log(f"train.lr: auto found {rate:g}, with which all train")
                self._tell(Measured(engine.candidates[report.id], self.position, self.total, report, again))
                self._refresh_page()
                self.position += 1
                told = True
        if told:  # else this was said when it happened, and the run was resumed nevertheless
            self._stop_where_all_failed()
        generation = engine.close_generation()
        self.ledger.append(generation)
        self.finished = False
        runfolder.remove_leftovers(self.folder)  # of candidates that were ended while they wrote
        runfolder.remove_partial(self.folder)
        self._export(ongoing=True)
        needed = {*engine.survivors, *engine.frontier_ids, *bases(engine)}
        if self.keep.cleanup:
            self._drop_checkpoints(needed)
        if self.keep.disk_budget is not None:
            self._keep_to_budget(needed, self.keep.disk_budget)
        self._tell(Closed(generation, dict(engine.candidates), dict(engine.reports)))
        if lost := switched_off(engine.generations):
            self._tell(Warned(lost))

    def _ask(self) -> None:
        """The next generation's candidates: what was told, what the proposer answers, and the rest bred."""
        answers = proposers.consult(_name(self.experiment, self.engine.seed), self.engine, self.refused)
        asked = self.engine.ask(answers)
        self.ledger.append(asked)
        self.refused += asked.refused
        for refused in asked.refused:
            self._tell(Warned(f"proposer {refused.proposer}: a place is lost: {refused.reason}"))

    def _measure_again(self, executor: Executor) -> None:
        """Finalists annealed, and on other seeds beside the root trained as long, where the experiment asks for it."""
        while jobs := annealing.due(self.engine) or due(self.engine):
            self.position, self.total, self.finished = 1, len(jobs), False
            candidates = {job.candidate.id: job.candidate for job in jobs}
            for report in self._carried_out(executor, jobs):
                repeated = Repeated(candidate=candidates[report.id], report=report)
                self.ledger.append(repeated)
                self.engine.apply(repeated)
                self._tell(Again(repeated.candidate, self.position, self.total, report))
                self.position += 1

    def _carried_out(self, executor: Executor, jobs: list[Job]) -> Iterator[Report]:
        """Their reports. RunError for what is no candidate's fault, which leaves the rest of them to be done."""
        try:
            yield from executor.map(jobs, self._progress)
        except (MorphogenError, OSError) as error:
            if error is self.observer.raised:
                raise
            place = f"{error.filename}: " if isinstance(error, OSError) and error.filename is not None else ""
            text = f"{place}{error.strerror}" if isinstance(error, OSError) and error.strerror else str(error)
            raise RunError(f"{text}; the run stopped there, and --resume goes on once that is mended") from error

    def _stop_where_all_failed(self) -> None:
        """RunError where the open generation failed altogether: the cause is hardly in all of its candidates."""
        if failures := worth_a_stop(self.engine):
            raise RunError(
                f"generation {self.engine.generation}: all of it failed ({len(failures)}), most often because of: "
                f"{common_reason(failures)}; the run stopped there. --resume --retry-failed trains them again once the "
                "cause is mended, --resume alone goes on without them"
            )

    def _progress(self, candidate: Candidate, step: StepInfo) -> None:
        self.observer(Training(candidate, self.position, self.total, step))

    def _tell(self, notice: Notice) -> None:
        if line := log_line(notice):
            self._write_log(line)
        self.observer(notice)

    def _export(self, *, ongoing: bool) -> None:
        with self.pace:
            runfolder.export(
                self.folder,
                self._shown(ongoing=ongoing),
                self.engine.generations,
                {"lineage.json": self.keep.lineage_out, "frontier.json": self.keep.frontier_out},
                self.continues,
            )

    def _shown(self, *, ongoing: bool) -> RunShown:
        name = _name(self.experiment, self.engine.seed)
        return pages.shown(self.engine, name, self.told, self.devices, ongoing=ongoing)

    def _refresh_page(self) -> None:
        """Writes the page anew where a candidate took so long that somebody may be waiting to see it."""
        if self.engine.generations and self.pace.due:
            with self.pace:
                write_atomic(self.folder / "report.html", report_html([self._shown(ongoing=True)]).encode())

    def _drop_checkpoints(self, keep: set[str]) -> None:
        gone = runfolder.remove_checkpoints(self.folder, [self.engine.known(id)[1].checkpoint for id in keep])
        self._write_log(f"removed {gone} checkpoints, kept {len(keep)}")

    def _keep_to_budget(self, needed: set[str], budget_bytes: int) -> None:
        reports = self.engine.reports
        gone = runfolder.keep_to_budget(
            self.folder,
            [report.checkpoint for report in reports.values() if report.id not in needed],
            [self.engine.known(id)[1].checkpoint for id in needed],
            budget_bytes,
        )
        if gone:
            self._write_log(f"removed {gone} checkpoints to keep to the disk budget of {budget_bytes:,} bytes")

    def _interrupted(self) -> None:
        """An interrupt may come in the middle of a write, so that the ledger is opened anew to say so."""
        self.ledger.close()
        with Ledger.open(self.folder) as ledger:
            ledger.append(Stop(reason=INTERRUPTED))
        self._write_log("interrupted; --resume goes on from here")

    def _write_log(self, line: str) -> None:
        try:
            self.log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")
            self.log.flush()
        except OSError as error:
            raise RunError(f"{self.folder / 'run.log'}: cannot be written: {error.strerror}") from None


def _open_log(folder: Path) -> IO[str]:
    try:
        return open_own(folder / "run.log", "a")
    except OSError as error:
        raise RunError(f"{folder / 'run.log'}: cannot be written: {error.strerror}") from None


def _name(experiment: Experiment, seed: int) -> str:
    """The run's name in files and pictures; two runs of the same experiment and seed write the same files."""
    return f"{experiment.model.name}-{seed}"


def _plain(experiment: Experiment) -> dict[str, Any]:
    return experiment.model_dump(mode="json")
