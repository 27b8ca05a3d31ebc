"""Commands for what comes after a run: `seed`, `finetune`, `archive`, `motifs`, `scaling`, `scale`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from morphogen.cli import flags
from morphogen.cli.app import app
from morphogen.errors import InputError, unknown
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
    from morphogen.cli.facts import aside, show_facts
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
    from morphogen.cli.console import show_measured
    from morphogen.cli.facts import aside
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
    from morphogen.cli.facts import show_facts
    from morphogen.seeds import archive as archived

    kinds: dict[str, Kept] = {"drop": "drop", "bf16": "bf16", "full": "full"}
    if checkpoints not in kinds:
        raise InputError(unknown("--checkpoints", checkpoints, kinds))
    path = user_path(run, "RUN")
    folder = Path("configs/frontiers") / run_of(path).resolve().name if out is None else user_path(out, "--out")
    made = archived(path, folder, checkpoints=kinds[checkpoints], free=delete_checkpoints)
    told = {"folder": str(made.folder), "files": len(made.files)}
    show_facts(told | ({"bytes freed": made.bytes_freed} if delete_checkpoints else {}), as_json)


@app.command()
def motifs(
    frontiers: flags.Frontiers,
    least: Annotated[int, typer.Option(min=1, help="leave out what fewer architectures have")] = 2,
    top: Annotated[int, typer.Option(min=1, help="rows of the table")] = 25,
    out: Annotated[str | None, typer.Option(help="where to write the whole report, as JSON")] = None,
    as_json: flags.AsJson = False,
    wide: flags.Wide = False,
) -> None:
    """Which parts, pairs and places are commoner on frontiers than among all that was trained, by an exact test."""
    from morphogen.analysis.motifs import motifs as found_in
    from morphogen.cli.console import show_measured, show_table
    from morphogen.cli.facts import aside
    from morphogen.store.outputs import check_output

    paths = [user_path(frontier, "FRONTIER") for frontier in frontiers]
    place = None if out is None else absolute_path(out, "--out")
    if place is not None:
        check_output(place, "motifs.json", paths[0] if paths[0].is_dir() else paths[0].parent, "--out")
    found = found_in(paths, least=least)
    if as_json:
        show_measured(found, "motifs", as_json, wide)
    else:
        title = f"{found.tested} motifs of {len(found.runs)} frontiers, one-sided exact tests"
        show_table(found.rows(top), title, wide)
    if place is not None:
        found.write(place)
        aside(f"wrote {place}")


@app.command()
def scaling(
    frontiers: flags.Frontiers,
    target_params: Annotated[float, typer.Option(help="extrapolate to so many parameters")] = 1.5e9,
    target_tokens: Annotated[float, typer.Option(help="to so many tokens of training")] = 5.0e9,
    target_flops: Annotated[
        float | None, typer.Option(help="to so many FLOPs of training; default 6 x parameters x tokens")
    ] = None,
    target_width_heads: Annotated[float | None, typer.Option(help="to so much of width x heads")] = None,
    metric: Annotated[str, typer.Option(help="the loss")] = "bpb",
    all: Annotated[bool, typer.Option("--all", help="all that were trained, not the frontier alone")] = False,
    out: Annotated[
        str | None, typer.Option(help="the picture, a .png, with a .json beside it; default scaling.png by the first")
    ] = None,
    as_json: flags.AsJson = False,
    wide: flags.Wide = False,
) -> None:
    """Slopes in logarithms over frontiers: loss against size, tokens and FLOPs, throughput against width and heads."""
    from morphogen.analysis.scaling import PICTURE, Targets
    from morphogen.analysis.scaling import scaling as fitted
    from morphogen.cli.console import show_measured
    from morphogen.cli.facts import aside
    from morphogen.report.pictures import scaling as drawn
    from morphogen.store.files import write_atomic
    from morphogen.store.outputs import check_output

    paths = [user_path(frontier, "FRONTIER") for frontier in frontiers]
    folder = paths[0] if paths[0].is_dir() else paths[0].parent
    picture = folder / PICTURE if out is None else absolute_path(out, "--out")
    if picture.suffix != ".png":
        raise InputError(f"--out: {picture}: expected a name that ends in .png")
    targets = Targets(target_params, target_tokens, target_flops, target_width_heads)
    found = fitted(paths, metric=metric, targets=targets, everything=all)
    check_output(picture, "scaling.png", folder, "--out")
    check_output(picture.with_suffix(".json"), "scaling.json", folder, "--out")
    show_measured(found, f"{found.candidates} candidates of {len(found.runs)} frontiers", as_json, wide)
    for line in found.remarks():
        aside(f"note: {line}")
    write_atomic(picture, drawn(found.model_dump(mode="json")))
    found.write(picture.with_suffix(".json"))
    aside(f"wrote {picture} and {picture.with_suffix('.json')}")


@app.command()
def scale(
    seed: Annotated[str, typer.Argument(help="an experiment in YAML, such as a seed", metavar="SEED")],
    params: Annotated[str, typer.Option(help="parameters of the large model, embedding included, such as 400M")],
    depth: Annotated[
        str, typer.Option(help="stretch: every block several times in a row; stack: the whole pattern over again")
    ] = "stretch",
    dim: Annotated[
        int | None, typer.Option(help="residual channels; default in the seed's proportion to its depth")
    ] = (None),
    layers: Annotated[int | None, typer.Option(help="blocks; default likewise")] = None,
    seq_len: Annotated[int | None, typer.Option(help="tokens of a sequence; default the seed's")] = None,
    out: Annotated[str | None, typer.Option(help="the experiment to write; default SEED-PARAMS.yaml beside it")] = None,
    force: Annotated[bool, typer.Option("--force", help="overwrite what is there")] = False,
    allow_code: flags.AllowCode = False,
    as_json: flags.AsJson = False,
) -> None:
    """Make a small experiment large: the same pattern at another width and depth, by stated priors and µP."""
    from morphogen.cli.facts import aside, show_facts
    from morphogen.cli.launch import read_experiment
    from morphogen.cli.options import count_of
    from morphogen.scaling_up import DEPTHS, Wish, write_scaled
    from morphogen.scaling_up import scale as scaled

    if depth not in DEPTHS:
        raise InputError(unknown("--depth", depth, DEPTHS))
    path, wanted = user_path(seed, "SEED"), count_of("--params", params)
    config = path.with_name(f"{path.stem}-{params}.yaml") if out is None else absolute_path(out, "--out")
    wish = Wish(wanted, DEPTHS[depth], dim, layers, seq_len)
    made = scaled(read_experiment(seed), wish)
    write_scaled(made, path, config, force=force)
    for note in made.notes:
        aside(f"note: {note}")
    model = made.experiment.model
    told = {"experiment": str(config), "parameters": made.params, "dim": model.emb.dim, "layers": len(model.blocks)}
    show_facts({**told, "tokens": made.experiment.train.max_tokens}, as_json)
