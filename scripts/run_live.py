"""Evolve an experiment: `python scripts/run_live.py configs/live_smoke.yaml --generations 3 --steps 40`.

The same run as `morphogen run`, with more to set. See `--help`.
"""

from pathlib import Path
from typing import Annotated

import typer

from morphogen.cli import flags
from morphogen.cli.launch import carry_out, execute, placed, read_experiment
from morphogen.paths import user_path

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


def weight(what: str) -> object:
    """A --score-weight-* option."""
    return typer.Option(help=f"draw parents by {what}, so much more likely; chooses --parent-selection weighted")


@app.command()
def run_live(
    config: flags.Config,
    generations: flags.Generations = None,
    steps: flags.Steps = None,
    eval_batches: flags.EvalBatches = None,
    device: flags.Device = "cpu",
    checkpoint_dir: Annotated[
        Path | None, typer.Option(help="where checkpoints lie; default in the run's folder")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="the run's folder, or the frontier's .json beside a folder of that name")
    ] = None,
    seed: flags.Seed = None,
    lineage_out: Annotated[Path | None, typer.Option(help="where to put a copy of lineage.json")] = None,
    resume: flags.Resume = False,
    retry_failed: flags.RetryFailed = False,
    retrain_lost: flags.RetrainLost = False,
    parent_selection: flags.ParentSelection = None,
    mutation_weight: flags.MutationWeight = None,
    mutation_steps: flags.MutationSteps = None,
    cleanup_old_checkpoints: flags.CleanUp = False,
    prune_checkpoints_to_frontier: flags.Prune = False,
    score_weight_ppl: Annotated[float | None, weight("low perplexity")] = None,
    score_weight_throughput: Annotated[float | None, weight("throughput")] = None,
    score_weight_long_recall: Annotated[float | None, weight("long recall")] = None,
    score_weight_ram: Annotated[float | None, weight("low peak memory")] = None,
    score_weight_layers: Annotated[float | None, weight("number of blocks")] = None,
    score_weight_moe: Annotated[float | None, weight("number of MoE blocks")] = None,
    score_weight_novelty: Annotated[float | None, weight("structural novelty")] = None,
    score_weight_instability: Annotated[float | None, weight("smooth training")] = None,
    workers: flags.Workers = None,
    allow_code: flags.AllowCode = False,
    as_json: flags.AsJson = False,
) -> None:
    """Evolve the experiment in FILE."""
    from morphogen.cli.options import execution_of, named_weights, with_options
    from morphogen.run import Keep

    scores = {
        "ppl": score_weight_ppl,
        "throughput": score_weight_throughput,
        "long_recall": score_weight_long_recall,
        "ram": score_weight_ram,
        "layers": score_weight_layers,
        "moe": score_weight_moe,
        "novelty": score_weight_novelty,
        "instability": score_weight_instability,
    }
    experiment = with_options(
        read_experiment(config),
        generations=generations,
        steps=steps,
        eval_batches=eval_batches,
        parent_selection=parent_selection,
        mutation_steps=mutation_steps,
        mutation_weights=named_weights("--mutation-weight", mutation_weight or ()),
        score_weights={name: value for name, value in scores.items() if value is not None},
    )
    out = user_path(out, "--out") if out else Path("runs") / Path(config).stem
    keep = Keep(
        checkpoint_dir=user_path(checkpoint_dir, "--checkpoint-dir") if checkpoint_dir else None,
        lineage_out=user_path(lineage_out, "--lineage-out") if lineage_out else None,
        frontier_out=out if out.suffix == ".json" else None,
        cleanup=cleanup_old_checkpoints,
        prune=prune_checkpoints_to_frontier,
    )
    folder = out.with_suffix("") if out.suffix == ".json" else out
    execution = execution_of(workers=workers)
    with placed(config, experiment):
        carry_out(
            experiment,
            folder,
            seed=seed,
            device=device,
            resume=resume,
            keep=keep,
            execution=execution,
            as_json=as_json,
            retry_failed=retry_failed,
            retrain_lost=retrain_lost,
        )


if __name__ == "__main__":
    execute(app, "run_live.py")
