"""What a candidate costs: CPU-seconds, one thread, and how much of that is training.

Three blocks (GQA; local_global; a mixture of experts with retro), d=128, T=256, batch 4, a BPE of 2048, 30 steps, its
evaluation included. A run without edits, so that all candidates are the same size: a root, then generations that
inherit. The whole run is counted (search, ledger, exports), imports and the making of the tokenizer are shown apart.

    python benchmarks/candidate.py [--quick] [--bf16] [--profile FILE]
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import cProfile
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import torch

from morphogen import runfolder
from morphogen.experiment import Experiment
from morphogen.run import evolve, settle
from morphogen.search.engine import Engine
from morphogen.store.ledger import Ledger
from morphogen.training import trial
from morphogen.training.measurement import Measurement
from morphogen.training.threads import threads

#: CPU-seconds from the start of the process to here.
IMPORTS = time.process_time()
SEQ_LEN, BATCH, STEPS = 256, 4, 30
#: The older system's, measured on this kind of machine: CPU-seconds per candidate, and the share of training.
OLDER = (8.5, 0.73)


def experiment(eval_batches: int, population: int, generations: int, bf16: bool = False) -> Experiment:
    heads = {"kind": "GQA", "heads": 4, "head_dim": 32, "kv_groups": 2}
    dense = {"kind": "dense", "hidden": 384, "activation": "swiglu"}
    moe = {"kind": "moe", "hidden": 192, "n_experts": 4, "k": 2}
    retro = {"kind": "retro", "memory_tokens": 64, "stride": 32, "aggregator": "gate"}
    window = {"sparsity": "local_global", "sliding_window": 64, "global_stride": 32}
    blocks = [
        {"attn": heads, "ffn": dense},
        {"attn": {**heads, **window}, "ffn": dense},
        {"attn": heads, "extras": [retro], "ffn": moe},
    ]
    first = STEPS // 3 * SEQ_LEN * BATCH
    return Experiment.model_validate(
        {
            "model": {"name": "candidate", "emb": {"dim": 128}, "blocks": blocks},
            "train": {"instability_threshold": 1e9, "bf16": bf16},
            "data": {
                "tokenizer": {"kind": "bpe", "vocab": 2048},
                "seq_len": SEQ_LEN,
                "batch_size": BATCH,
                "eval_tokens": eval_batches * SEQ_LEN * BATCH,
            },
            "evolution": {
                "mutation_steps": 0,
                "crossover_prob": 0.0,
                "population": population,
                "generations": generations,
                "rung1_tokens": first,
                "rung2_tokens": STEPS * SEQ_LEN * BATCH - first,
            },
        }
    )


def gflops() -> float:
    """What a large fp32 matrix product reaches on one thread just now, in GFLOP per CPU-second."""
    a, b = torch.randn(2048, 1024), torch.randn(1024, 2048)
    a @ b
    began = time.process_time()
    for _ in range(8):
        a @ b
    return 8 * 2 * 2048 * 1024 * 2048 / (time.process_time() - began) / 1e9


def watched(spent: Counter[str], holder: Any, name: str, label: str) -> None:
    """Adds the CPU-seconds inside `holder.name` to `spent[label]`."""
    call: Callable[..., Any] = getattr(holder, name)

    @wraps(call)
    def timed(*args: Any, **kwargs: Any) -> Any:
        began = time.process_time()
        try:
            return call(*args, **kwargs)
        finally:
            spent[label] += time.process_time() - began

    setattr(holder, name, timed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one generation of two")
    parser.add_argument("--bf16", action="store_true", help="train and measure under bf16 autocast, instead of in fp32")
    parser.add_argument("--eval-batches", type=int, default=4)
    parser.add_argument("--profile", type=Path, help="write cProfile's statistics there")
    args = parser.parse_args()
    began = time.process_time()
    settled, _ = settle(experiment(args.eval_batches, 2 if args.quick else 5, 1 if args.quick else 3, args.bf16))
    preparing = time.process_time() - began
    spent: Counter[str] = Counter()
    for holder, name, label in (
        (trial.Trial, "_train", "training"),
        (Measurement, "before_training", "evaluation"),
        (Measurement, "take", "evaluation"),
        (trial, "starting_weights", "weights"),
        (trial, "assemble", "building"),
        (trial.Trial, "_save", "checkpoint"),
        (Engine, "ask", "asking"),
        (Engine, "close_generation", "selection"),
        (Ledger, "append", "ledger"),
        (runfolder, "export", "exports"),
    ):
        watched(spent, holder, name, label)
    profile = cProfile.Profile()
    with tempfile.TemporaryDirectory() as folder, threads(1):
        evolve(settled, Path(folder) / "warm", generations=0)  # what torch imports at its first step
        spent.clear()
        if args.profile:
            profile.enable()
        before = gflops()
        began = time.process_time()
        run = evolve(settled, Path(folder) / "run")
        total = time.process_time() - began
        profile.disable()
        after = gflops()
        nodes = run.lineage.nodes
    if args.profile:
        profile.dump_stats(args.profile)
    assert {node.status for node in nodes} == {"trained"}, [node.reason for node in nodes]
    spent["the rest"] = total - sum(spent.values())
    each = total / len(nodes)
    print(f"{len(nodes)} candidates of {nodes[0].costs['params']:,.0f} parameters, {STEPS} steps of")
    print(f"{SEQ_LEN * BATCH} tokens, measured on {args.eval_batches} batches; CPU-seconds per candidate, one thread:")
    for name, seconds in spent.most_common():
        print(f"  {name:<11} {seconds / len(nodes):7.3f}  {seconds / total:6.1%}")
    print(f"  {'all':<11} {each:7.3f}          {STEPS * SEQ_LEN * BATCH / each:,.0f} training tokens per CPU-second")
    print(f"the older system: {OLDER[0]} CPU-seconds, {OLDER[1]:.0%} training; ratio {OLDER[0] / each:.2f}")
    print(f"a large matrix product just now: {before:.0f} and {after:.0f} GFLOP per CPU-second")
    print(f"once per run: imports {IMPORTS:.2f}, data and tokenizer {preparing:.2f} (more where they are not cached)")


if __name__ == "__main__":
    main()
