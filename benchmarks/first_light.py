"""How much of a run's progress is evolution? Three held-out numbers on the same text, in bits per byte:

- the best of the frontier of a run,
- the best of the no-edit control: the same run, `mutation_steps: 0` and no crossover, so that candidates only train on,
- the seed blueprint trained from scratch, in one go, on as many tokens as the frontier's best and its ancestors.

Much of what looks like progress is accumulated training: read the first beside the other two, and mind that repeats of
one blueprint differ by about 0.03 nats per byte (0.04 bits) at this length.

    python benchmarks/first_light.py [CONFIG] [--generations N] [--seeds 0 1 2] [--out FOLDER]
"""

import argparse
import shutil
from pathlib import Path

from rich.console import Console
from rich.table import Table

import morphogen as mg
from morphogen.experiment import Experiment
from morphogen.store.frontier import Entry

ROOT = Path(__file__).resolve().parent.parent


def changed(experiment: Experiment, **evolution: object) -> Experiment:
    """The experiment with other settings of the search."""
    return Experiment.model_validate({**dict(experiment), "evolution": {**dict(experiment.evolution), **evolution}})


def best(experiment: Experiment, out: Path, seed: int) -> Entry:
    """The frontier's entry of lowest bits per byte after a whole run."""
    shutil.rmtree(out, ignore_errors=True)
    return min(mg.evolve(experiment, out=out, seed=seed).frontier.candidates, key=lambda entry: entry.metrics["bpb"])


def main() -> None:
    """Print the three numbers, seed by seed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", nargs="?", default=str(ROOT / "configs" / "live_smoke.yaml"))
    parser.add_argument("--generations", type=int)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "first_light")
    options = parser.parse_args()
    experiment = mg.load(options.config)
    if options.generations is not None:
        experiment = changed(experiment, generations=options.generations)
    control = changed(experiment, mutation_steps=0, crossover_prob=0.0)
    table = Table(title="held-out bits per byte, lower is better (training tokens of the lineage)")
    for column in ("seed", "evolved", "no-edit control", "seed blueprint from scratch", "best candidate"):
        table.add_column(column)
    for seed in options.seeds:
        winner = best(experiment, options.out / f"evolved-{seed}", seed)
        still = best(control, options.out / f"control-{seed}", seed)
        scratch = changed(experiment, generations=0, rung1_tokens=0, rung2_tokens=winner.tokens.lineage)
        scratch = scratch.model_copy(
            update={"train": scratch.train.model_copy(update={"max_tokens": max(1, winner.tokens.lineage)})}
        )
        alone = best(scratch, options.out / f"scratch-{seed}", seed)
        cells = [f"{e.metrics['bpb']:.4f} ({e.tokens.lineage:,})" for e in (winner, still, alone)]
        table.add_row(str(seed), *cells, winner.id)
    Console(width=150).print(table)


if __name__ == "__main__":
    main()
