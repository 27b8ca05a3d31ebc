"""A process that candidates are evaluated in, one after the other, and the pipe to it.

It is forked by a server that has torch loaded. Where its device is one of several it sees that one alone.
"""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection

import psutil
import torch

from morphogen.candidate import Candidate, Job
from morphogen.data.prepare import PreparedData
from morphogen.errors import MorphogenError, RunError
from morphogen.execution.base import NO_LOSSES, Limits, Losses, Runner
from morphogen.execution.local import InProcess
from morphogen.execution.placement import Device
from morphogen.plugins import VARIABLE, code_allowed
from morphogen.training.forking import forking
from morphogen.training.trace import StepInfo

#: A worker that has not begun by then is taken to hang too, where time is limited: starting includes importing torch.
START_SECONDS = 120.0
#: What the fork server imports before it forks.
PRELOADED = ["morphogen.execution.pool", "torch._dynamo"]  # the latter is what an optimizer imports when first made


@dataclass(frozen=True)
class Began:
    """A worker says that it has taken its job."""


@dataclass(frozen=True)
class Deaf:
    """A worker says that its device does not answer; it has taken no job."""


@dataclass(frozen=True)
class Task:
    """A job and its number; the workers that died at it, and how often one did before it had begun. spared: on which
    device one died last, and what `deaths` were before, which count again should it be the device that is gone."""

    key: int
    job: Job
    deaths: Losses = NO_LOSSES
    false_starts: int = 0
    spared: tuple[str, Losses] = ("", NO_LOSSES)


class Worker:
    """A process and the pipe to it. device: that it computes on; task: what it is at; began: whether it has said so;
    deadline: when it must be done, on the monotonic clock. RunError where it cannot be started."""

    def __init__(
        self,
        prepared: PreparedData | None,
        runner: Runner,
        threads: int,
        device: Device,
        hears: Callable[[str], bool],
    ) -> None:
        context, given = forking(PRELOADED), (prepared, runner, threads, device, hears, code_allowed())
        try:
            self.connection, theirs = context.Pipe()
            with theirs, _unheard(signal.SIGINT):
                self.process = context.Process(target=_serve, args=(theirs, *given), daemon=True)
                self.process.start()
        except (OSError, EOFError) as error:
            raise RunError(f"a worker cannot be started: {error}") from error
        self.device = device
        self.task: Task | None = None
        self.began = False
        self.deadline = 0.0

    def begin(self, task: Task, job: Job, limits: Limits) -> None:
        """Hands a task over. job: as it is for this worker. One that has just died is found out when it is listened
        to."""
        self.task, self.began = task, False
        self.deadline = time.monotonic() + START_SECONDS + (limits.seconds or 0.0)
        try:
            self.connection.send(job)
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


def _serve(
    connection: "Connection[object, object]",
    prepared: PreparedData | None,
    runner: Runner,
    threads: int,
    device: Device,
    hears: Callable[[str], bool],
    code: bool,
) -> None:
    """A worker's life: job after job, until its parent ends it or is gone. code: whether jobs may name any."""
    if device.pinned is not None:  # before anything looks which devices there are
        os.environ["CUDA_VISIBLE_DEVICES"] = device.pinned
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
        if not hears(device.kind):
            connection.send(Deaf())
            return
        while True:
            job = connection.recv()
            assert isinstance(job, Job)
            connection.send(Began())
            try:
                outcome: object = executor.run(job, progress)
            except MorphogenError as error:
                outcome = error
            torch.cuda.empty_cache()  # others may compute there too; nothing where there is no CUDA
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
