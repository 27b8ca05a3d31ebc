"""The command `run`: evolves an experiment."""

from pathlib import Path
from typing import Annotated

import typer

from morphogen.cli import flags
from morphogen.cli.app import app
from morphogen.cli.launch import carry_out, placed, read_experiment, rehearse
from morphogen.paths import user_path


@app.command()
def run(
    config: flags.Config,
    out: Annotated[str | None, typer.Option(help="the run's folder; default runs/<name of FILE>")] = None,
    generations: flags.Generations = None,
    seed: flags.Seed = None,
    steps: flags.Steps = None,
    eval_batches: flags.EvalBatches = None,
    device: flags.Device = "cpu",
    resume: flags.Resume = False,
    retry_failed: flags.RetryFailed = False,
    retrain_lost: flags.RetrainLost = False,
    parent_selection: flags.ParentSelection = None,
    mutation_weight: flags.MutationWeight = None,
    mutation_steps: flags.MutationSteps = None,
    dry_run: flags.DryRun = False,
    allow_code: flags.AllowCode = False,
    as_json: flags.AsJson = False,
    wide: flags.Wide = False,
    cleanup_old_checkpoints: flags.CleanUp = False,
    prune_checkpoints_to_frontier: flags.Prune = False,
    disk_budget: Annotated[str | None, typer.Option(help="checkpoints' size at most, such as 20GB")] = None,
    executor: Annotated[str, typer.Option(help="local, or ray for a cluster")] = "local",
    workers: flags.Workers = None,
    timeout: Annotated[float | None, typer.Option(help="seconds that a candidate may take")] = None,
    memory_limit: Annotated[str | None, typer.Option(help="memory of a candidate's process, such as 4GB")] = None,
    address: Annotated[str | None, typer.Option(help="ray: of a running cluster; default: one started here")] = None,
    gpus_per_candidate: Annotated[float, typer.Option(help="ray: such as 0.25")] = 0.0,
    shared: Annotated[str | None, typer.Option(help="ray: path or fsspec URL that checkpoints travel through")] = None,
) -> None:
    """Evolve the experiment in FILE."""
    from morphogen.cli.options import execution_of, named_weights, size_bytes, with_options
    from morphogen.run import Keep

    experiment = with_options(
        read_experiment(config),
        generations=generations,
        steps=steps,
        eval_batches=eval_batches,
        parent_selection=parent_selection,
        mutation_steps=mutation_steps,
        mutation_weights=named_weights("--mutation-weight", mutation_weight or ()),
    )
    folder = user_path(out, "--out") if out else Path("runs") / Path(config).stem
    keep = Keep(
        cleanup=cleanup_old_checkpoints,
        prune=prune_checkpoints_to_frontier,
        disk_budget=None if disk_budget is None else size_bytes("--disk-budget", disk_budget),
    )
    execution = execution_of(
        executor=executor,
        workers=workers,
        timeout=timeout,
        memory_limit=memory_limit,
        address=address,
        gpus_per_candidate=gpus_per_candidate,
        shared=shared,
    )
    with placed(config, experiment):
        if dry_run:
            rehearse(experiment, folder, device=device, resume=resume, as_json=as_json)
        else:
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
                wide=wide,
            )
