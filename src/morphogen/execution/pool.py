"""Several candidates at a time, each in a process that is watched.

Workers are forked by a server that has torch loaded (a few hundredths of a second each), live from one candidate to
the next, and read tokens through the same memory maps. Every worker has its own pipe and nothing else in common with
the others, so that one that is killed, hangs or outgrows its memory is replaced, and the others do not notice.
"""

import multiprocessing
import multiprocessing.util
import os
import signal
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait

import psutil
import torch

from morphogen.candidate import Candidate, Job, Report
from morphogen.data.prepare import PreparedData
from morphogen.errors import DeviceError, MorphogenError, RunError
from morphogen.execution.base import ATTEMPTS, NO_LIMITS, NO_LOSSES, Limits, Losses, Progress, Runner, failed
from morphogen.execution.local import InProcess
from morphogen.plugins import VARIABLE, code_allowed
from morphogen.training.midway import Midway
from morphogen.training.trace import StepInfo
from morphogen.training.trial import run_surrogate

#: How often the memory of workers is looked at, where it is limited.
WATCH_SECONDS = 0.1
#: A worker that has not begun by then is taken to hang too, where time is limited: starting includes importing torch.
START_SECONDS = 120.0
#: Characters of the temporary folder; beyond them the address of a socket in it is too long.
LONGEST_TEMPORARY = 64
#: A worker that ends by one of these was ended by somebody else, or by a mapped file that was cut under it.
FROM_OUTSIDE = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGBUS, signal.SIGXCPU})
#: What the fork server imports before it forks.
PRELOADED = ["morphogen.execution.pool", "torch._dynamo"]  # the latter is what an optimizer imports when first made


@dataclass(frozen=True)
class _Began:
    """A worker says that it has taken its job."""


@dataclass(frozen=True)
class _Task:
    """A job; the workers that died at it, and how often one did before it had begun."""

    job: Job
    deaths: Losses = NO_LOSSES
    false_starts: int = 0


class Pool:
    """`workers` processes, started when they are needed, each computing with as many threads as the caller does.

    A candidate whose worker dies is begun once more (from its last checkpoint, where it leaves such), then recorded as
    failed. Where it is not the candidate that can have killed it (it had not begun, or was ended by a signal from
    outside), that is a RunError instead. runner: what evaluates a candidate; it must be importable. Close it when done.
    """

    def __init__(
        self, prepared: PreparedData | None, workers: int, limits: Limits = NO_LIMITS, runner: Runner = run_surrogate
    ) -> None:
        self.prepared, self.limits, self.runner = prepared, limits, runner
        self._workers: list[_Worker | None] = [None] * workers

    def map(self, jobs: Iterable[Job], progress: Progress) -> Iterator[Report]:
        """One report per job, as each is finished. An error that concerns the whole run is raised."""
        waiting = deque(_Task(job) for job in jobs)
        try:
            while waiting or self._busy():
                self._hand_out(waiting)
                for place in self._heard():
                    report = self._listen(place, waiting, progress)
                    if report is not None:
                        yield report
                yield from self._over_limit()
        finally:
            for place in self._busy():  # the caller has no more use for them
                self._end(place)

    def close(self) -> None:
        """Ends all workers at once."""
        for place, worker in enumerate(self._workers):
            if worker is not None:
                self._end(place)

    def _busy(self) -> list[int]:
        return [place for place, worker in enumerate(self._workers) if worker is not None and worker.task is not None]

    def _hand_out(self, waiting: deque[_Task]) -> None:
        """A task to every worker that has none, starting workers where there are none."""
        for place, worker in enumerate(self._workers):
            if not waiting:
                return
            if worker is None or (worker.task is None and not worker.process.is_alive()):
                worker = self._workers[place] = _Worker(self.prepared, self.runner, torch.get_num_threads())
            if worker.task is None:
                worker.begin(waiting.popleft(), self.limits)

    def _heard(self) -> list[int]:
        """Places whose worker has said something or died; waits for one, but not beyond what limits allow."""
        workers = {worker.connection: place for place in self._busy() if (worker := self._workers[place]) is not None}
        deadlines = [worker.deadline for worker in self._workers if worker is not None and worker.task is not None]
        patience = min(deadlines) - time.monotonic() if self.limits.seconds is not None and deadlines else None
        if self.limits.memory_bytes is not None:
            patience = WATCH_SECONDS if patience is None else min(WATCH_SECONDS, patience)
        ready = wait(list(workers), None if patience is None else max(patience, 0.0))
        return [place for connection, place in workers.items() if connection in ready]

    def _listen(self, place: int, waiting: deque[_Task], progress: Progress) -> Report | None:
        """One message of a worker; a report where that is what it is, or where the worker is dead for good."""
        worker, task = self._at_work(place)
        try:
            message = worker.connection.recv()
        except (EOFError, OSError):
            return self._died(place, waiting)
        match message:
            case _Began():
                worker.began = True
                worker.deadline = time.monotonic() + (self.limits.seconds or 0.0)
            case StepInfo():
                progress(task.job.candidate, message)
            case DeviceError():  # to this process; a fresh one shows whether to all
                return self._died(place, waiting, str(message))
            case MorphogenError():
                raise message
            case Report():
                worker.task = None
                if self.limits.memory_bytes is not None and worker.memory_bytes() > self.limits.memory_bytes // 2:
                    self._end(place)  # what one candidate left behind shall not count against the next
                return message
        return None

    def _died(self, place: int, waiting: deque[_Task], how: str = "") -> Report | None:
        """Begins the candidate of a dead worker once more, or gives it up. how: it ended, where that is known."""
        worker, task = self._at_work(place)
        began, code = worker.began, worker.end()
        self._workers[place] = None
        if began:
            task = replace(task, deaths=task.deaths.another(Midway(task.job).reached()))
        else:
            task = replace(task, false_starts=task.false_starts + 1)
        if not task.deaths.why_no_more and task.false_starts < ATTEMPTS:
            waiting.appendleft(task)
            return None
        how = how or (f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}")
        if task.false_starts >= ATTEMPTS:
            raise RunError(
                f"a worker died {ATTEMPTS} times before it began with candidate {task.job.candidate.id} ({how})"
            )
        if -code in FROM_OUTSIDE:
            raise RunError(
                f"the worker of candidate {task.job.candidate.id} was ended {ATTEMPTS} times from outside ({how})"
            )
        return failed(task.job, f"{task.deaths.why_no_more} ({how})")

    def _over_limit(self) -> Iterator[Report]:
        """Ends workers whose candidate takes more than it may."""
        seconds, memory_bytes = self.limits.seconds, self.limits.memory_bytes
        for place in self._busy():
            worker, task = self._at_work(place)
            if seconds is not None and time.monotonic() >= worker.deadline:
                self._end(place)
                if not worker.began:
                    raise RunError(
                        f"a worker did not begin with a candidate within {START_SECONDS + seconds:g} seconds"
                    )
                yield failed(task.job, f"not done after {seconds:g} seconds, the time limit")
            elif memory_bytes is not None and (found := worker.memory_bytes()) > memory_bytes:
                self._end(place)
                yield failed(
                    task.job, f"out of memory: its worker held {found:,} bytes, and the limit is {memory_bytes:,}"
                )

    def _at_work(self, place: int) -> "tuple[_Worker, _Task]":
        worker = self._workers[place]
        assert worker is not None
        assert worker.task is not None
        return worker, worker.task

    def _end(self, place: int) -> None:
        worker = self._workers[place]
        assert worker is not None
        worker.end()
        self._workers[place] = None


class _Worker:
    """A process and the pipe to it. task: what it is at; began: whether it has said so; deadline: when it must be done,
    on the monotonic clock. RunError where it cannot be started."""

    def __init__(self, prepared: PreparedData | None, runner: Runner, threads: int) -> None:
        _keep_sockets_short()
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        try:
            self.connection, theirs = context.Pipe()
            with theirs, _unheard(signal.SIGINT):
                self.process = context.Process(
                    target=_serve, args=(theirs, prepared, runner, threads, code_allowed()), daemon=True
                )
                self.process.start()
        except (OSError, EOFError) as error:
            raise RunError(f"a worker cannot be started: {error}") from error
        self.task: _Task | None = None
        self.began = False
        self.deadline = 0.0

    def begin(self, task: _Task, limits: Limits) -> None:
        """Hands a task over. A worker that has just died is found out when it is listened to."""
        self.task, self.began = task, False
        self.deadline = time.monotonic() + START_SECONDS + (limits.seconds or 0.0)
        try:
            self.connection.send(task.job)
        except OSError:
            self.process.kill()

    def memory_bytes(self) -> int:
        """Memory that is the process's own, in bytes; 0 once it is gone.

        Resident pages of mapped files, such as the tokens, do not count: the system takes them back when it needs to.
        """
        try:
            process = psutil.Process(self.process.pid)
            if not psutil.LINUX:
                return int(process.memory_full_info().uss)
            found = process.memory_info()
            return int(found.rss - found.shared)
        except psutil.Error:
            return 0

    def end(self) -> int:
        """Kills the process where it lives, and waits for it; its exit code, negative for a signal."""
        self.process.kill()
        self.process.join()
        code = self.process.exitcode
        self.process.close()
        self.connection.close()
        return code if code is not None else 0


def _keep_sockets_short() -> None:
    """Has multiprocessing keep its sockets in a folder of few letters: the system refuses an address beyond about 100.

    Only where the temporary folder is a long one, and once: multiprocessing stays with its first folder.
    """
    before = tempfile.tempdir
    if len(tempfile.gettempdir()) > LONGEST_TEMPORARY:
        try:
            tempfile.tempdir = "/tmp" if os.access("/tmp", os.W_OK) else "/var/tmp"
            multiprocessing.util.get_temp_dir()
        finally:
            tempfile.tempdir = before


def _serve(
    connection: "Connection[object, object]", prepared: PreparedData | None, runner: Runner, threads: int, code: bool
) -> None:
    """A worker's life: job after job, until its parent ends it or is gone. code: whether jobs may name any."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    with suppress(OSError):  # there may be no stderr
        os.dup2(2, 1)  # what a candidate prints is not the run's output
    os.environ[VARIABLE] = "1" if code else ""  # whatever the environment was when the fork server began
    threading.Thread(target=_follow_parent, daemon=True).start()
    torch.set_num_threads(threads)
    executor = InProcess(prepared, runner)

    def progress(candidate: Candidate, step: StepInfo) -> None:
        connection.send(step)

    try:
        while True:
            job = connection.recv()
            assert isinstance(job, Job)
            connection.send(_Began())
            try:
                outcome: object = executor.run(job, progress)
            except MorphogenError as error:
                outcome = error
            connection.send(outcome)
    except (EOFError, BrokenPipeError):
        return  # the parent is gone


@contextmanager
def _unheard(number: signal.Signals) -> Iterator[None]:
    """A signal waits meanwhile; processes that are started here never hear it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {number})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _follow_parent() -> None:
    """Ends this process with its parent, so that nothing trains on for a run that was killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
