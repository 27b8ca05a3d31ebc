"""How well children of two parents start: held-out loss after a few healing steps, less that of the worse parent.

A root is trained, its descendants (one to three random edits each) inherit its weights and are trained apart from one
another, on other text; pairs of them are crossed by every way in turn.

    python benchmarks/crossover_healing.py [--quick] [--pairs 50]

B sequences, T tokens
"""

import argparse
from collections import defaultdict

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from morphogen.blueprint.schema import Blueprint
from morphogen.data.mixture import Mixture
from morphogen.data.prepare import prepare
from morphogen.experiment import Data, Train
from morphogen.inherit.descent import inherit
from morphogen.network import LanguageModel, assemble, build
from morphogen.training.trainer import Trainer
from morphogen.variation.crossover import CROSSOVERS
from morphogen.variation.operator import mutate
from warm_start import BATCH, PARENT, SEQ_LEN, held_out

HEALING = 20
QUANTILES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)


def train(model: LanguageModel, mixture: Mixture, steps: int) -> None:
    """In place, by the schedule of a run of so many steps."""
    settings = Train(warmup=5, instability_threshold=1e9, no_improve_patience=10**6)
    Trainer(model, settings, total_steps=steps, tokens_per_step=SEQ_LEN * BATCH, seed=0).run(mixture.batch, steps)


def main() -> None:
    """Print the distribution, whole and by the way of crossing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=50)
    parser.add_argument("--quick", action="store_true", help="6 pairs, little training")
    options = parser.parse_args()
    pairs, lines, root_steps, steps = (6, 4, 40, 10) if options.quick else (options.pairs, 16, 300, 80)
    torch.set_num_threads(1)
    prepared = prepare(Data(tokenizer="bytes", seq_len=SEQ_LEN, batch_size=BATCH))
    root = Blueprint.model_validate(PARENT).with_vocab(prepared.vocab_size)
    mixture = Mixture(prepared, 0)
    name = prepared.eval_shards[0].name
    ids_BT1 = torch.cat([torch.from_numpy(b.ids.copy()) for b in mixture.eval_batches(name, 4 * SEQ_LEN * BATCH)])
    model = build(root, seed=0)
    train(model, mixture, root_steps)
    parents: list[tuple[Blueprint, dict[str, torch.Tensor], float]] = []
    for number in range(lines):
        child, _ = mutate(root, np.random.default_rng([1, number]), 3, {})
        state, _ = inherit(child, [(root, model.state_dict())], seed=number)
        line = assemble(child, state)
        train(line, Mixture(prepared, 1 + number), steps)
        parents.append((child, line.state_dict(), held_out(line, ids_BT1)))
    excess: dict[str, list[tuple[float, float]]] = defaultdict(list)
    ways, rng, done = list(CROSSOVERS), np.random.default_rng(2), 0
    while done < pairs:
        one, two = (parents[i] for i in rng.choice(len(parents), size=2, replace=False))
        way = ways[done % len(ways)]
        made = CROSSOVERS[way](one[0], two[0], rng)
        if made is None:
            continue
        child, (edit,) = made
        state, _ = inherit(child, [one[:2], two[:2]], sources=edit.sources, seed=done)
        crossed, worse = assemble(child, state), max(one[2], two[2])
        before = held_out(crossed, ids_BT1) - worse
        train(crossed, Mixture(prepared, 100 + done), HEALING)
        excess[way].append((before, held_out(crossed, ids_BT1) - worse))
        done += 1
    print(f"root and {lines} parents: held-out losses {', '.join(f'{loss:.3f}' for *_, loss in parents)}")
    table = Table(title=f"loss above the worse parent's, nats per byte, {pairs} pairs")
    for column in ("crossing", "pairs", "when", *(f"{q:.0%}" for q in QUANTILES)):
        table.add_column(column, justify="left" if column in ("crossing", "when") else "right")
    everything = {"all": [each for found in excess.values() for each in found], **excess}
    for way, found in everything.items():
        for when, values in zip(("at once", f"after {HEALING} steps"), zip(*found, strict=True), strict=True):
            table.add_row(way, str(len(found)), when, *(f"{x:+.3f}" for x in np.quantile(values, QUANTILES)))
    Console(width=120).print(table)
    print("all pairs:", ", ".join(f"{after:+.3f}" for _, after in sorted(everything["all"], key=lambda pair: pair[1])))


if __name__ == "__main__":
    main()
