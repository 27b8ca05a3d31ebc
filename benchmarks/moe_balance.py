"""How evenly experts are used after training: with the load-balance loss, with the bias, and with neither.

The same small model, text and seeds; the load is counted over the last 50 steps of each run, in each layer, and the
figure is the busiest expert's over the mean, the mean over layers (1 is even). The loss is nats per byte.

    python benchmarks/moe_balance.py [--quick]
"""

import argparse
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from morphogen.blueprint.schema import Blueprint
from morphogen.experiment import Train
from morphogen.network import build
from morphogen.training.trainer import Trainer

DIM, LAYERS, EXPERTS, CHOICES, HIDDEN = 64, 3, 8, 2, 96
BATCH, LENGTH, LAST = 8, 128, 50
SETTINGS: dict[str, dict[str, Any]] = {
    "neither": {"balance": 0.0},
    "balance loss 0.01": {"balance": 0.01},
    "balance loss 0.03": {"balance": 0.03},
    "bias": {"balance": 0.0, "router_bias": "aux_free"},
}


def blueprint(**router: Any) -> Blueprint:
    """Attention and a mixture in every block."""
    block = {
        "attn": {"kind": "MHA", "heads": 2, "head_dim": 32},
        "ffn": {"kind": "moe", "hidden": HIDDEN, "n_experts": EXPERTS, "k": CHOICES, **router},
    }
    return Blueprint.model_validate({"emb": {"dim": DIM, "vocab": 256}, "blocks": [block] * LAYERS})


def corpus() -> NDArray[np.int64]:
    """The bytes of this Python's own library, the head of every tenth file."""
    files = sorted(Path(statistics.__file__).parent.glob("*.py"))[::10]
    return np.frombuffer(b"".join(file.read_bytes()[:40_000] for file in files), dtype=np.uint8).astype(np.int64)


def run(text: NDArray[np.int64], router: dict[str, Any], steps: int, seed: int) -> tuple[float, float]:
    """(busiest / mean over the last steps, loss over them)."""
    model = build(blueprint(**router), seed=seed)
    trainer = Trainer(model, Train(warmup=20), total_steps=steps, tokens_per_step=BATCH * LENGTH, seed=seed)

    def batch(step: int) -> NDArray[np.int64]:
        starts_B = np.random.default_rng((seed, step)).integers(len(text) - LENGTH - 1, size=BATCH)
        return text[starts_B[:, None] + np.arange(LENGTH + 1)]

    trainer.run(batch, steps - LAST)
    loads: dict[Any, torch.Tensor] = {}
    for step in range(steps - LAST, steps):
        with model.recording() as record, torch.no_grad():
            model(torch.from_numpy(batch(step)[:, :-1]))
        for branch, load_E in record.tallies.items():
            loads[branch] = loads.get(branch, 0.0) + load_E
        trainer.run(batch, step + 1)
    busiest = statistics.fmean(float(load_E.max() / load_E.mean()) for load_E in loads.values())
    return busiest, statistics.fmean(trainer.trace.losses[-LAST:])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Expert load with and without balancing.")
    parser.add_argument("--quick", action="store_true", help="one seed")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    steps, seeds, kinds = 300, (0,) if quick else (0, 1, 2), ("softmax", "sigmoid")
    text = corpus()
    print(f"{EXPERTS} experts, top-{CHOICES}, {LAYERS} layers, {steps} steps, {len(seeds)} seeds: busiest / mean; loss")
    for name, router in SETTINGS.items():
        for kind in kinds:
            figures = [run(text, {**router, "router_type": kind}, steps, seed) for seed in seeds]
            loads, losses = zip(*figures, strict=True)
            load = f"{statistics.fmean(loads):.2f} (up to {max(loads):.2f})"
            print(f"{name:<20}{kind:<10}{load:>20}{statistics.fmean(losses):>8.3f}", flush=True)


if __name__ == "__main__":
    main()
