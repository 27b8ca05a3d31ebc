"""Two single-thread workers against one process with two threads: candidates per second of wall time, and the ratio.

The same candidates (the control's: one architecture, other batches), trained and measured in full. Contestants take
turns; medians over rounds. Above 1 means that workers are the faster.

    python benchmarks/workers.py [--quick] [--workers N]
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = str(os.cpu_count())

import torch

from morphogen.candidate import Candidate, Job, Stage
from morphogen.data.prepare import PreparedData
from morphogen.execution import Executor, InProcess
from morphogen.execution.pool import Pool
from morphogen.experiment import Experiment
from morphogen.run import settle
from morphogen.training.threads import threads

SEQ_LEN, BATCH, VOCAB = 256, 8, 2048


def experiment(dim: int, layers: int, bf16: bool) -> Experiment:
    block = {
        "attn": {"kind": "MHA", "heads": dim // 32, "head_dim": 32},
        "ffn": {"kind": "dense", "hidden": 3 * dim, "activation": "swiglu"},
    }
    return Experiment.model_validate(
        {
            "model": {"name": "workers", "emb": {"dim": dim}, "blocks": [block] * layers},
            "train": {"bf16": bf16, "instability_threshold": 1e9},
            "data": {
                "tokenizer": {"kind": "bpe", "vocab": VOCAB},
                "seq_len": SEQ_LEN,
                "batch_size": BATCH,
                "eval_tokens": 4 * SEQ_LEN * BATCH,
            },
        }
    )


def jobs(experiment: Experiment, count: int, steps: int, folder: str) -> list[Job]:
    stages = (Stage(rung=1, budget_tokens=steps * SEQ_LEN * BATCH),)
    return [
        Job(
            experiment=experiment.model_dump(mode="json"),
            candidate=Candidate(id=f"c-{i}", index=i, generation=0, blueprint=experiment.model.to_json()),
            parents=(),
            ancestors=(),
            stages=stages,
            seed=0,
            run_dir=folder,
            device="cpu",
        )
        for i in range(count)
    ]


def seconds(executor: Executor, count: int, work: list[Job]) -> float:
    with threads(count):
        began = time.perf_counter()
        for report in executor.map(work, lambda candidate, step: None):
            assert report.status == "trained", report.reason
        return time.perf_counter() - began


def compare(settled: Experiment, prepared: PreparedData, workers: int, count: int, steps: int, rounds: int) -> None:
    pool, alone = Pool(prepared, workers), InProcess(prepared)
    with tempfile.TemporaryDirectory() as folder:
        work = jobs(settled, count, steps, folder)
        contestants: dict[str, Callable[[], float]] = {
            f"{workers} workers of 1 thread": partial(seconds, pool, 1, work),
            f"1 process of {workers} threads": partial(seconds, alone, workers, work),
            "1 process of 1 thread": partial(seconds, alone, 1, work),
        }
        for executor, threads_each in ((pool, 1), (alone, workers)):
            seconds(executor, threads_each, work[:workers])  # warm
        taken: dict[str, list[float]] = {name: [] for name in contestants}
        for _ in range(rounds):
            for name, run in contestants.items():
                taken[name].append(run())
    pool.close()
    best = statistics.median(next(iter(taken.values())))
    for name, times in taken.items():
        median = statistics.median(times)
        print(f"  {name:<24} {count / median:6.2f} candidates/s   x{median / best:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one size, one round")
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    print(f"torch {torch.__version__}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}, in {Path(__file__).name}")
    for dim, layers, bf16 in ((128, 4, False), (128, 4, True), (256, 6, False))[: 1 if args.quick else 3]:
        settled, prepared = settle(experiment(dim, layers, bf16))
        print(f"dim {dim}, {layers} blocks, {'bf16' if bf16 else 'fp32'}, T={SEQ_LEN}, batch {BATCH}:")
        compare(settled, prepared, args.workers, *((4, 6, 1) if args.quick else (6, 20, 3)))


if __name__ == "__main__":
    main()
