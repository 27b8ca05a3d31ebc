"""By what should selection rank: inherited figures, those of a twin from scratch, or both? (`evolution.rank_by`)

Blueprints of nearly equal FLOPs a token (± 5 %), made by random edits of one root: the more edits, the less alike. The
root is trained; each blueprint inherits its weights and is trained on, and so is its twin from fresh weights, by the
very job that evolution gives. The truth is the same blueprints trained from scratch on `--times 4` times the tokens,
with several seeds. Kendall's τ of each ranking with the truth, with a bootstrap interval over blueprints and what it
costs in FLOPs of the child alone; beside that of twins for lossy edits alone (a child by exact edits then stands by its
distance from the root that trained on as long, another by its twin's from the root's twin, or by the mean of that and
of its own), of the number of parameters, of the loss right after the splice, and of one scratch seed for another, above
which no predictor can be expected to come.

    python benchmarks/rank_by.py [CONFIG] [--blueprints 24] [--edits 1] [--parent-tokens N] [--tokens N] [--times 4]
                                 [--seeds 1] [--minutes 60] [--out FOLDER] [--quick]

Goes on where it was stopped when it is started again with the same arguments.
"""

import argparse
import math
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

import morphogen as mg
from morphogen.analysis.statistics import agreements
from morphogen.analysis.trials import UNGUARDED, Trial, Workshop, run_trials
from morphogen.blueprint.diff import digest
from morphogen.blueprint.schema import Blueprint
from morphogen.candidate import Ancestor, Candidate, Job, ParentRef, Report, Stage, Status, moments_path, stream
from morphogen.cost import costs
from morphogen.data.prepare import prepare
from morphogen.experiment import Experiment
from morphogen.report.tables import as_text
from morphogen.search.space import Design
from morphogen.store.files import canonical_json, write_atomic
from morphogen.training.trial import run_surrogate
from morphogen.variation.operator import Proposal, mutate

ROOT = Path(__file__).resolve().parent.parent
TOLERANCE = 0.05


class Row(NamedTuple):
    """What was found of one blueprint: whether its edits are exact, its job's report, its parameters, and the truth by
    seed."""

    exact: bool
    child: Report
    params: float
    scratch: list[float]


def equals(experiment: Experiment, count: int, edits: int, seed: int) -> list[Proposal]:
    """`count` different blueprints within ± `TOLERANCE` of the root's FLOPs, by 1 to `edits` random edits each."""
    flops = costs(experiment.model, experiment.data.seq_len)["flops_per_token"]
    found: dict[str, Proposal] = {}
    for draw in range(200 * count):
        made = mutate(experiment.model, stream(seed, draw, "ranking"), edits, {})
        if abs(costs(made.child, experiment.data.seq_len)["flops_per_token"] / flops - 1.0) <= TOLERANCE:
            found.setdefault(digest(made.child), made)
        if len(found) == count:
            return list(found.values())
    raise SystemExit(f"only {len(found)} of {count} blueprints within {TOLERANCE:.0%} of the root's FLOPs were found")


def trained(
    shop: Workshop,
    name: str,
    blueprint: Blueprint,
    tokens: int,
    parent: ParentRef | None = None,
    proposal: Proposal | None = None,
    ancestor: Ancestor | None = None,
) -> Report:
    """A training that keeps its weights in `shop.folder`, from a parent's where there is one, and then with a twin;
    done once."""
    place = shop.folder / f"{name}-{digest(blueprint)[:8]}-{tokens}.json"
    if place.exists():
        return Report.model_validate_json(place.read_bytes())
    plain = shop.experiment.model_dump(mode="json")
    plain["train"] |= {**UNGUARDED, "max_tokens": tokens}
    plain["evolution"] |= {"weight_inheritance": "parent", "rank_by": "scratch"}
    candidate = Candidate(
        id=place.stem,
        index=int(parent is not None),
        generation=int(parent is not None),
        blueprint=blueprint.to_json(),
        parents=(parent.id,) if parent else (),
        edits=proposal.edits if proposal else (),
    )
    job = Job(
        experiment=plain,
        candidate=candidate,
        parents=(parent,) if parent else (),
        ancestors=(ancestor,) if ancestor else (),
        first_token=ancestor.tokens if ancestor else 0,
        stages=(Stage(rung=2, budget_tokens=tokens),),
        seed=shop.experiment.train.seed,
        run_dir=str(shop.folder),
        device="cpu",
        with_twin=parent is not None,
    )
    report = run_surrogate(job, prepared=shop.prepared)
    if parent is not None and report.checkpoint is not None:
        for path in (shop.folder / report.checkpoint, moments_path(shop.folder / report.checkpoint)):
            path.unlink(missing_ok=True)
    write_atomic(place, canonical_json(report.model_dump(mode="json")).encode())
    return report


def main() -> None:
    """Train what is missing, then print the rankings' agreement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?", default=str(ROOT / "configs" / "live_smoke.yaml"))
    parser.add_argument("--blueprints", type=int, default=24)
    parser.add_argument("--edits", type=int, default=1, help="at most, between the root and a blueprint")
    parser.add_argument("--parent-tokens", type=int, default=98_304)
    parser.add_argument("--tokens", type=int, default=98_304, help="of a child that inherits, and of its twin")
    parser.add_argument("--times", type=int, default=4, help="the truth is after so many times these tokens")
    parser.add_argument("--seeds", type=int, default=1, help="trainings for the truth of each blueprint")
    parser.add_argument("--minutes", type=float, default=60.0, help="no training is begun after so many")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "rank_by")
    parser.add_argument("--quick", action="store_true", help="4 blueprints and a few steps, in a folder of its own")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.quick:
        options.blueprints, options.parent_tokens, options.tokens = 4, 8192, 8192
        options.out = Path(tempfile.mkdtemp(prefix="rank-by-"))
    deadline = time.monotonic() + 60.0 * options.minutes
    experiment = mg.load(options.config)
    options.out.mkdir(parents=True, exist_ok=True)
    shop = Workshop(options.out, experiment, prepare(experiment.data))
    root = trained(shop, "root", experiment.model, options.parent_tokens)
    assert root.checkpoint is not None, root.reason
    parent = ParentRef(id=root.id, blueprint=experiment.model.to_json(), checkpoint=root.checkpoint)
    behind = Ancestor(first_token=0, steps=root.steps, tokens=root.tokens.own)
    control = trained(shop, "control", experiment.model, options.tokens, parent, ancestor=behind)
    rows = []
    for i, made in enumerate(equals(experiment, options.blueprints, options.edits, experiment.train.seed)):
        if time.monotonic() > deadline:
            print(f"{options.minutes:g} minutes are over after {i} blueprints; start again to go on", flush=True)
            break
        child = trained(shop, "child", made.child, options.tokens, parent, made, behind)
        design, length = Design(made.child, experiment.train), options.times * options.tokens
        trials = [Trial(f"truth {i}", design, 1000 + seed, length) for seed in range(options.seeds)]
        reports = [child, *run_trials(shop, trials)]
        if lost := [report.reason for report in reports if report.status is not Status.TRAINED]:
            print(f"[{i + 1}/{options.blueprints}] left out: {lost[0]}", flush=True)
            continue
        params = costs(made.child, experiment.data.seq_len)["params"]
        exact = all(edit.preserves for edit in made.edits)
        rows.append(Row(exact, child, params, [report.metrics["bpb"] for report in reports[1:]]))
        twin, truth = child.value("bpb"), ", ".join(f"{value:.4f}" for value in rows[-1].scratch)
        named = "+".join(edit.operator for edit in made.edits)
        said = f"{named}: inherited {child.metrics['bpb']:.4f}, twin {twin:.4f}, {options.times} x {truth}"
        print(f"[{i + 1}/{options.blueprints}] {said}", flush=True)
    if len(rows) > 2:
        report_agreement(rows, control, options.seeds, experiment.train.seed)


def report_agreement(rows: list[Row], control: Report, seeds: int, seed: int) -> None:
    """The table: each predictor of the from-scratch mean, and one seed of another."""
    mean = [float(np.mean(row.scratch)) for row in rows]
    own = [row.child.metrics["bpb"] for row in rows]
    twins = [value for row in rows if (value := row.child.value("bpb")) is not None]
    behind = [one - control.metrics["bpb"] for one in own]
    of_twins = [twin - (control.value("bpb") or math.nan) for twin in twins]
    lossy = [(row.exact, one, twin) for row, one, twin in zip(rows, behind, of_twins, strict=True)]
    cost_lossy = 2.0 - sum(row.exact for row in rows) / len(rows)
    predictors = {
        "rank_by: inherited": (own, mean, 1.0),
        "rank_by: scratch": (twins, mean, 2.0),
        "rank_by: both": ([0.5 * (one + other) for one, other in zip(own, twins, strict=True)], mean, 2.0),
        "twins of lossy edits: their mean with inherited": (
            [one if exact else 0.5 * (one + twin) for exact, one, twin in lossy],
            mean,
            cost_lossy,
        ),
        "twins of lossy edits alone": ([one if exact else twin for exact, one, twin in lossy], mean, cost_lossy),
        "right after the splice": ([row.child.metrics["bpb_inherited"] for row in rows], mean, 0.0),
        "parameters": ([-row.params for row in rows], mean, 0.0),
    }
    if seeds > 1:
        first, second = ([row.scratch[k] for row in rows] for k in (0, 1))
        predictors["truth, seed 0 for seed 1"] = (first, second, float("nan"))
    table = []
    for name, (predicted, true, cost) in predictors.items():
        found = agreements(predicted, true, stream(seed, 0, "ranking/bootstrap"))
        row = {"predictor": name, "blueprints": len(rows), "cost": cost}
        for what, (value, low, high) in (("tau", found.tau), ("accuracy", found.accuracy), ("regret", found.regret)):
            row |= {what: value, f"{what} low": low, f"{what} high": high}
        table.append(row)
    print(f"\nagainst training from scratch (mean of {seeds} seeds), bits per byte; 95 % bootstrap intervals;")
    print("cost in trainings of a child")
    print(as_text(table))
    print(f"spread of the from-scratch means: {np.std(mean, ddof=1):.4f} bits per byte (standard deviation)")
    gap = np.subtract(own, mean), np.subtract(twins, mean)
    print(
        f"spread of inherited less truth {np.std(gap[0], ddof=1):.4f}, of twin less truth {np.std(gap[1], ddof=1):.4f}"
    )


if __name__ == "__main__":
    main()
