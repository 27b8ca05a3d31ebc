"""Does growing pay? Held-out loss at equal FLOPs: a small model, large ones from scratch, small ones that grow large.

Each training has the same FLOPs (those of `--steps` steps of the small model). The grown ones spend a share of them
small, and the rest as large as the one from scratch beside them. `stack` grows deeper the older way, by whole copies of
layers, and jumps in loss. Every training of a seed reads the same text in the same order; the learning rate is the same
for all, constant after its warm-up, and averaged weights are measured. Growth costs nothing here but its steps.

    python benchmarks/growth_pays.py [--quick] [--steps 400] [--seeds 3] [--share 0.5]
"""

import argparse
import statistics
import sys
from typing import NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from morphogen.blueprint.growth import GrowthRule
from morphogen.blueprint.schema import Blueprint
from morphogen.blueprint.tensors import parameter_count
from morphogen.cost import train_flops
from morphogen.data.mixture import Mixture
from morphogen.data.prepare import PreparedData, prepare
from morphogen.experiment import BPE, Data, Train
from morphogen.growth.actions import act
from morphogen.metrics.perplexity import evaluate
from morphogen.network import build
from morphogen.training.growing import Growing
from morphogen.training.trainer import Trainer

SEQ_LEN, BATCH, EVAL_TOKENS = 128, 8, 16384
MARKS = (0.5, 0.75, 1.0)
BLOCK = {"attn": {"kind": "MHA", "heads": 4, "head_dim": 16}, "ffn": {"kind": "dense", "hidden": 160}}
SMALL = {"name": "small", "emb": {"dim": 64}, "blocks": [BLOCK, BLOCK]}
#: Name -> what it grows by.
GROWTHS = {
    "depth": {"action": "deepen", "layers": 2, "where": "alternate"},
    "depth, stacked": {"action": "deepen", "layers": 2, "where": "alternate", "how": "stack"},
    "width": {"action": "widen", "target": "dim", "factor": 1.5},
    "experts": {"action": "to_moe", "n_experts": 4, "k": 2},
}


class Found(NamedTuple):
    """Bits per byte at each of `MARKS`, parameters at the end, steps, and the jump in loss at the moment of growth."""

    bpb: tuple[float, ...]
    params: int
    steps: int
    jump: float | None


def rule(name: str, step: int) -> GrowthRule:
    """Grows once, at a step."""
    plain = {"id": "grow", "when": {"trigger": "step", "at": step}, "do": {**GROWTHS[name], "warmup": 10}}
    return GrowthRule.model_validate({**plain, "limits": {"max_times": 1}})


def large(small: Blueprint, name: str) -> Blueprint:
    """What the small model grows into."""
    grown = act(small, rule(name, 1).do, np.random.default_rng(0))
    assert grown is not None
    return grown.blueprint


def trained(
    blueprint: Blueprint, prepared: PreparedData, seed: int, flops: float, name: str | None, share: float
) -> Found:
    """Trains on so many FLOPs; with a name, it grows by that after a share of them."""
    after = blueprint if name is None else large(blueprint, name)
    per_step, later = (train_flops(each, SEQ_LEN, prepared.tokens_per_step) for each in (blueprint, after))
    first = max(1, round(share * flops / per_step))

    def steps(spent: float) -> int:
        """As many as so many FLOPs are enough for."""
        small = spent / per_step
        return round(small if small <= first else first + (spent - first * per_step) / later)

    if name is not None:
        blueprint = blueprint.model_copy(update={"growth": (rule(name, first),)})
    mixture = Mixture(prepared, seed)
    trainer = Trainer(
        build(blueprint, seed=seed),
        Train(lr=3e-3, warmup=20, instability_threshold=1e9, no_improve_patience=10**6),
        total_steps=steps(flops),
        tokens_per_step=prepared.tokens_per_step,
        seed=seed,
    )
    growing, found = Growing(trainer, held_BT1=mixture.held(), seed=seed), []
    for mark in MARKS:
        growing.run(mixture.batch, steps(mark * flops))
        with trainer.measurable() as model:
            found.append(float(evaluate(model, mixture, EVAL_TOKENS)["bpb"]))
    assert len(growing.events) == (name is not None)
    jump = growing.events[0].loss_after - growing.events[0].loss if growing.events else None
    return Found(tuple(found), parameter_count(growing.blueprint), trainer.step, jump)


def main() -> None:
    """Print every kind, mean and standard deviation over seeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400, help="of the small model, whose FLOPs all have")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--share", type=float, default=0.5, help="of the FLOPs, until it grows")
    parser.add_argument("--quick", action="store_true", help="40 steps, 1 seed")
    options = parser.parse_args()
    steps, seeds = (40, 1) if options.quick else (options.steps, options.seeds)
    torch.set_num_threads(1)
    prepared = prepare(Data(tokenizer=BPE(vocab=1024), seq_len=SEQ_LEN, batch_size=BATCH))
    small = Blueprint.model_validate(SMALL).with_vocab(prepared.vocab_size)
    flops = train_flops(small, SEQ_LEN, steps * prepared.tokens_per_step)
    kinds: dict[str, tuple[Blueprint, str | None]] = {"small": (small, None)}
    for name in GROWTHS:
        if name != "depth, stacked":  # its large one is that of depth
            kinds[f"{name}: large from scratch"] = large(small, name), None
        kinds[f"{name}: grown"] = small, name
    table = Table(title=f"held-out bits per byte at {flops:.3g} training FLOPs, {seeds} seeds; mean ± sd")
    for column in ("", "parameters", "steps", *(f"at {mark:.0%}" for mark in MARKS), "jump (nats)"):
        table.add_column(column, justify="right" if column else "left")
    for kind, (blueprint, name) in kinds.items():
        found = [trained(blueprint, prepared, seed, flops, name, options.share) for seed in range(seeds)]
        cells = []
        for at_mark in zip(*(one.bpb for one in found), strict=True):
            spread = statistics.stdev(at_mark) if seeds > 1 else 0.0
            cells.append(f"{statistics.fmean(at_mark):.4f} ± {spread:.4f}")
        jumps = [one.jump for one in found if one.jump is not None]
        jump = f"{statistics.fmean(jumps):+.4f}" if jumps else ""
        table.add_row(kind, f"{found[0].params:,}", str(found[0].steps), *cells, jump)
        print(kind, *cells, jump, file=sys.stderr, flush=True)
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
