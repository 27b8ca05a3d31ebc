"""Several candidates at a time, each in a process that is watched.

Workers are forked by a server that has torch loaded (a few hundredths of a second each), live from one candidate to
the next, and read tokens through the same memory maps. Every worker has its own pipe and nothing else in common with
the others, so that one that is killed, hangs or outgrows its memory is replaced, and the others do not notice.

On CUDA every worker sees one device alone, by `CUDA_VISIBLE_DEVICES`, and candidates are placed as `placement` says.
"""

import signal
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from dataclasses import replace
from multiprocessing.connection import wait

import torch

from morphogen.candidate import Job, Report
from morphogen.data.prepare import PreparedData
from morphogen.errors import DeviceError, MemoryShortError, MorphogenError, RunError
from morphogen.execution.base import ATTEMPTS, NO_LIMITS, Limits, Progress, Runner, failed
from morphogen.execution.placement import Device, Floor, boundless, found
from morphogen.execution.worker import PRELOADED, START_SECONDS, Began, Deaf, Task, Worker
from morphogen.training.device import answers, cuda_memory
from morphogen.training.forking import forking
from morphogen.training.midway import Midway
from morphogen.training.needed import needed_bytes
from morphogen.training.trace import StepInfo
from morphogen.training.trial import run_surrogate

#: How often the memory of workers is looked at, where it is limited.
WATCH_SECONDS = 0.1
#: A worker that ends by one of these was ended by somebody else, or by a mapped file that was cut under it.
FROM_OUTSIDE = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGBUS, signal.SIGXCPU})


class Pool:
    """`workers` processes, started when they are needed, each computing with as many threads as the caller does.

    A candidate whose worker dies is begun once more (from its last checkpoint, where it leaves such), then recorded as
    failed. Where it is not the candidate that can have killed it (it had not begun, or was ended by a signal from
    outside), that is a RunError instead. On a device that others use too, one for which memory is short is begun once
    more with a device to itself. A device that no longer answers a fresh process is taken out, and what computed there
    goes elsewhere. runner: what evaluates a candidate; it must be importable. devices: those that jobs mean by the name
    of theirs. hears: whether a process can compute on its device, by the name that it has there. Close it when done.
    """

    def __init__(
        self,
        prepared: PreparedData | None,
        workers: int,
        limits: Limits = NO_LIMITS,
        runner: Runner = run_surrogate,
        devices: Callable[[str], tuple[Device, ...]] | None = None,
        hears: Callable[[str], bool] = answers,
    ) -> None:
        self.prepared, self.limits, self.runner, self.hears = prepared, limits, runner, hears
        self._devices = devices_of if devices is None else devices
        self._floors: dict[str, Floor] = {}
        self._tasks: dict[int, Task] = {}
        self._workers: list[Worker | None] = [None] * workers

    def map(self, jobs: Iterable[Job], progress: Progress) -> Iterator[Report]:
        """One report per job, as each is finished. An error that concerns the whole run is raised."""
        self._tasks = {key: Task(key, job) for key, job in enumerate(jobs)}
        if not self._tasks:
            return
        floor = self._floor()
        for task in self._tasks.values():
            floor.add(task.key, needed_bytes(task.job, self.prepared) if floor.by_memory else 0.0)
        try:
            while floor.waiting or self._busy():
                self._hand_out(floor)
                for place in self._heard():
                    if self._workers[place] is None:  # by what another has just said, its device is gone
                        continue
                    report = self._listen(place, floor, progress)
                    if report is not None:
                        yield report
                yield from self._over_limit(floor)
        finally:
            floor.clear()
            for place in self._busy():  # the caller has no more use for them
                self._end(place)

    def close(self) -> None:
        """Ends all workers at once."""
        for place, worker in enumerate(self._workers):
            if worker is not None:
                self._end(place)

    def _floor(self) -> Floor:
        """Of the device that jobs name."""
        name = self._tasks[0].job.device
        if name not in self._floors:
            devices = self._devices(name)
            if not devices:
                raise RunError(f"device {name} does not answer")
            self._floors[name] = Floor(devices)
        return self._floors[name]

    def _busy(self) -> list[int]:
        return [place for place, worker in enumerate(self._workers) if worker is not None and worker.task is not None]

    def _hand_out(self, floor: Floor) -> None:
        """A task to every worker that has none, as far as devices have room, starting workers where there are none."""
        for key, device in floor.begin(len(self._workers) - len(self._busy())):
            task, (_, need) = self._tasks[key], floor.at_work(key)
            job = task.job
            if device.pinned is not None:
                others = len(self._workers) > 1 and not need.alone
                job = job.replace(device=device.kind, shares=job.shares or others)
            worker = self._worker_on(device, alone=need.alone)
            worker.begin(task, job, self.limits)

    def _worker_on(self, device: Device, *, alone: bool) -> "Worker":
        """A worker that has nothing to do and computes on a device; a new one where there is none. alone: other
        processes that wait there are ended."""
        idle = {place: worker for place, worker in enumerate(self._workers) if worker is None or worker.task is None}
        there = [
            place
            for place, worker in idle.items()
            if worker is not None and worker.device == device and worker.process.is_alive()
        ]
        for place in there[1:] if alone else ():
            self._end(place)
        if there:
            worker = self._workers[there[0]]
            assert worker is not None
            return worker
        place = min(idle, key=lambda place: idle[place] is not None)  # one that is none yet, where there is any
        if idle[place] is not None:
            self._end(place)
        threads = torch.get_num_threads()
        self._workers[place] = worker = Worker(self.prepared, self.runner, threads, device, self.hears)
        return worker

    def _heard(self) -> list[int]:
        """Places whose worker has said something or died; waits for one, but not beyond what limits allow."""
        workers = {worker.connection: place for place in self._busy() if (worker := self._workers[place]) is not None}
        deadlines = [worker.deadline for worker in self._workers if worker is not None and worker.task is not None]
        patience = min(deadlines) - time.monotonic() if self.limits.seconds is not None and deadlines else None
        if self.limits.memory_bytes is not None:
            patience = WATCH_SECONDS if patience is None else min(WATCH_SECONDS, patience)
        ready = wait(list(workers), None if patience is None else max(patience, 0.0))
        return [place for connection, place in workers.items() if connection in ready]

    def _listen(self, place: int, floor: Floor, progress: Progress) -> Report | None:
        """One message of a worker; a report where that is what it is, or where the worker is dead for good."""
        worker, task = self._at_work(place)
        try:
            message = worker.connection.recv()
        except (EOFError, OSError):
            return self._died(place, floor)
        match message:
            case Began():
                worker.began = True
                worker.deadline = time.monotonic() + (self.limits.seconds or 0.0)
            case StepInfo():
                progress(task.job.candidate, message)
            case Deaf():
                self._lost(worker.device, floor)
            case DeviceError():  # to this process; a fresh one shows whether to all
                return self._died(place, floor, str(message))
            case MemoryShortError() if not task.job.shares:  # else with others who are not of this pool
                self._end(place)  # with all that it holds
                floor.again(task.key, alone=True)
            case MorphogenError():
                raise message
            case Report():
                worker.task = None
                if self.limits.memory_bytes is not None and worker.memory_bytes() > self.limits.memory_bytes // 2:
                    self._end(place)  # what one candidate left behind shall not count against the next
                return _done(task, message, floor)
        return None

    def _died(self, place: int, floor: Floor, how: str = "") -> Report | None:
        """Begins the candidate of a dead worker once more, or gives it up. how: it ended, where that is known."""
        worker, task = self._at_work(place)
        began, code = worker.began, worker.end()
        self._workers[place] = None
        if began:
            deaths = task.deaths.another(Midway(task.job).reached())
            task = replace(task, deaths=deaths, spared=(worker.device.name, task.deaths))
        else:
            task = replace(task, false_starts=task.false_starts + 1)
        self._tasks[task.key] = task
        if not task.deaths.why_no_more and task.false_starts < ATTEMPTS:
            floor.again(task.key)
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
        return _done(task, failed(task.job, f"{task.deaths.why_no_more} ({how})"), floor)

    def _lost(self, device: Device, floor: Floor) -> None:
        """Takes out a device that does not answer: whoever computed there begins elsewhere, and its loss is laid to
        nobody. RunError where it was the last."""
        for place, worker in enumerate(self._workers):
            if worker is not None and worker.device == device:
                self._end(place)
        floor.lost(device)
        if not floor.devices:
            raise RunError(f"device {device.name} does not answer")
        self._tasks = {
            key: replace(task, deaths=task.spared[1]) if task.spared[0] == device.name else task
            for key, task in self._tasks.items()
        }
        left = ", ".join(each.name for each in floor.devices)
        warnings.warn(f"device {device.name} does not answer; the run goes on on {left}", RuntimeWarning, stacklevel=2)

    def _over_limit(self, floor: Floor) -> Iterator[Report]:
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
                yield _done(task, failed(task.job, f"not done after {seconds:g} seconds, the time limit"), floor)
            elif memory_bytes is not None and (held := worker.memory_bytes()) > memory_bytes:
                self._end(place)
                said = f"out of memory: its worker held {held:,} bytes, and the limit is {memory_bytes:,}"
                yield _done(task, failed(task.job, said), floor)

    def _at_work(self, place: int) -> "tuple[Worker, Task]":
        worker = self._workers[place]
        assert worker is not None
        assert worker.task is not None
        return worker, worker.task

    def _end(self, place: int) -> None:
        worker = self._workers[place]
        assert worker is not None
        worker.end()
        self._workers[place] = None


def devices_of(name: str) -> tuple[Device, ...]:
    """The devices that a name means: of `cuda` all that answer. Their memory is looked at by a process of its own."""
    if name.partition(":")[0] != "cuda":
        return (boundless(name),)
    try:
        with ProcessPoolExecutor(1, mp_context=forking(PRELOADED)) as other:
            return found(name, other.submit(cuda_memory).result())
    except (OSError, EOFError, BrokenExecutor) as error:
        raise RunError(f"device {name}: its memory cannot be looked at: {error}") from error


def _done(task: Task, report: Report, floor: Floor) -> Report:
    """The report of a candidate that computes no more, which tells where it did and by what it was placed there."""
    device, need = floor.at_work(task.key)
    floor.done(task.key, report.timed.get("peak_memory_bytes") if report.micro_batches == 1 else None)
    if device.pinned is None:
        return report
    placed = {"gpu": float(device.name.partition(":")[2]), "placed_memory_bytes": float(need.bytes)}
    return report.replace(timed={**report.timed, **placed})
