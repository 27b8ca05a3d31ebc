"""Which mixers can recall: multi-query associative recall (data/probes.py) learned from scratch, best of three rates.

Two blocks (mixer and feed-forward layer) of width 64, sequences of 64 tokens over 256 tokens with 8 pairs, batches of
64, every value scored. Published (Zoology, arXiv 2312.04927, at this length and width): attention 1.00, H3 .93, RWKV
.76, convolutions .5 to .7. Accuracy is the mean over buckets of distance, as `long_recall`; chance is 1/128, and 1/8
for a model that knows a sequence's values but not whose they are.

    python benchmarks/recall.py [--quick] [--steps 1000] [--only NAME]

B sequences, T1 tokens of a sequence
"""

import argparse
import time
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from morphogen.blueprint.schema import Blueprint
from morphogen.data.probes import Probe, scored_only
from morphogen.experiment import Train
from morphogen.metrics.recall import recall
from morphogen.network import build
from morphogen.parts.base import REGISTRY
from morphogen.training.loop import Trainer

DIM, VOCAB, BATCH = 64, 256, 64
PROBE = Probe(pairs=8, weight=1.0, seq_len=64, vocab_size=VOCAB)
RATES = (1e-3, 3e-3, 1e-2)
#: Training stops at this accuracy: it is learned.
LEARNED = 0.995
CHECK_STEPS = 100
FFN = {"kind": "dense", "hidden": 128}
HEADS = {"heads": 2, "head_dim": 32}
LOOP = {"start": 0, "end": 1, "max_train_recurrence": 2, "train_recurrence": 2}

#: Name -> the mixer's place, the mixer, how many blocks of it, and whether they are looped.
MIXERS: dict[str, tuple[str, dict[str, Any], int, bool]] = {
    "attention": ("attn", {"kind": "MHA", **HEADS}, 2, False),
    "attention, one block": ("attn", {"kind": "MHA", **HEADS}, 1, False),
    "attention, one block run twice": ("attn", {"kind": "MHA", **HEADS}, 1, True),
    "sliding window of 16": ("attn", {"kind": "MHA", "sparsity": "sliding", "sliding_window": 16, **HEADS}, 2, False),
    "sliding window of 8": ("attn", {"kind": "MHA", "sparsity": "sliding", "sliding_window": 8, **HEADS}, 2, False),
    "linear attention": ("attn", {"kind": "LINEAR", **HEADS}, 2, False),
    "linear attention, delta rule": ("attn", {"kind": "LINEAR", "decay": "delta", **HEADS}, 2, False),
    "mamba2, state 16": ("ssm", {"kind": "mamba2", "d_state": 16, "head_dim": 32}, 2, False),
    "mamba, state 16": ("ssm", {"kind": "mamba", "d_state": 16}, 2, False),
}


def blueprint(name: str) -> Blueprint:
    """Two blocks of one mixer, or one that may be looped."""
    slot, part, blocks, looped = MIXERS[name]
    return Blueprint.model_validate(
        {
            "name": name,
            "emb": {"dim": DIM, "vocab": VOCAB},
            "blocks": [{slot: part, "ffn": FFN}] * blocks,
            "recurrences": [LOOP] if looped else [],
        }
    )


def batch(step: int) -> NDArray[np.int64]:
    """ids_BT1 of one training step, the same for every mixer."""
    return np.stack([scored_only(PROBE.sequence(0, step, row)) for row in range(BATCH)])


def learn(name: str, rate: float, steps: int) -> tuple[float, float, int]:
    """(accuracy, nats per question, steps taken)."""
    model = build(blueprint(name), seed=0)
    unguarded = {"entropy_threshold": 0.0, "instability_threshold": 1e9, "no_improve_patience": 10**6}
    train = Train.model_validate({"lr": rate, "warmup": 50, **unguarded})
    trainer = Trainer(model, train, total_steps=steps, tokens_per_step=BATCH * PROBE.seq_len, seed=0)
    found = {"long_recall": 0.0, "recall_nll": float("nan")}
    while trainer.step < steps and found["long_recall"] < LEARNED:
        if trainer.run(batch, min(steps, trainer.step + CHECK_STEPS)) is not None:
            break
        found = recall(model, PROBE, batch_size=BATCH)
    return found["long_recall"], found["recall_nll"], trainer.step


def main() -> None:
    """Print one row per mixer as it is done."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--quick", action="store_true", help="200 steps and one rate: shows that it runs")
    options.add_argument("--steps", type=int, default=1000)
    options.add_argument("--only", choices=MIXERS, action="append")
    chosen = options.parse_args()
    torch.set_num_threads(1)
    steps, rates = (200, (3e-3,)) if chosen.quick else (chosen.steps, RATES)
    print(f"{'':32} recall   nats  best rate  steps  minutes   (chance {PROBE.chance:.4f}; at most {steps} steps)")
    for name in chosen.only or MIXERS:
        slot, part, *_ = MIXERS[name]
        if (slot, part["kind"]) not in REGISTRY:
            continue
        started = time.perf_counter()
        results = [(*learn(name, rate, steps), rate) for rate in rates]
        accuracy, nats, taken, rate = max(results)
        minutes = (time.perf_counter() - started) / 60
        print(f"{name:32} {accuracy:6.3f} {nats:6.2f} {rate:10g} {taken:6} {minutes:8.1f}", flush=True)


if __name__ == "__main__":
    main()
