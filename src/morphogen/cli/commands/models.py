"""Commands that take models in, give them out and merge them: `import`, `export`, `merge`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from morphogen.cli import flags
from morphogen.cli.app import app
from morphogen.cli.launch import run_folder
from morphogen.paths import absolute_path


@app.command("import")
def import_(
    model: Annotated[str, typer.Argument(help="a model's folder, or its name on the hub", metavar="MODEL")],
    out: Annotated[str, typer.Option(help="the experiment to write, in YAML; the weights go beside it")],
    tokenizer: Annotated[str | None, typer.Option(help="in place of the model's own, as data.tokenizer")] = None,
    force: Annotated[bool, typer.Option("--force", help="overwrite what is there")] = False,
    as_json: flags.AsJson = False,
) -> None:
    """Make a trained model of another framework the root of an experiment: blueprint, weights and tokenizer."""
    from morphogen.cli.facts import aside, show_facts
    from morphogen.fusion.importing import import_model

    found = import_model(model, absolute_path(out, "--out"), tokenizer=tokenizer, force=force)
    for note in found.notes:
        aside(f"note: {note}")
    told = {"experiment": _shown(found.experiment), "checkpoint": _shown(found.checkpoint)}
    show_facts({**told, "architecture": found.architecture, "parameters": found.parameters}, as_json)


@app.command()
def export(
    what: Annotated[str, typer.Argument(help="a candidate's id, or a checkpoint's file", metavar="CANDIDATE")],
    out: Annotated[str, typer.Option(help="the folder to write")],
    form: Annotated[str, typer.Option("--format", help="what to write; hf: a folder that transformers loads")] = "hf",
    run: Annotated[str | None, typer.Option(help="the run's folder, where CANDIDATE is an id")] = None,
    tokenizer: Annotated[str | None, typer.Option(help="of the weights, where that is not on record")] = None,
    force: Annotated[bool, typer.Option("--force", help="replace a folder that is there")] = False,
    allow_code: flags.AllowCode = False,
    as_json: flags.AsJson = False,
) -> None:
    """Write a candidate or checkpoint as a folder that AutoModelForCausalLM and AutoTokenizer load."""
    from morphogen.cli.facts import show_facts
    from morphogen.errors import InputError, unknown
    from morphogen.fusion.exporting import export_model

    if form != "hf":
        raise InputError(unknown("--format", form, ["hf"]))
    place = None if run is None else run_folder(run)
    found = export_model(what, absolute_path(out, "--out"), run=place, tokenizer=tokenizer, force=force)
    told = {"folder": _shown(found.folder), "architecture": found.architecture, "parameters": found.parameters}
    show_facts({**told, "checkpoint": _shown(found.checkpoint)}, as_json)


@app.command()
def merge(
    models: Annotated[list[str], typer.Argument(help="candidates' ids or checkpoints' files", metavar="MODEL...")],
    out: Annotated[str, typer.Option(help="the checkpoint to write")],
    method: Annotated[
        str, typer.Option(help="linear, slerp, task_arithmetic, ties, dare_ties, della or passthrough")
    ] = "linear",
    weight: Annotated[
        list[float] | None,
        typer.Option(help="one for each model; a single one is the second's share, or of every delta to the base"),
    ] = None,
    base: Annotated[str | None, typer.Option(help="what the others were trained from, for deltas")] = None,
    density: Annotated[float | None, typer.Option(help="share of a delta's entries that is kept; default 0.5")] = None,
    epsilon: Annotated[
        float | None, typer.Option(help="of della: range of the chance to be dropped; default 0.2")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="of what is dropped; default 0")] = None,
    run: Annotated[str | None, typer.Option(help="the run's folder, where models are ids")] = None,
    force: Annotated[bool, typer.Option("--force", help="overwrite what is there")] = False,
    allow_code: flags.AllowCode = False,
    as_json: flags.AsJson = False,
) -> None:
    """Merge the weights of models with genes in common into one checkpoint of the first's architecture."""
    from morphogen.cli.facts import show_facts
    from morphogen.fusion.exporting import checkpoint_of
    from morphogen.fusion.merging import check_read, merge_checkpoints, weights_for
    from morphogen.inherit.merging import Settings

    drawn: dict[str, Any] = {"density": density, "epsilon": epsilon, "seed": seed}
    check_read(method, [name for name, value in {"weight": weight, **drawn}.items() if value not in (None, [])])
    place = None if run is None else run_folder(run)
    files = [checkpoint_of(each, place) for each in models]
    origin = None if base is None else checkpoint_of(base, place)
    how = Settings(weights_for(method, weight or [], len(files)))
    how = how._replace(**{name: value for name, value in drawn.items() if value is not None})
    found = merge_checkpoints(files, absolute_path(out, "--out"), method, how, base=origin, force=force)
    told = {"checkpoint": _shown(found.checkpoint), "method": method, "weights": list(how.weights)}
    show_facts({**told, "blocks": found.blocks, "parameters": found.parameters}, as_json)


def _shown(path: Path) -> str:
    """As short as it can be said from here."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
