"""Stand-ins for the evaluation of a candidate, importable by workers. What each does is said by its candidate's id."""

import contextlib
import errno
import os
import resource
import signal
import sys
import time
from pathlib import Path

import numpy as np
import torch

from morphogen.candidate import Candidate, Job, Report, Status
from morphogen.errors import DeviceError, MemoryShortError, RunError
from morphogen.execution.placement import Device
from morphogen.plugins import code_allowed
from morphogen.training.trace import StepInfo
from morphogen.training.trial import run_surrogate

GIB = 2**30


def job(id, index=0, run_dir="."):
    candidate = Candidate(id=id, index=index, generation=0, blueprint={})
    return Job(
        experiment={},
        candidate=candidate,
        parents=(),
        ancestors=(),
        stages=(),
        seed=0,
        run_dir=str(run_dir),
        device="cpu",
    )


def act(job, progress, prepared):
    """Does what the first word of the candidate's id says."""
    id, place = job.candidate.id, Path(job.run_dir)
    with (place / f"{id}.begun").open("a") as file:
        file.write(f"{os.getpid()} {torch.get_num_threads()}\n")
    match id.split("-")[0]:
        case "well":
            progress(StepInfo(1, 1, 0.5, 0.5, 1.0, 8, 0.0, None))
        case "slow":
            time.sleep(0.3)
        case "raise":
            raise ZeroDivisionError("on purpose")
        case "hang":
            time.sleep(600)
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
        case "exit":
            os._exit(3)
        case "once":  # dies the first time
            if (place / f"{id}.begun").read_text().count("\n") == 1:
                os.kill(os.getpid(), signal.SIGKILL)
        case "greedy":
            held = np.ones(GIB, dtype=np.uint8)
            time.sleep(600)
            held.sum()
        case "mapped":  # reads all over a large file, and holds none of it
            tokens = np.memmap(place / "tokens.bin", dtype=np.uint8, mode="r", shape=GIB)
            tokens[::4096].sum()
            time.sleep(0.5)
        case "full":
            raise RunError("disk full")
        case "handles":
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), "tokens.bin")
        case "threads":
            raise RuntimeError("can't start new thread")
        case "library":
            raise ModuleNotFoundError("No module named 'gone'")
        case "wrapped":
            try:
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "kernel.so")
            except PermissionError as error:
                raise ValueError("no kernel") from error
        case "exits":
            sys.exit(0)
        case "prints":
            print("said by a candidate", flush=True)
        case "terminated":
            os.kill(os.getpid(), signal.SIGTERM)
        case "cut":  # a mapped file shorter than it was
            path = place / "cut.bin"
            path.write_bytes(bytes(8192))
            mapped = np.memmap(path, dtype=np.uint8, mode="r")
            os.truncate(path, 0)
            mapped.sum()
        case "device":
            raise DeviceError("device cuda:0 no longer answers")
        case "breaks":  # its device, the first time
            if (place / f"{id}.begun").read_text().count("\n") == 1:
                raise DeviceError("device cuda:0 no longer answers")
        case "spoils":  # what it is told by whoever watches
            with contextlib.suppress(Exception):
                progress(StepInfo(1, 1, 0.5, 0.5, 1.0, 8, 0.0, None))
    return Report(id=id, status=Status.TRAINED, metrics={"index": float(job.candidate.index)})


def permitted(job, progress, prepared):
    """Says whether it may import what data names as module:Class."""
    return Report(id=job.candidate.id, status=Status.TRAINED, metrics={"allowed": code_allowed()})


def gpus(place, *kinds):
    """Pretended devices of a gigabyte, each with a file as its name for workers; of kind `cuda` are those that are gone
    already."""
    return tuple(Device(f"cuda:{k}", str(place / f"gpu{k}"), kind, GIB, GIB) for k, kind in enumerate(kinds))


def hears(kind):
    """Whether a pretended device answers: the file it is known by says when it is gone."""
    return kind == "cpu" and not Path(os.environ["CUDA_VISIBLE_DEVICES"]).exists()


def placed(job, progress, prepared):
    """Says where it is; then does what the first word of the candidate's id says."""
    here = Path(os.environ["CUDA_VISIBLE_DEVICES"])
    with (Path(job.run_dir) / f"{job.candidate.id}.placed").open("a") as file:
        file.write(f"{here.name} {job.device} {'shares' if job.shares else 'alone'}\n")
    match job.candidate.id.split("-")[0]:
        case "large" if job.shares:
            raise MemoryShortError("out of memory")
        case "loses" if here.name == "gpu1":  # the device, for good
            here.touch()
            raise DeviceError("device cuda no longer answers")
        case "loses":
            time.sleep(0.1)
    return act(job, progress, prepared)


def begun(id, place):
    """(process, threads) of every time that a candidate was begun."""
    path = Path(place) / f"{id}.begun"
    return [tuple(map(int, line.split())) for line in path.read_text().splitlines()] if path.exists() else []


def lose_a_worker(job, progress, prepared):
    """A real evaluation; the worker of candidate 2 is killed the first time, in the middle of training."""
    mark, steps = Path(job.run_dir) / "killed", Path(job.run_dir) / "steps"

    def watch(step):
        if job.candidate.index == 2:
            with steps.open("a") as file:
                file.write(f"{step.step}\n")
        if job.candidate.index == 2 and step.step == 2 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        progress(step)

    return run_surrogate(job, watch, prepared)


#: Candidate index -> what goes wrong with it in `mishap`.
MISHAPS = {1: "nan", 2: "hang", 3: "greedy", 4: "die"}


def mishap(job, progress, prepared):
    """A real evaluation, but for the candidates in MISHAPS: each goes wrong in its own way, after its first step."""
    match MISHAPS.get(job.candidate.index):
        case None:
            return run_surrogate(job, progress, prepared)
        case "nan":
            train = {**job.experiment["train"], "lr": 1e30, "instability_threshold": 1e300}
            return run_surrogate(job.replace(experiment={**job.experiment, "train": train}), progress, prepared)
        case word:
            index = job.candidate.index
            act(job.replace(candidate=job.candidate.replace(id=f"{word}-{index}")), progress, prepared)
            raise AssertionError(f"candidate {index} came through")


def unlucky(job, progress, prepared):
    """A real evaluation; from the fourth candidate on it runs out of memory, until somebody has mended that."""
    if job.candidate.index > 2 and not (Path(job.run_dir).parent / "mended").exists():
        raise MemoryError("the machine is full")
    return run_surrogate(job, progress, prepared)


def small_files(job, progress, prepared):
    """A real evaluation in a process that may write no file as large as a checkpoint."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
    return run_surrogate(job, progress, prepared)


def on_a_processor(job, progress, prepared):
    """A real evaluation, on a machine that has no GPU after all."""
    return run_surrogate(job.replace(device="cpu"), progress, prepared)


def lose_a_node(marks, job, progress, prepared):
    """A real evaluation on a cluster, that says in `marks` which steps it makes on which node, and how much of a GPU it
    has there. Candidate 2 stands still after its sixth step, the first time; candidate 3 goes on no sooner than 2 does
    elsewhere; candidate 4 finds too little memory, the first time."""
    import ray

    context, index = ray.get_runtime_context(), job.candidate.index
    node = context.get_node_id()
    with (marks / f"{index}.gpus").open("a") as file:
        file.write(f"{context.get_assigned_resources()['GPU']}\n")
    if index == 4 and not (marks / "short").exists():
        (marks / "short").touch()
        raise MemoryShortError("others are there")
    until = time.monotonic() + 120
    while index == 3 and len({node for node, _ in steps_of(marks, 2)}) < 2 and time.monotonic() < until:
        time.sleep(0.1)

    def watch(step):
        with (marks / f"{index}.steps").open("a") as file:
            file.write(f"{node} {step.step}\n")
        if index == 2 and step.step == 6 and not (marks / "stands").exists():
            (marks / "stands").write_text(node)
            time.sleep(120)
        progress(step)

    return run_surrogate(job, watch, prepared)


def steps_of(marks, index):
    """(node, step) of every step that a candidate was trained."""
    path = marks / f"{index}.steps"
    return [(node, int(step)) for node, step in map(str.split, path.read_text().splitlines())] if path.exists() else []
