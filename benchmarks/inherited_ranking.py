"""Does training by inheritance rank architectures as training from scratch does?

Blueprints of nearly equal size (± 5 %), made by random edits of one root: the more edits, the less alike. The root is
trained; each blueprint inherits its weights and is trained on. The same blueprints are trained from scratch on the
tokens of both together, with several seeds. Kendall's τ between the two rankings, with a bootstrap interval over
blueprints, beside that of the number of parameters, of the loss right after the splice, and of one scratch seed for
another, above which no predictor can be expected to come.

    python benchmarks/inherited_ranking.py [CONFIG] [--blueprints 24] [--edits 3] [--parent-tokens N] [--tokens N]
                                           [--seeds 2] [--minutes 60] [--out FOLDER] [--quick]

Goes on where it was stopped when it is started again with the same arguments.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

import morphogen as mg
from morphogen.analysis.statistics import agreements
from morphogen.analysis.trials import UNGUARDED, Trial, Workshop, run_trials
from morphogen.blueprint.diff import digest
from morphogen.blueprint.schema import Blueprint
from morphogen.candidate import Candidate, Edit, Job, ParentRef, Report, Stage, Status, stream
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


def equals(experiment: Experiment, count: int, edits: int, seed: int) -> list[Proposal]:
    """`count` different blueprints within ± `TOLERANCE` of the root's size, by 1 to `edits` random edits each."""
    size = costs(experiment.model, experiment.data.seq_len)["params"]
    found: dict[str, Proposal] = {}
    for draw in range(200 * count):
        made = mutate(experiment.model, stream(seed, draw, "ranking"), edits, {})
        if abs(costs(made.child, experiment.data.seq_len)["params"] / size - 1.0) <= TOLERANCE:
            found.setdefault(digest(made.child), made)
        if len(found) == count:
            return list(found.values())
    raise SystemExit(f"only {len(found)} of {count} blueprints within {TOLERANCE:.0%} of the root's size were found")


def trained(
    shop: Workshop,
    name: str,
    blueprint: Blueprint,
    tokens: int,
    parent: ParentRef | None = None,
    edits: tuple[Edit, ...] = (),
) -> Report:
    """A training that keeps its weights in `shop.folder`, from a parent's where there is one; done once."""
    place = shop.folder / f"{name}-{digest(blueprint)[:8]}-{tokens}.json"
    if place.exists():
        return Report.model_validate_json(place.read_bytes())
    plain = shop.experiment.model_dump(mode="json")
    plain["train"] |= {**UNGUARDED, "max_tokens": tokens}
    plain["evolution"] |= {"weight_inheritance": "parent", "inherit_optimizer": False}
    report = run_surrogate(
        Job(
            experiment=plain,
            candidate=Candidate(
                id=place.stem,
                index=int(parent is not None),
                generation=0,
                blueprint=blueprint.to_json(),
                edits=edits,
            ),
            parents=(parent,) if parent else (),
            ancestors=(),
            stages=(Stage(rung=2, budget_tokens=tokens),),
            seed=shop.experiment.train.seed,
            run_dir=str(shop.folder),
            device="cpu",
        ),
        prepared=shop.prepared,
    )
    if parent is not None and report.checkpoint is not None:
        (shop.folder / report.checkpoint).unlink()
    write_atomic(place, canonical_json(report.model_dump(mode="json")).encode())
    return report


def main() -> None:
    """Train what is missing, then print the rankings' agreement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?", default=str(ROOT / "configs" / "live_smoke.yaml"))
    parser.add_argument("--blueprints", type=int, default=24)
    parser.add_argument("--edits", type=int, default=3, help="at most, between the root and a blueprint")
    parser.add_argument("--parent-tokens", type=int, default=196_608)
    parser.add_argument("--tokens", type=int, default=98_304, help="of a child that inherits")
    parser.add_argument("--seeds", type=int, default=2, help="trainings from scratch of each blueprint")
    parser.add_argument("--minutes", type=float, default=60.0, help="no training is begun after so many")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "inherited_ranking")
    parser.add_argument("--quick", action="store_true", help="4 blueprints and a few steps, in a folder of its own")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.quick:
        options.blueprints, options.parent_tokens, options.tokens = 4, 8192, 8192
        options.out = Path(tempfile.mkdtemp(prefix="inherited-ranking-"))
    deadline = time.monotonic() + 60.0 * options.minutes
    experiment = mg.load(options.config)
    options.out.mkdir(parents=True, exist_ok=True)
    shop = Workshop(options.out, experiment, prepare(experiment.data))
    root = trained(shop, "root", experiment.model, options.parent_tokens)
    assert root.checkpoint is not None, root.reason
    parent = ParentRef(id=root.id, blueprint=experiment.model.to_json(), checkpoint=root.checkpoint)
    both = options.parent_tokens + options.tokens
    rows = []
    for i, made in enumerate(equals(experiment, options.blueprints, options.edits, experiment.train.seed)):
        if time.monotonic() > deadline:
            print(f"{options.minutes:g} minutes are over after {i} blueprints; start again to go on", flush=True)
            break
        blueprint = made.child
        child = trained(shop, "child", blueprint, options.tokens, parent, made.edits)
        trials = [
            Trial(f"scratch {i}", Design(blueprint, experiment.train), seed, both) for seed in range(options.seeds)
        ]
        reports = [child, *run_trials(shop, trials)]
        if lost := [report.reason for report in reports if report.status is not Status.TRAINED]:
            print(f"[{i + 1}/{options.blueprints}] left out: {lost[0]}", flush=True)
            continue
        scratch = [report.metrics["bpb"] for report in reports[1:]]
        spliced, params = child.metrics["bpb_inherited"], costs(blueprint, experiment.data.seq_len)["params"]
        rows.append((child.metrics["bpb"], spliced, -params, scratch))
        said = f"inherited {child.metrics['bpb']:.4f}, scratch {', '.join(f'{value:.4f}' for value in scratch)}"
        print(f"[{i + 1}/{options.blueprints}] {params:,.0f} parameters: {said}", flush=True)
    if len(rows) > 2:
        report_agreement(rows, options.seeds, experiment.train.seed)


def report_agreement(rows: list[tuple[float, float, float, list[float]]], seeds: int, seed: int) -> None:
    """The table: each predictor of the from-scratch mean, and one seed of another."""
    mean = [float(np.mean(scratch)) for *_, scratch in rows]
    predictors = {
        "inherited": ([row[0] for row in rows], mean),
        "right after the splice": ([row[1] for row in rows], mean),
        "parameters": ([row[2] for row in rows], mean),
    }
    if seeds > 1:
        first, second = ([scratch[k] for *_, scratch in rows] for k in (0, 1))
        predictors["scratch, seed 0 for seed 1"] = (first, second)
    table = []
    for name, (predicted, true) in predictors.items():
        found = agreements(predicted, true, stream(seed, 0, "ranking/bootstrap"))
        row = {"predictor": name, "blueprints": len(rows)}
        for what, (value, low, high) in (("tau", found.tau), ("accuracy", found.accuracy), ("regret", found.regret)):
            row |= {what: value, f"{what} low": low, f"{what} high": high}
        table.append(row)
    print(f"\nagainst training from scratch (mean of {seeds} seeds), bits per byte; 95 % bootstrap intervals")
    print(as_text(table))
    print(f"spread of the from-scratch means: {np.std(mean, ddof=1):.4f} bits per byte (standard deviation)")


if __name__ == "__main__":
    main()
