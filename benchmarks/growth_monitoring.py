"""What it costs to watch a model that does not grow: a training step with rules that never act, and without any.

usage: growth_monitoring.py [--rounds N] [--steps N] [--measure gradient|activation|removal|none]

Two trainings of the same model of 10 million parameters, one by `Trainer` alone and one by `Growing` with a rule on a
plateau, one on the gradient norm, one on perplexity, one on how much layers are used, and one on a step, take turns of
as many steps; processor seconds of either are summed up. Prints the seconds of a step, and the ratio.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from morphogen.blueprint.schema import Blueprint
from morphogen.blueprint.tensors import parameter_count
from morphogen.experiment import Train
from morphogen.network import build
from morphogen.training.growing import Growing
from morphogen.training.trainer import Trainer

SEQ, BATCH, VOCAB = 64, 8, 512
BLOCK = {"attn": {"kind": "MHA", "heads": 6, "head_dim": 64}, "ffn": {"kind": "dense", "hidden": 1024}}
WIDEN = {"action": "widen", "target": "ffn"}


def batch(step: int) -> np.ndarray:
    return np.random.default_rng(step).integers(VOCAB, size=(BATCH, SEQ + 1))


def rules(measure: str) -> list[dict[str, object]]:
    """None of which ever acts."""
    when: list[dict[str, object]] = [
        {"trigger": "all", "of": [{"trigger": "plateau"}, {"trigger": "perplexity", "below": 1e-6}]},
        {"trigger": "gradient_norm", "above": 1e9},
        {"trigger": "step", "at": 10**9},
    ]
    if measure != "none":
        when.append({"trigger": "utilization", "measure": measure, "threshold": 1.0})
    return [{"when": each, "do": WIDEN} for each in when]


def trainer(growth: list[dict[str, object]], steps: int) -> Trainer:
    blueprint = Blueprint.model_validate({"emb": {"dim": 384, "vocab": VOCAB}, "blocks": [BLOCK] * 6, "growth": growth})
    train = Train.model_validate({"lr": 1e-3, "instability_threshold": 1e9, "entropy_threshold": 0.0})
    return Trainer(build(blueprint, 0), train, total_steps=steps, tokens_per_step=SEQ * BATCH, seed=0)


def seconds(run: Callable[[], object]) -> float:
    begun = time.process_time()
    run()
    return time.process_time() - begun


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--measure", default="gradient")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    total = (asked.rounds + 1) * asked.steps
    alone, watched = trainer([], total), trainer(rules(asked.measure), total)
    growing = Growing(watched, held_BT1=batch(10**6), seed=0)
    taken: list[tuple[float, float]] = []
    for end in range(asked.steps, total + 1, asked.steps):
        taken.append(
            (
                seconds(lambda end=end: alone.run(batch, end)) / asked.steps,
                seconds(lambda end=end: growing.run(batch, end)) / asked.steps,
            )
        )
    assert alone.trace.losses == watched.trace.losses
    taken = taken[1:]  # the first warms up
    ratios = [after / before for before, after in taken]
    without, with_rules = (statistics.fmean(side) for side in zip(*taken, strict=True))
    print(f"{parameter_count(alone.model.blueprint):,} parameters, {SEQ * BATCH} tokens a step, {asked.measure}")
    print(f"a step without rules {without:.4f} s, with rules {with_rules:.4f} s, ratio {with_rules / without:.4f}")
    print(f"ratios of the rounds: {', '.join(f'{ratio:.3f}' for ratio in ratios)}")


if __name__ == "__main__":
    main()
