"""Evolve an experiment: `python scripts/run_live.py configs/live_smoke.yaml --generations 3 --steps 40`.

The same run as `morphogen run`, with more to set. See `--help`.
"""

from pathlib import Path
from typing import Annotated

import typer

from morphogen.cli import Config, carry_out, execute, read_experiment

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


def weight(what: str) -> object:
    """A --score-weight-* option."""
    return typer.Option(help=f"draw parents by {what}, so much more likely; chooses --parent-selection weighted")


@app.command()
def run_live(
    config: Config,
    generations: Annotated[int | None, typer.Option(help="generations after the root's")] = None,
    steps: Annotated[int | None, typer.Option(help="training steps per candidate, over both rungs")] = None,
    eval_batches: Annotated[int | None, typer.Option(help="held-out batches per shard")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:N, mps, or auto")] = "cpu",
    checkpoint_dir: Annotated[
        Path | None, typer.Option(help="where checkpoints lie; default in the run's folder")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="the run's folder, or the frontier's .json beside a folder of that name")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="of the run; default train.seed")] = None,
    lineage_out: Annotated[Path | None, typer.Option(help="where to put a copy of lineage.json")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on with the run; start it if there is none")] = False,
    parent_selection: Annotated[str | None, typer.Option(help="such as weighted, lexicase or tournament")] = None,
    mutation_weight: Annotated[list[str] | None, typer.Option(help="NAME=W, repeatable; 0 switches one off")] = None,
    mutation_steps: Annotated[
        int | None, typer.Option(help="edits per child at most; 0 is the no-edit control")
    ] = None,
    cleanup_old_checkpoints: Annotated[
        bool, typer.Option("--cleanup-old-checkpoints", help="drop what neither survivors nor frontier need")
    ] = False,
    prune_checkpoints_to_frontier: Annotated[
        bool, typer.Option("--prune-checkpoints-to-frontier", help="at the end, keep only the frontier's")
    ] = False,
    score_weight_ppl: Annotated[float | None, weight("low perplexity")] = None,
    score_weight_throughput: Annotated[float | None, weight("throughput")] = None,
    score_weight_long_recall: Annotated[float | None, weight("long recall")] = None,
    score_weight_ram: Annotated[float | None, weight("low peak memory")] = None,
    score_weight_layers: Annotated[float | None, weight("number of blocks")] = None,
    score_weight_moe: Annotated[float | None, weight("number of MoE blocks")] = None,
    score_weight_novelty: Annotated[float | None, weight("structural novelty")] = None,
    score_weight_instability: Annotated[float | None, weight("smooth training")] = None,
    workers: Annotated[int | None, typer.Option(help="candidates at a time, each in a process of its own")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="machine-readable lines")] = False,
) -> None:
    """Evolve the experiment in FILE."""
    from morphogen.evolve import Keep
    from morphogen.options import execution_of, named_weights, with_options

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
    out = out or Path("runs") / Path(config).stem
    keep = Keep(
        checkpoint_dir=checkpoint_dir,
        lineage_out=lineage_out,
        frontier_out=out if out.suffix == ".json" else None,
        cleanup=cleanup_old_checkpoints,
        prune=prune_checkpoints_to_frontier,
    )
    folder = out.with_suffix("") if out.suffix == ".json" else out
    carry_out(
        experiment,
        folder,
        seed=seed,
        device=device,
        resume=resume,
        keep=keep,
        execution=execution_of(workers=workers),
        as_json=as_json,
    )


if __name__ == "__main__":
    execute(app, "run_live.py")
