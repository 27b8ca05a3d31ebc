"""Commands that tell what morphogen knows: `schema`, `operators`, `figures`."""

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from morphogen import plugins
from morphogen.cli import flags
from morphogen.cli.app import app
from morphogen.cli.launch import read_experiment
from morphogen.errors import InputError, unknown
from morphogen.escape import json_shown, visible

if TYPE_CHECKING:
    from pydantic import BaseModel

SCHEMAS = ("experiment", "blueprint", "frontier", "lineage", "verification", "fidelity", "ablation", "state", "answer")


@app.command()
def schema(
    which: Annotated[str, typer.Argument(help=", ".join(SCHEMAS), metavar="WHICH")] = "experiment",
) -> None:
    """The JSON Schema of a file format, for editors and other programs."""
    from morphogen.analysis.records import Ablations, Fidelity, Verification
    from morphogen.blueprint.schema import Blueprint
    from morphogen.experiment import Experiment
    from morphogen.store.frontier import Frontier
    from morphogen.store.lineage import Lineage
    from morphogen.store.proposals import Answer, State

    kinds: tuple[type[BaseModel], ...] = (
        *(Experiment, Blueprint, Frontier, Lineage, Verification, Fidelity, Ablations),
        *(State, Answer),
    )
    models = dict(zip(SCHEMAS, kinds, strict=True))
    if which not in models:
        raise InputError(unknown("schema", which, SCHEMAS))
    print(json.dumps(models[which].model_json_schema(), indent=2))


@app.command()
def operators(
    config: Annotated[str | None, typer.Argument(help="say which apply to this experiment", metavar="FILE")] = None,
    allow_code: flags.AllowCode = False,
    as_json: flags.AsJson = False,
    wide: flags.Wide = False,
) -> None:
    """Every mutation: its name, whether it keeps the function, what it does."""
    from morphogen.cli.console import show_table
    from morphogen.parts.contract.operator import OPERATORS, load_operators
    from morphogen.variation.act import Surroundings
    from morphogen.variation.operator import describe_operators
    from morphogen.variation.template import resolve_templates

    _tell_of_broken(plugins.PARTS, plugins.OPERATORS)
    if config is not None:
        experiment = read_experiment(config)
        templates = resolve_templates(experiment.evolution.templates)
        donors, seq_len = experiment.evolution.donors, experiment.data.seq_len
        around = Surroundings(experiment.train, templates=templates, seq_len=seq_len, donors=donors)
        rows: list[dict[str, Any]] = [{**info} for info in describe_operators(experiment.model, around)]
    else:
        load_operators()
        rows = [
            {"name": op.name, "summary": op.summary, "level": op.level, "preserves": op.declared, "weight": op.weight}
            for op in (OPERATORS[name] for name in sorted(OPERATORS))
        ]
    if as_json:
        print(json_shown(json.dumps(rows, indent=2)))
        return
    words = {True: "exact", False: "lossy", None: "depends"}
    order = ("name", "level", "weight", "applies", "function", "summary")
    shown = [{**row, "function": words[row["preserves"]]} for row in rows]
    show_table([{name: row[name] for name in order if name in row} for row in shown], "operators", wide, ("summary",))


@app.command()
def figures(as_json: flags.AsJson = False, wide: flags.Wide = False) -> None:
    """Every figure of a candidate: its unit, which way is better, what it is."""
    from dataclasses import asdict

    from morphogen.cli.console import show_table
    from morphogen.figures import known

    _tell_of_broken(plugins.FIGURES)
    rows = [asdict(figure) for figure in known().values()]
    if as_json:
        print(json_shown(json.dumps(rows, indent=2)))
        return
    order = ("name", "unit", "better", "sort", "needs", "summary")
    shown = [{**row, "needs": ", ".join(row["needs"])} for row in rows]
    show_table([{name: row[name] for name in order} for row in shown], "figures", wide, ("summary",))


def _tell_of_broken(*groups: str) -> None:
    """What installed packages have, and is not in the list."""
    for line in plugins.broken(*groups):
        print(visible(f"note: left out: {line}"), file=sys.stderr)
