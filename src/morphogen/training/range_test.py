"""`train.lr: auto`: which learning rate the root learns fastest with. A trial of the root asks it, once in a run."""

import math
from collections.abc import Mapping
from statistics import fmean
from typing import NamedTuple

import torch
from torch import Tensor

from morphogen.blueprint.schema import Blueprint
from morphogen.cost import train_flops
from morphogen.data.mixture import Mixture
from morphogen.errors import CandidateError
from morphogen.experiment import Train
from morphogen.network import assemble
from morphogen.training.trainer import Trainer

#: The rates tried for AdamW and Muon; lion's are a fifth of them.
RATES = (5e-4, 1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2)
LION_SHARE = 0.2
#: Each is tried for this share of the root's steps, but for at least and at most so many.
SHARE, LEAST_STEPS, MOST_STEPS = 0.25, 8, 50
#: Losses within this share of the best are as good: of those rates the largest is taken.
ALIKE = 0.005


def steps_each(total_steps: int) -> int:
    """Steps that each rate is tried for, where the root trains for `total_steps`."""
    return min(max(math.ceil(SHARE * total_steps), LEAST_STEPS), MOST_STEPS)


def rates(train: Train) -> tuple[float, ...]:
    """The rates that are tried, in rising order."""
    return tuple(rate * (LION_SHARE if train.optimizer.name == "lion" else 1.0) for rate in RATES)


class Found(NamedTuple):
    """A learning rate, and tokens and FLOPs of the trainings by which it was found."""

    rate: float
    tokens: int
    flops: float


def find_rate(
    blueprint: Blueprint,
    state: Mapping[str, Tensor],
    train: Train,
    mixture: Mixture,
    *,
    total_steps: int,
    seed: int,
    device: torch.device,
) -> Found:
    """The largest rate whose loss after a few steps on the run's first batches is as good as the best.

    The loss is the mean over the last quarter of the steps. A rate at which training ends early is none.
    CandidateError where all are. The weights in `state` stay as they are.
    """
    steps, losses, flops = steps_each(total_steps), dict[float, float](), 0.0
    tokens, per_step = 0, mixture.prepared.tokens_per_step
    for rate in rates(train):
        model = assemble(blueprint, {name: tensor.clone() for name, tensor in state.items()}).to(device)
        trainer = Trainer(
            model,
            train.model_copy(update={"lr": rate, "schedule": "constant"}),
            total_steps=steps,
            tokens_per_step=per_step,
            seed=seed,
        )
        if trainer.run(mixture.batch, steps) is None:
            losses[rate] = fmean(trainer.trace.losses[-max(1, steps // 4) :])
        progress = [step / steps for step in range(trainer.step)]  # fewer where it ended early
        tokens += trainer.step * per_step
        flops += train_flops(blueprint, mixture.prepared.seq_len, trainer.step * per_step, progress)
    if not losses:
        tried = ", ".join(f"{rate:g}" for rate in rates(train))
        raise CandidateError(f"train.lr: 'auto' found none, since training ended early at all of {tried}")
    best = min(losses.values())
    return Found(max(rate for rate, loss in losses.items() if loss <= best * (1.0 + ALIKE)), tokens, flops)
