"""Commands that take candidates out of a run: `seed`, `finetune`, `archive`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from morphogen.cli import flags
from morphogen.cli.app import app
from morphogen.paths import absolute_path, user_path

if TYPE_CHECKING:
    from morphogen.seeds import Kept


@app.command()
def seed(
    frontier: flags.Frontier,
    id: Annotated[str, typer.Option("--id", help="the candidate's")],
    out_config: Annotated[str, typer.Option(help="the experiment to write, in YAML")] = "configs/exported_seed.yaml",
    checkpoint_dir: Annotated[
        str | None, typer.Option(help="where the run's checkpoints lie now, if not where they were")
    ] = None,
    out_checkpoint: Annotated[
        str | None, typer.Option(help="where to put its weights; default: the experiment begins with fresh ones")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="overwrite what is there")] = False,
    allow_code: flags.AllowCode = False,
    as_json: flags.AsJson = False,
) -> None:
    """Make a candidate the root of an experiment of its own, which begins with its weights."""
    from morphogen.cli.console import aside, show_facts
    from morphogen.seeds import export_seed

    made = export_seed(
        user_path(frontier, "FRONTIER"),
        id,
        absolute_path(out_config, "--out-config"),
        checkpoint=None if out_checkpoint is None else absolute_path(out_checkpoint, "--out-checkpoint"),
        checkpoint_dir=None if checkpoint_dir is None else user_path(checkpoint_dir, "--checkpoint-dir"),
        force=force,
    )
    for note in made.notes:
        aside(f"note: {note}")
    checkpoint = None if made.checkpoint is None else str(made.checkpoint)
    show_facts({"experiment": str(made.config), "checkpoint": checkpoint}, as_json)


@app.command()
def finetune(
    frontier: flags.Frontier,
    steps: Annotated[int, typer.Option(help="of the optimizer, for each")],
    id: Annotated[list[str] | None, typer.Option("--id", help="a candidate of the run; repeatable")] = None,
    top_n: Annotated[
        int, typer.Option(help="without --id: so many, the best by --metric and those most unlike it and one another")
    ] = 3,
    metric: Annotated[str, typer.Option(help="what the best is best by")] = "bpb",
    output_dir: Annotated[str | None, typer.Option(help="default finetuned in the run's folder")] = None,
    device: flags.Device = "cpu",
    allow_code: flags.AllowCode = False,
    as_json: flags.AsJson = False,
    wide: flags.Wide = False,
) -> None:
    """Train candidates on for longer, from the weights that they have. Given again, it goes on."""
    from morphogen.cli.console import aside, show_measured
    from morphogen.cli.training import said
    from morphogen.finetuning import Wanted
    from morphogen.finetuning import finetune as finetuned

    out = None if output_dir is None else user_path(output_dir, "--output-dir")
    found = finetuned(
        user_path(frontier, "FRONTIER"),
        Wanted(steps, device, out),
        ids=id or (),
        top_n=top_n,
        metric=metric,
        said=aside,
        observer=lambda news: aside(f"  {text}") if (text := said(news)) else None,
    )
    show_measured(found, f"held-out bits per byte before and after {steps:,} more steps", as_json, wide)


@app.command()
def archive(
    run: flags.Frontier,
    out: Annotated[
        str | None, typer.Option(help="the folder to write; default configs/frontiers/<name of RUN>")
    ] = None,
    checkpoints: Annotated[str, typer.Option(help="drop: none, bf16: those measured, rounded, full: as they are")] = (
        "drop"
    ),
    delete_checkpoints: Annotated[
        bool, typer.Option("--delete-checkpoints", help="then delete the run's own; it can no longer be resumed")
    ] = False,
    allow_code: flags.AllowCode = False,
    as_json: flags.AsJson = False,
) -> None:
    """Put a frontier away: every candidate as an experiment in YAML with its figures, weights dropped or thinned."""
    from morphogen.analysis.recorded import run_of
    from morphogen.cli.console import show_facts
    from morphogen.errors import InputError, unknown
    from morphogen.seeds import archive as archived

    kinds: dict[str, Kept] = {"drop": "drop", "bf16": "bf16", "full": "full"}
    if checkpoints not in kinds:
        raise InputError(unknown("--checkpoints", checkpoints, kinds))
    path = user_path(run, "RUN")
    folder = Path("configs/frontiers") / run_of(path).resolve().name if out is None else user_path(out, "--out")
    made = archived(path, folder, checkpoints=kinds[checkpoints], free=delete_checkpoints)
    told = {"folder": str(made.folder), "files": len(made.files)}
    show_facts(told | ({"bytes freed": made.bytes_freed} if delete_checkpoints else {}), as_json)
