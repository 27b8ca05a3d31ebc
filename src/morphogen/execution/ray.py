"""Candidates on a Ray cluster: a task each, spread over its nodes. Only this file knows of ray.

Nodes read and write checkpoints in the run folder where they all see it (one machine, or a shared file system). Where
they do not, `shared` names a path or an fsspec URL that checkpoints travel through: a task fetches its parents' from
there and leaves its own; the driver copies that into the run folder before the candidate counts as done.
"""

import contextlib
import itertools
import os
import signal
import socket
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import ray
import ray.util.scheduling_strategies
import torch

from morphogen.candidate import Job, Report
from morphogen.data.prepare import PreparedData, prepare
from morphogen.errors import DeviceError, InputError, MemoryShortError, MorphogenError, RunError
from morphogen.execution.base import (
    NO_LIMITS,
    NO_LOSSES,
    Execution,
    Executor,
    Limits,
    Losses,
    Progress,
    Runner,
    failed,
    outside,
)
from morphogen.execution.local import InProcess
from morphogen.execution.pool import Pool
from morphogen.execution.shares import Shares
from morphogen.experiment import Experiment
from morphogen.plugins import allow_code, code_allowed
from morphogen.store.exchange import Exchange
from morphogen.store.files import scratch
from morphogen.training.midway import Midway
from morphogen.training.needed import needed_bytes
from morphogen.training.trial import run_surrogate

#: Ray's store for large objects. Jobs and reports are small, weights go through files.
OBJECT_STORE_BYTES = 100 * 2**20
#: How long to try to reach a cluster.
CONNECT_SECONDS = 5.0


#: After so long without a candidate done it is looked whether any node can take one.
PATIENCE_SECONDS = 60.0
#: Errors of a task whose node is gone, or was while its report lay there.
_NODE_LOST = (ray.exceptions.NodeDiedError, ray.exceptions.LocalRayletDiedError, ray.exceptions.ObjectLostError)
#: Errors of a task that say nothing of its candidate: the task itself, its surroundings or the cluster are broken.
_NOT_ITS_FAULT = (
    ray.exceptions.RayTaskError,
    ray.exceptions.RuntimeEnvSetupError,
    ray.exceptions.OutOfDiskError,
    ray.exceptions.RaySystemError,
)


@dataclass(frozen=True)
class _Task:
    """A job and its number; what was lost of it. alone: it is to have a GPU to itself."""

    key: int
    job: Job
    losses: Losses = NO_LOSSES
    alone: bool = False


def gpu_bytes() -> int:
    """Memory of the GPU that this process sees, in bytes; 0 where it sees none."""
    return int(torch.cuda.get_device_properties(0).total_memory) if torch.cuda.is_available() else 0


class OnRay:
    """Runs jobs as Ray tasks; one whose node or worker dies is begun again, elsewhere, from its last checkpoint where
    it leaves such: once after a worker, more often after a node. Nodes may join and leave; while none has room for a
    candidate they wait. With `gpus_per_candidate` None each takes the share of a GPU that its memory is predicted to
    need; one for which that is short is begun again with a GPU to itself. Steps are not told of.

    Uses the cluster this process is connected to already, or connects to `execution.address`, or starts one on this
    machine. InputError where the address cannot be reached, or this machine has no GPU of which a share is asked.
    """

    def __init__(
        self,
        prepared: PreparedData,
        execution: Execution,
        runner: Runner = run_surrogate,
        memory: Callable[[], int] = gpu_bytes,
    ) -> None:
        """memory: of the GPU of the process that calls it, in bytes; 0 where it sees none."""
        self.prepared, self.execution, self.runner, self.memory = prepared, execution, runner, memory
        self._ours = not ray.is_initialized()
        if self._ours:
            heard = signal.getsignal(signal.SIGTERM)
            _connect(execution)
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, heard)  # Ray would exit at once; the run is to end in order
        gpus, found = execution.gpus_per_candidate, ray.cluster_resources().get("GPU", 0.0)
        if self._ours and execution.address is None and found < (0.01 if gpus is None else gpus):
            self.close()
            asked = "auto" if gpus is None else f"{gpus:g}"
            raise InputError(f"--gpus-per-candidate: got {asked}, but this machine has {found:g} GPUs")
        self._told = False
        self._keys = itertools.count()
        self._shares = None if gpus is not None else Shares()
        self._task: Any = ray.remote(num_cpus=1, max_retries=0, scheduling_strategy="SPREAD")(_carry_out)

    def map(self, jobs: Iterable[Job], progress: Progress) -> Iterator[Report]:
        """One report per job, as each is finished. An error that concerns the whole run is raised."""
        tasks = [_Task(next(self._keys), job.replace(run_dir=str(Path(job.run_dir).resolve()))) for job in jobs]
        shared = self._exchange([task.job for task in tasks])
        if tasks and self._shares is not None:
            self._look_at_gpus(self._shares)
        waiting = tasks[::-1]
        running: dict[Any, _Task] = {}
        try:
            while waiting or running:
                while waiting and (self.execution.workers is None or len(running) < self.execution.workers):
                    task = waiting.pop()
                    running[self._submit(task)] = task
                finished, _ = ray.wait(list(running), timeout=None if self._told else PATIENCE_SECONDS)
                if not finished:
                    self._tell_of_room()
                    continue
                task = running.pop(finished[0])
                outcome = self._outcome(finished[0], task)
                if isinstance(outcome, Report):
                    if shared is not None and outcome.checkpoint is not None:
                        shared.collect(outcome.checkpoint, Path(task.job.run_dir))
                    yield outcome
                elif isinstance(outcome, MemoryShortError):
                    waiting.append(replace(task, alone=True))
                else:
                    lost, machine = Midway(task.job).reached(), isinstance(outcome, _NODE_LOST)
                    task = replace(task, losses=task.losses.another(lost, machine=machine))
                    if task.losses.why_no_more:
                        yield failed(task.job, f"{task.losses.why_no_more} ({type(outcome).__name__})")
                    else:
                        waiting.append(task)
        finally:
            for reference in running:
                ray.cancel(reference, force=True)

    def _outcome(self, done: Any, task: "_Task") -> Report | MemoryShortError | DeviceError | ray.exceptions.RayError:
        """Its report, or how it was lost; anything else is raised."""
        try:
            outcome = ray.get(done)
        except _NOT_ITS_FAULT as error:
            raise RunError(f"candidate {task.job.candidate.id} cannot be carried out: {_first_line(error)}") from None
        except ray.exceptions.RayError as error:  # its node or its worker is gone
            outcome = error
        if self._shares is not None and not task.alone:
            self._shares.done(task.key, outcome if isinstance(outcome, Report) else None)
        if isinstance(outcome, MorphogenError) and not isinstance(outcome, MemoryShortError | DeviceError):
            raise outcome
        return outcome

    def close(self) -> None:
        """Leaves the cluster, and ends it where it was started here."""
        if self._ours:
            ray.shutdown()

    def _tell_of_room(self) -> None:
        """Says, once, that no node can take a candidate, where that is so."""
        gpus = 0.01 if self.execution.gpus_per_candidate is None else self.execution.gpus_per_candidate
        have = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if not any(node.get("CPU", 0.0) >= 1.0 and node.get("GPU", 0.0) >= gpus for node in have):
            self._told = True
            needed = "a CPU and a GPU" if gpus else "a CPU"
            warnings.warn(f"no node of the cluster has {needed}: candidates wait until one joins", stacklevel=2)

    def _submit(self, task: "_Task") -> Any:
        gpus, job = self._gpus(task), task.job
        return self._task.options(num_gpus=gpus).remote(
            job.replace(shares=gpus < 1.0 and job.device.startswith("cuda")),
            self.prepared,
            self.runner,
            torch.get_num_threads(),
            self.execution.limits,
            self.execution.shared,
            code_allowed(),
        )

    def _gpus(self, task: "_Task") -> float:
        """How much of a GPU it takes."""
        if task.alone:
            return 1.0
        if self._shares is None:
            return self.execution.gpus_per_candidate or 0.0
        return self._shares.take(task.key, needed_bytes(task.job, self.prepared))

    def _look_at_gpus(self, shares: Shares) -> None:
        """Has the memory of GPUs that are new; where there is none it asks for one, as a cluster that grows has to
        be asked, and waits. InputError where torch sees none."""
        look: Any = ray.remote(self.memory)
        while True:
            nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("GPU", 0.0)]
            if not nodes:
                self._tell_of_room()
                ray.wait([look.options(num_cpus=0, num_gpus=0.01).remote()])
            for node in [node for node in nodes if node not in shares.gpu_bytes]:
                with contextlib.suppress(ray.exceptions.RayError):  # it is gone again, or has no room for now
                    there = look.options(num_cpus=0, num_gpus=0.01, scheduling_strategy=_on(node)).remote()
                    shares.gpu_bytes[node] = ray.get(there, timeout=PATIENCE_SECONDS)
                    if not shares.gpu_bytes[node]:
                        raise InputError("--gpus-per-candidate: got auto, but torch sees no GPU on a node that has one")
            if shares.gpu_bytes:
                return

    def _exchange(self, jobs: list[Job]) -> Exchange | None:
        """The place that checkpoints travel through, holding just those that these jobs inherit from."""
        if self.execution.shared is None:
            return None
        shared = Exchange(self.execution.shared)
        if jobs:
            shared.claim(jobs[0].run_dir)
        needed = {(parent.checkpoint, job.run_dir) for job in jobs for parent in job.parents}
        shared.keep_only({name for name, _ in needed})
        for name, folder in sorted(needed):
            if (Path(folder) / name).is_file():
                shared.leave(name, Path(folder))
        return shared


def _connect(execution: Execution) -> None:
    """Joins the cluster at the address, or starts one on this machine."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
    if execution.address is None:
        size = {"num_cpus": execution.workers, "object_store_memory": OBJECT_STORE_BYTES}
        try:
            ray.init(address="local", include_dashboard=False, **size, **quiet)
        except (OSError, ValueError, RuntimeError) as error:
            raise RunError(f"no Ray cluster can be started here: {_first_line(error)}") from None
        return
    where = urlsplit(execution.address if "//" in execution.address else f"//{execution.address}")
    try:
        if where.hostname is not None and where.port is not None:
            socket.create_connection((where.hostname, where.port), CONNECT_SECONDS).close()
        ray.init(address=execution.address, **quiet)
    except (OSError, ValueError, RuntimeError) as error:
        said = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"--address: no Ray cluster can be reached at {execution.address!r}: {said}") from None


def _carry_out(
    job: Job, prepared: PreparedData, runner: Runner, threads: int, limits: Limits, shared: str | None, code: bool
) -> Report | MorphogenError:
    """A task: one job, evaluated on the node it is on. Limits are kept by a worker process of its own. code: whether
    the job may name any."""
    torch.set_num_threads(threads)
    with contextlib.ExitStack() as stack, allow_code(code):
        try:
            exchange = None if shared is None else Exchange(shared)
            if exchange is not None:
                folder = stack.enter_context(scratch("morphogen-task-"))
                for parent in job.parents:
                    exchange.collect(parent.checkpoint, folder)
                job = job.replace(run_dir=str(folder))
            elif not Path(job.run_dir).is_dir():
                raise RunError(
                    f"{job.run_dir}: is not there on node {socket.gethostname()}; keep runs on a file system that all "
                    "nodes share, or give --shared"
                )
            data = _data_here(job, prepared)
            executor: Executor = InProcess(data, runner) if limits == NO_LIMITS else Pool(data, 1, limits, runner)
            stack.callback(executor.close)
            (report,) = executor.map([job], lambda candidate, step: None)
            if exchange is not None and report.checkpoint is not None:
                exchange.leave(report.checkpoint, folder)
            return report
        except MorphogenError as error:
            return error
        except OSError as error:
            return outside(job, error)


def _on(node: str) -> Any:
    """For a task that is to be carried out there."""
    return ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node, soft=False)


def _first_line(error: Exception) -> str:
    """Of what Ray says, which may be a whole trace; the last line tells the kind."""
    return (str(error).strip() or type(error).__name__).splitlines()[-1]


def _data_here(job: Job, prepared: PreparedData) -> PreparedData:
    """The prepared data where its files are on this node too, else the same made here. RunError where it differs."""
    if all(Path(file).is_file() for file in prepared.file_paths()):
        return prepared
    here = prepare(Experiment.model_validate(job.experiment).data, prepared.accumulate)
    if here.environment() != prepared.environment():
        raise RunError(f"node {socket.gethostname()}: its text or tokenizer differs from the driver's")
    return here
