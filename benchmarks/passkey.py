"""A key in a haystack at other lengths than training's: two layers of attention, with RoPE, ALiBi or no positions.

Trained on `probe:passkey` alone (data/probes/passkey.py: four tokens of a key behind a mark, the rest drawn at random,
every token of the answer scored) at one length, and asked there, at twice and at four times it. Eight heads of 8
channels, width 64, no feed-forward layers, batches of 64, cosine, best of the rates at the length of training.
Accuracy by the part of the sequence in which the key stands; and the curve at the length of training, by steps.

    python benchmarks/passkey.py [--steps 1500] [--length 64] [--rates 3e-3 1e-2] [--quick]

B sequences, T1 tokens of a sequence
"""

import argparse
import functools
import time
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from morphogen.blueprint.schema import Blueprint
from morphogen.data.probes import Probe, scored_only
from morphogen.experiment import Train
from morphogen.metrics.probing import DEPTHS, Answers, answers
from morphogen.network import build
from morphogen.training.trainer import Trainer

DIM, VOCAB, BATCH, KEY = 64, 64, 64, 4
#: Embeddings as large as this are told apart early.
INIT_STD = 0.1
CHECKS = 10
HEADS = {"kind": "MHA", "heads": 8, "head_dim": 8}
POSITIONS: dict[str, dict[str, Any]] = {
    "RoPE": {"rope": "standard"},
    "ALiBi": {"rope": "none", "alibi": True},
    "none": {"rope": "none"},
}


class Learned(NamedTuple):
    """What became of one training: accuracy by steps at its own length, and at the end by length."""

    curve: dict[int, float]
    at_end: dict[int, Answers]


def learn(positions: str, rate: float, steps: int, probe: Probe, lengths: list[int]) -> Learned:
    """One model from scratch."""
    blocks = [{"attn": HEADS | POSITIONS[positions]}] * 2
    emb = {"dim": DIM, "vocab": VOCAB, "init_std": INIT_STD}
    model = build(Blueprint.model_validate({"name": "passkey", "emb": emb, "blocks": blocks}), seed=0)
    unguarded = {"entropy_threshold": 0.0, "instability_threshold": 1e9, "no_improve_patience": 10**6}
    train = Train.model_validate({"lr": rate, "warmup": 50, "schedule": "cosine", **unguarded})
    trainer = Trainer(model, train, total_steps=steps, tokens_per_step=BATCH * probe.seq_len, seed=0)
    batch = functools.partial(batches, probe)
    curve: dict[int, float] = {}
    while trainer.step < steps:
        if trainer.run(batch, min(steps, trainer.step + max(1, steps // CHECKS))) is not None:
            break
        found = answers(model, probe, probe.seq_len, batch_size=BATCH)
        curve[trainer.step] = float(found.right_N.mean())
    return Learned(curve, {length: answers(model, probe, length, batch_size=BATCH) for length in lengths})


def batches(probe: Probe, step: int) -> NDArray[np.int64]:
    """ids_BT1 of one training step, the same for all models."""
    return np.stack([scored_only(probe.sequence(0, step, row)) for row in range(BATCH)])


def main() -> None:
    """Print the curve of each kind of positions, and a row for each length."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--steps", type=int, default=1500)
    options.add_argument("--length", type=int, default=64, help="of the sequences that are trained on")
    options.add_argument("--rates", type=float, nargs="+", default=[3e-3])
    options.add_argument("--quick", action="store_true", help="20 steps: shows that it runs")
    chosen = options.parse_args()
    torch.set_num_threads(1)
    steps = 20 if chosen.quick else chosen.steps
    probe = Probe(size=KEY, weight=1.0, seq_len=chosen.length, vocab_size=VOCAB, name="passkey", label="passkey")
    lengths = [chosen.length, 2 * chosen.length, 4 * chosen.length]
    for name in POSITIONS:
        started = time.perf_counter()
        tried = [(rate, learn(name, rate, steps, probe, lengths)) for rate in chosen.rates]
        rate, best = max(tried, key=lambda one: one[1].at_end[chosen.length].right_N.mean())
        curve = ", ".join(f"{step}: {value:.3f}" for step, value in best.curve.items())
        print(f"{name}, rate {rate:g}, {(time.perf_counter() - started) / 60:.1f} minutes; at {chosen.length}: {curve}")
        for length, told in best.at_end.items():
            parts = [told.at(depth) for depth in range(DEPTHS)]
            depths = "  ".join("    -" if one is None else f"{one.right_N.mean():.3f}" for one in parts)
            print(f"  at {length:4} tokens {told.right_N.mean():.3f}   by fifths {depths}", flush=True)
    print(f"chance {probe.chance:.3f}")


if __name__ == "__main__":
    main()
