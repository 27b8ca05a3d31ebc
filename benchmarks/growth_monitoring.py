"""What it costs to watch a model that does not grow: the share of a training step that goes into rules that never act.

usage: growth_monitoring.py [--rounds N] [--steps N] [--measure removal|gradient|activation|none]

A model of 10 million parameters is trained by `Growing`, with a rule on a plateau, one on the gradient norm, one on
perplexity, one on a step, and one on how much layers are used, of the usual window, by one measure. On a shared machine
whole steps take as long as others let them; so the processor seconds of all that is done for the rules alone are
counted inside the very steps that they are compared with: looks, bookkeeping, hooks, passes without a layer. Prints
their share of the rest, of every round of so many steps and the median.
"""

import argparse
import functools
import statistics
import time
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, get_args

import numpy as np
import torch

from morphogen.blueprint.schema import Blueprint
from morphogen.blueprint.tensors import parameter_count
from morphogen.blueprint.triggers import UtilizationTrigger
from morphogen.experiment import Train
from morphogen.growth.utilization import Measure, Watch
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
    never = {"trigger": "gradient_norm", "above": 1e9}
    when: list[dict[str, object]] = [
        {"trigger": "all", "of": [{"trigger": "plateau"}, {"trigger": "perplexity", "below": 1.0001}]},
        never,
        {"trigger": "step", "at": 10**9},
    ]
    if measure != "none":
        used = {"trigger": "utilization", "measure": measure, "threshold": 0.99, "share": 1.0}
        when.append({"trigger": "all", "of": [used, never]})
    return [{"when": each, "do": WIDEN} for each in when]


P = ParamSpec("P")
R = TypeVar("R")


class Clock:
    """Processor seconds spent in some functions, those within one another counted once."""

    def __init__(self) -> None:
        self.seconds, self._inside = 0.0, False

    def around(self, function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def timed(*args: P.args, **kwargs: P.kwargs) -> R:
            if self._inside:
                return function(*args, **kwargs)
            self._inside, begun = True, time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds += time.process_time() - begun
                self._inside = False

        return timed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=UtilizationTrigger().window, help="of a round")
    parser.add_argument("--measure", choices=get_args(Measure), default=UtilizationTrigger().measure)
    asked = parser.parse_args()
    for name in ("rounds", "steps"):
        if vars(asked)[name] < 1:
            parser.error(f"--{name}: got {vars(asked)[name]}, expected 1 or more")
    torch.set_num_threads(1)
    growth = rules(asked.measure)
    blueprint = Blueprint.model_validate({"emb": {"dim": 384, "vocab": VOCAB}, "blocks": [BLOCK] * 6, "growth": growth})
    train = Train.model_validate({"lr": 1e-3, "instability_threshold": 1e9, "entropy_threshold": 0.0})
    total = asked.rounds * asked.steps + 3
    trainer = Trainer(build(blueprint, 0), train, total_steps=total, tokens_per_step=SEQ * BATCH, seed=0)
    growing = Growing(trainer, held_BT1=batch(10**6), seed=0)
    steps, hooks = Clock(), Clock()
    anything: Any = trainer
    anything.run = steps.around(trainer.run)
    anything.on_record = hooks.around(growing._on_record)
    for name in ("_gradient", "_meet", "_activation"):
        setattr(Watch, name, hooks.around(getattr(Watch, name)))
    growing.run(batch, 3)  # warms up
    shares = []
    for round in range(1, asked.rounds + 1):
        steps.seconds = hooks.seconds = 0.0
        begun = time.process_time()
        growing.run(batch, 3 + round * asked.steps)
        whole = time.process_time() - begun
        bare = steps.seconds - hooks.seconds
        shares.append((whole - bare) / bare)
    assert not growing.events
    print(f"{parameter_count(blueprint):,} parameters, {SEQ * BATCH} tokens a step, {asked.steps} steps a round")
    print(f"a step takes {bare / asked.steps:.4f} processor seconds; utilization by {asked.measure}")
    print(f"watching takes {statistics.median(shares):.2%} of it (rounds: {', '.join(f'{s:.2%}' for s in shares)})")


if __name__ == "__main__":
    main()
