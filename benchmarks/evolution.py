"""Evolution, random search, the no-edit control and one long training of the root on equal budgets, several seeds each;
and the noise floor.

All arms have the same space, the same root and the same tokens per candidate. Random search, whose candidates do not
train on, has as many more of them; the long training has the evolution's FLOPs. Hypervolumes of one seed share their
reference point, that of the root. Printed: mean hypervolume and best bits per byte by generation with t intervals over
seeds, the differences of evolution to each other arm paired by seed (arms of one seed share their root), and how far
repeats of one blueprint lie apart.

    python benchmarks/evolution.py [CONFIG] [--arms evolution random control long] [--seeds 5] [--generations N]
                                   [--steps N] [--repeats 5] [--minutes 60] [--out FOLDER] [--quick]

Goes on where it was stopped when it is started again with the same arguments.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.stats import ttest_1samp

import morphogen as mg
from morphogen.analysis.recorded import Recorded
from morphogen.analysis.statistics import t_interval
from morphogen.analysis.trials import Trial, Workshop, run_trials
from morphogen.candidate import Status
from morphogen.cli.options import with_options
from morphogen.data.prepare import prepare
from morphogen.experiment import Experiment
from morphogen.notices import Measured, Notice
from morphogen.report.tables import as_text
from morphogen.search.space import Design
from morphogen.selection.objectives import hypervolume
from morphogen.selection.survival import front
from morphogen.store.ledger import Generation, Ledger

ROOT = Path(__file__).resolve().parent.parent
LONG = "long"
ARMS = ("evolution", "random", "control", LONG)


class Curve(NamedTuple):
    """One finished run, by generation: hypervolume, best bits per byte so far, training tokens so far; and all its
    FLOPs. One long training has its end alone."""

    hypervolume: list[float]
    bpb: list[float]
    tokens: list[int]
    flops: float
    reference: dict[str, float]


class TimeOverError(KeyboardInterrupt):
    """The minutes are over; as an interrupt, it leaves a run that can be resumed."""


def arm(experiment: Experiment, name: str) -> Experiment:
    """The experiment with the search of one arm."""
    evolution = experiment.evolution
    changes: dict[str, Any] = {} if name == "evolution" else {"baseline": name}
    if name == "random":  # as many trainings as evolution has with those of its survivors
        changes["population"] = round((sum(evolution.sizes) - 1) / evolution.generations)
    plain = experiment.model_dump(mode="json")
    return Experiment.model_validate({**plain, "evolution": {**plain["evolution"], **changes}})


def run(experiment: Experiment, folder: Path, seed: int, deadline: float) -> Curve:
    """A run, or the rest of it. TimeOverError when the deadline has passed."""

    def watch(notice: Notice) -> None:
        if isinstance(notice, Measured):
            print(
                f"  {folder.name}: {notice.candidate.id} {notice.report.metrics.get('bpb', float('nan')):.4f}",
                flush=True,
            )
            if time.monotonic() > deadline:
                raise TimeOverError

    mg.evolve(experiment, out=folder, seed=seed, resume=True, observer=watch)
    with Ledger.open(folder, readonly=True) as ledger:
        closed = [event for event in ledger.events() if isinstance(event, Generation)]
    recorded = Recorded.read(folder)
    best, tokens = [], []
    for generation in range(len(closed)):
        reports = [one for id, one in recorded.reports.items() if recorded.candidates[id].generation <= generation]
        best.append(min(report.metrics["bpb"] for report in reports if report.status is Status.TRAINED))
        tokens.append(sum(report.tokens.own for report in reports))
    flops = sum(report.flops for report in recorded.reports.values())
    return Curve([event.hypervolume for event in closed], best, tokens, flops, closed[0].reference)


def long_training(experiment: Experiment, folder: Path, seed: int) -> Curve:
    """The root, trained from scratch on the FLOPs that evolution had for this seed."""
    other = Recorded.read(folder.parent / f"evolution-{seed}")
    first = other.reports[min(other.candidates, key=lambda id: other.candidates[id].index)]
    with Ledger.open(other.folder, readonly=True) as ledger:
        reference = next(event.reference for event in ledger.events() if isinstance(event, Generation))
    flops = sum(report.flops for report in other.reports.values())
    each = experiment.data.seq_len * experiment.data.batch_size
    tokens = round(flops / first.flops * first.tokens.own / each) * each
    folder.mkdir(parents=True, exist_ok=True)
    shop = Workshop(folder, experiment, prepare(experiment.data))
    (report,) = run_trials(shop, [Trial(folder.name, Design(experiment.model, experiment.train), seed, tokens)])
    print(f"  {folder.name}: {tokens:,} tokens {report.metrics['bpb']:.4f}", flush=True)
    evolution = experiment.evolution
    best = front([report], evolution.objectives, evolution.constraints, evolution.noise)
    volume = hypervolume(best, reference)
    return Curve([volume], [report.metrics["bpb"]], [tokens], report.flops, reference)


def main() -> None:
    """Run what is missing, then print the tables of what is finished."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?", default=str(ROOT / "configs" / "live_smoke.yaml"))
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--generations", type=int)
    parser.add_argument("--steps", type=int, help="training steps per candidate")
    parser.add_argument(
        "--repeats", type=int, default=5, help="trainings of the root for the noise floor; below 2 none"
    )
    parser.add_argument("--minutes", type=float, default=60.0, help="stops after the candidate during which they end")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "evolution")
    parser.add_argument("--quick", action="store_true", help="two seeds, few steps, in a folder of its own")
    options = parser.parse_args()
    if LONG in options.arms and "evolution" not in options.arms[: options.arms.index(LONG)]:
        parser.error(f"--arms: {LONG} has the FLOPs of evolution, which comes before it")
    torch.set_num_threads(1)
    if options.quick:
        options.seeds, options.generations, options.steps, options.repeats = 2, 1, 4, 2
        options.out = Path(tempfile.mkdtemp(prefix="evolution-"))
    deadline = time.monotonic() + 60.0 * options.minutes
    experiment = with_options(mg.load(options.config), generations=options.generations, steps=options.steps)
    curves: dict[str, list[Curve]] = {name: [] for name in options.arms}
    try:
        for seed in range(options.seeds):  # seed by seed, so that arms stay comparable whenever time is over
            for name in options.arms:
                folder = options.out / f"{name}-{seed}"
                if name == LONG:
                    curves[name].append(long_training(experiment, folder, seed))
                else:
                    curves[name].append(run(arm(experiment, name), folder, seed, deadline))
        if options.repeats > 1:
            noise_floor(experiment, options.out, options.repeats, deadline)
    except TimeOverError:
        print(f"{options.minutes:g} minutes are over; start again to go on", flush=True)
    report(curves)


def noise_floor(experiment: Experiment, out: Path, repeats: int, deadline: float) -> None:
    """The root, trained again and again on one candidate's tokens: other weights, another order of the text."""
    tokens = experiment.evolution.rung1_tokens + experiment.evolution.rung2_tokens
    shop = Workshop(out, experiment, prepare(experiment.data))
    values = []
    for seed in range(repeats):
        (one,) = run_trials(
            shop, [Trial(f"root, seed {seed}", Design(experiment.model, experiment.train), seed, tokens)]
        )
        values.append(one.metrics["bpb"])
        print(f"  root, seed {seed}: {values[-1]:.4f}", flush=True)
        if time.monotonic() > deadline:
            raise TimeOverError
    spread, span = np.std(values, ddof=1), max(values) - min(values)
    said = f"mean {np.mean(values):.4f}, standard deviation {spread:.4f}, range {span:.4f} bits per byte"
    print(f"\nnoise floor, the root trained {repeats} times on {tokens:,} tokens: {said}")


def report(curves: dict[str, list[Curve]]) -> None:
    """Curves by generation, then what evolution is ahead of every other arm, over the seeds that all have finished."""
    seeds = min(len(found) for found in curves.values())
    if seeds == 0:
        print("no seed is finished in all arms yet")
        return
    for of_seed in zip(*curves.values(), strict=False):
        assert len({tuple(curve.reference.items()) for curve in of_seed}) == 1, "arms of one seed share their root"
    rows: list[dict[str, Any]] = []
    for name, found in curves.items():
        for generation in range(len(found[0].bpb)):
            volume, bpb = (
                t_interval([values[generation] for values in series])
                for series in ([curve.hypervolume for curve in found[:seeds]], [curve.bpb for curve in found[:seeds]])
            )
            tokens = np.mean([curve.tokens[generation] for curve in found[:seeds]])
            row = {"arm": name, "generation": generation, "tokens": float(tokens)}
            row |= {"hypervolume": volume.value, "hv low": volume.low, "hv high": volume.high}
            rows.append(row | {"best bpb": bpb.value, "bpb low": bpb.low, "bpb high": bpb.high})
    print(f"\nmeans over {seeds} seeds with 95 % t intervals\n{as_text(rows)}")
    if "evolution" not in curves or len(curves) == 1:
        return
    rows = []
    for name in (name for name in curves if name != "evolution"):
        pairs = list(zip(curves["evolution"][:seeds], curves[name][:seeds], strict=True))
        row = {
            "evolution less": name,
            "FLOPs, share": float(np.mean([other.flops / one.flops for one, other in pairs])),
        }
        for told, values in (
            ("hypervolume", [one.hypervolume[-1] - other.hypervolume[-1] for one, other in pairs]),
            ("best bpb", [one.bpb[-1] - other.bpb[-1] for one, other in pairs]),
        ):
            found_here = t_interval(values)
            row |= {told: found_here.value, f"{told} low": found_here.low, f"{told} high": found_here.high}
            row[f"{told} p"] = float(ttest_1samp(values, 0.0).pvalue) if seeds > 1 else float("nan")
        rows.append(row)
    print(as_text(rows))


if __name__ == "__main__":
    main()
