"""The command `run`: evolves an experiment. `scripts/run_live.py` is the same command as a program of its own."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from morphogen.cli import flags
from morphogen.cli.app import app, takes
from morphogen.cli.launch import carry_out, placed, read_reachable, rehearse
from morphogen.paths import user_path

if TYPE_CHECKING:
    from morphogen.execution import Execution
    from morphogen.experiment import Experiment
    from morphogen.keeping import Keep


def _weight(what: str) -> object:
    """A --score-weight-* option."""
    return typer.Option(help=f"weight of {what} in the parent selection; which is weighted, unless another is named")


def _given_path(text: str | None, flag: str) -> Path | None:
    """The path that a flag names; None where it is left out."""
    return None if text is None else user_path(text, flag)


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What `morphogen run` can be told, in the order of its help."""

    config: flags.Config
    out: Annotated[
        str | None,
        typer.Option(
            help="the run's folder; default runs/<name of FILE>; or NAME.json, for the frontier and the folder NAME"
        ),
    ] = None
    generations: flags.Generations = None
    seed: flags.Seed = None
    steps: flags.Steps = None
    eval_batches: flags.EvalBatches = None
    device: flags.Device = "cpu"
    resume: flags.Resume = False
    retry_failed: flags.RetryFailed = False
    retrain_lost: flags.RetrainLost = False
    parent_selection: flags.ParentSelection = None
    mutation_weight: flags.MutationWeight = None
    mutation_steps: flags.MutationSteps = None
    score_weight_ppl: Annotated[float | None, _weight("low perplexity")] = None
    score_weight_throughput: Annotated[float | None, _weight("throughput")] = None
    score_weight_long_recall: Annotated[float | None, _weight("long recall")] = None
    score_weight_ram: Annotated[float | None, _weight("low peak memory")] = None
    score_weight_layers: Annotated[float | None, _weight("number of blocks")] = None
    score_weight_moe: Annotated[float | None, _weight("number of MoE blocks")] = None
    score_weight_novelty: Annotated[float | None, _weight("structural novelty")] = None
    score_weight_instability: Annotated[float | None, _weight("smooth training")] = None
    dry_run: flags.DryRun = False
    allow_code: flags.AllowCode = False
    as_json: flags.AsJson = False
    wide: flags.Wide = False
    checkpoint_dir: Annotated[str | None, typer.Option(help="where checkpoints lie; default in the run's folder")] = (
        None
    )
    lineage_out: Annotated[str | None, typer.Option(help="where to put a copy of lineage.json")] = None
    cleanup_old_checkpoints: flags.CleanUp = False
    prune_checkpoints_to_frontier: flags.Prune = False
    tensorboard: flags.TensorBoard = False
    disk_budget: Annotated[str | None, typer.Option(help="checkpoints' size at most, such as 20GB")] = None
    executor: Annotated[str, typer.Option(help="local, or ray for a cluster")] = "local"
    workers: flags.Workers = None
    timeout: Annotated[float | None, typer.Option(help="seconds that a candidate may take")] = None
    memory_limit: Annotated[str | None, typer.Option(help="memory of a candidate's process, such as 4GB")] = None
    address: Annotated[str | None, typer.Option(help="ray: of a running cluster; default: one started here")] = None
    gpus_per_candidate: Annotated[str, typer.Option(help="ray: such as 0.25; auto: by predicted memory")] = "0"
    shared: Annotated[str | None, typer.Option(help="ray: path or fsspec URL that checkpoints travel through")] = None
    checkpoint_tokens: Annotated[
        int | None, typer.Option(help="tokens between checkpoints in the middle of a candidate; default none")
    ] = None

    def experiment(self) -> "Experiment":
        """The experiment in the file, with the options that change it."""
        read = read_reachable(self.config)
        from morphogen.cli.options import named_weights, with_options

        prefix = "score_weight_"
        names = [field.name for field in fields(self) if field.name.startswith(prefix)]
        scores = {name.removeprefix(prefix): vars(self)[name] for name in names}
        return with_options(
            read,
            generations=self.generations,
            steps=self.steps,
            eval_batches=self.eval_batches,
            parent_selection=self.parent_selection,
            mutation_steps=self.mutation_steps,
            mutation_weights=named_weights("--mutation-weight", self.mutation_weight or ()),
            score_weights={name: value for name, value in scores.items() if value is not None},
        )

    def places(self) -> tuple[Path, Path | None]:
        """The run's folder, and where to put a copy of its frontier."""
        out = _given_path(self.out, "--out") or Path("runs") / Path(self.config).stem
        return (out.with_suffix(""), out) if out.suffix == ".json" and not out.is_dir() else (out, None)

    def keep(self) -> "Keep":
        """What becomes of the run's files."""
        from morphogen.cli.options import size_bytes
        from morphogen.keeping import Keep

        return Keep(
            checkpoint_dir=user_path(self.checkpoint_dir, "--checkpoint-dir")
            if self.checkpoint_dir is not None
            else None,
            lineage_out=_given_path(self.lineage_out, "--lineage-out"),
            frontier_out=self.places()[1],
            cleanup=self.cleanup_old_checkpoints,
            prune=self.prune_checkpoints_to_frontier,
            disk_budget=None if self.disk_budget is None else size_bytes("--disk-budget", self.disk_budget),
        )

    def execution(self) -> "Execution":
        """By what, and within which limits, candidates are trained."""
        from morphogen.cli.options import execution_of, share_of_gpu

        return execution_of(
            executor=self.executor,
            workers=self.workers,
            timeout=self.timeout,
            memory_limit=self.memory_limit,
            address=self.address,
            gpus_per_candidate=share_of_gpu(self.gpus_per_candidate),
            shared=self.shared,
            checkpoint_tokens=self.checkpoint_tokens,
        )


@app.command()
@takes(RunOptions)
def run(options: RunOptions) -> None:
    """Evolve the experiment in FILE."""
    experiment, (folder, _) = options.experiment(), options.places()
    keep, execution = options.keep(), options.execution()
    with placed(options.config, experiment):
        if options.dry_run:
            rehearse(
                experiment,
                folder,
                device=options.device,
                resume=options.resume,
                elsewhere=execution.elsewhere,
                as_json=options.as_json,
            )
            return
        carry_out(
            experiment,
            folder,
            seed=options.seed,
            device=options.device,
            resume=options.resume,
            keep=keep,
            execution=execution,
            as_json=options.as_json,
            retry_failed=options.retry_failed,
            retrain_lost=options.retrain_lost,
            wide=options.wide,
            tensorboard=options.tensorboard,
        )
