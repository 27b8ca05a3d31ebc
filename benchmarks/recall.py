"""Which mixers can recall: multi-query associative recall (data/probes/) learned from scratch, best of three rates.

A block with a gated short convolution, then one with the mixer, of width 64 and without feed-forward layers: the
convolution puts a key beside its value, the mixer has to find it again. Last two layers of attention and nothing else,
whose steep heads (ALiBi) can do what the convolution does. Sequences of 64 tokens over 256 tokens with 8 pairs,
batches of 64, every value scored. Published (Zoology, arXiv 2312.04927) at this length and width, after much longer
training: attention 1.00, H3 .93, RWKV .76, convolutions .5 to .7. Recall is the mean over buckets of distance, as
`long_recall`, in which rare long distances count like frequent short ones; chance is 1/128, and 1/8 for a model that
knows a sequence's values but not whose they are.

    python benchmarks/recall.py [--quick] [--bf16] [--steps 1000] [--only NAME]

B sequences, T1 tokens of a sequence
"""

import argparse
import functools
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
from morphogen.training.trainer import Trainer

DIM, VOCAB, BATCH = 64, 256, 64
PROBE = Probe(size=8, weight=1.0, seq_len=64, vocab_size=VOCAB)
#: The rate that most often learns comes first: where one has learned it, the others are not tried.
RATES = (3e-3, 1e-2, 1e-3)
#: Embeddings as large as this are told apart early: with 0.02, few of these learn anything within 1,000 steps.
INIT_STD = 0.1
#: Training stops at this accuracy: it is learned.
LEARNED = 0.995
CHECK_STEPS = 100
CONV = {"extras": [{"kind": "short_conv"}]}
HEADS = {"heads": 2, "head_dim": 32}
ATTENTION = {"kind": "MHA", "rope": "none", **HEADS}

ALIBI = {"attn": {"kind": "MHA", "rope": "none", "alibi": True, "heads": 8, "head_dim": 8}}
WINDOW = {"attn": {**ALIBI["attn"], "sparsity": "sliding", "sliding_window": 8}}

#: Name -> the block after the convolution's; the last one has the convolution alone.
MIXERS: dict[str, dict[str, Any]] = {
    "attention": {"attn": ATTENTION},
    "sliding window of 16": {"attn": {**ATTENTION, "sparsity": "sliding", "sliding_window": 16}},
    "linear attention": {"attn": {"kind": "LINEAR", **HEADS}},
    "linear attention, delta rule": {"attn": {"kind": "LINEAR", "decay": "delta", "feature_map": "silu", **HEADS}},
    "mamba2, state 16": {"ssm": {"kind": "mamba2", "d_state": 16, "head_dim": 32}},
    "mamba2, state 64": {"ssm": {"kind": "mamba2", "d_state": 64, "head_dim": 32}},
    "a second short convolution": CONV,
}
#: Name -> both blocks.
WHOLE: dict[str, list[dict[str, Any]]] = {
    **{name: [CONV, block] for name, block in MIXERS.items()},
    "two layers of attention, ALiBi": [ALIBI, ALIBI],
    "two layers that see 8 tokens back": [WINDOW, WINDOW],
}


def blueprint(name: str) -> Blueprint:
    """Two blocks."""
    emb = {"dim": DIM, "vocab": VOCAB, "init_std": INIT_STD}
    return Blueprint.model_validate({"name": name, "emb": emb, "blocks": WHOLE[name]})


@functools.cache
def batch(step: int) -> NDArray[np.int64]:
    """ids_BT1 of one training step, the same for every mixer."""
    return np.stack([scored_only(PROBE.sequence(0, step, row)) for row in range(BATCH)])


def learn(name: str, rate: float, steps: int, bf16: bool) -> tuple[float, float, int]:
    """(accuracy, nats per question, steps taken)."""
    model = build(blueprint(name), seed=0)
    unguarded = {"entropy_threshold": 0.0, "instability_threshold": 1e9, "no_improve_patience": 10**6}
    train = Train.model_validate({"lr": rate, "warmup": 50, "schedule": "cosine", "bf16": bf16, **unguarded})
    trainer = Trainer(model, train, total_steps=steps, tokens_per_step=BATCH * PROBE.seq_len, seed=0)
    found = {"long_recall": 0.0, "recall_nll": float("nan")}
    while trainer.step < steps and found["long_recall"] < LEARNED:
        if trainer.run(batch, min(steps, trainer.step + CHECK_STEPS)) is not None:
            break
        found = recall(model, PROBE, batch_size=BATCH, bf16=bf16)
    return found["long_recall"], found["recall_nll"], trainer.step


def main() -> None:
    """Print one row per mixer as it is done."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--quick", action="store_true", help="200 steps and one rate: shows that it runs")
    options.add_argument("--bf16", action="store_true", help="autocast: faster where the processor has it")
    options.add_argument("--steps", type=int, default=1000)
    options.add_argument("--only", choices=WHOLE, action="append")
    chosen = options.parse_args()
    torch.set_num_threads(1)
    steps, rates = (200, RATES[:1]) if chosen.quick else (chosen.steps, RATES)
    print(f"{'':32} recall   nats  best rate  steps  minutes   (chance {PROBE.chance:.4f}; at most {steps} steps)")
    for name in chosen.only or WHOLE:
        started = time.perf_counter()
        results: list[tuple[float, float, int, float]] = []
        for rate in rates:
            results.append((*learn(name, rate, steps, chosen.bf16), rate))
            if results[-1][0] >= LEARNED:
                break
        accuracy, nats, taken, rate = max(results)
        minutes = (time.perf_counter() - started) / 60
        print(f"{name:32} {accuracy:6.3f} {nats:6.2f} {rate:10g} {taken:6} {minutes:8.1f}", flush=True)


if __name__ == "__main__":
    main()
