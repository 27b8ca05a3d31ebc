"""Commands for those who arrive: `init`, with nothing, and `convert`, from the older system's files."""

import shlex
from typing import Annotated

import typer

from morphogen.cli import flags
from morphogen.cli.app import app
from morphogen.escape import visible
from morphogen.paths import absolute_path


@app.command()
def init(
    out: Annotated[str, typer.Argument(help="the file to write", metavar="FILE")] = "experiment.yaml",
    source: Annotated[str, typer.Option("--from", help="smoke, phi, growth or fusion")] = "smoke",
    force: Annotated[bool, typer.Option("--force", help="overwrite what is there")] = False,
    as_json: flags.AsJson = False,
) -> None:
    """Write a commented experiment to begin with."""
    from morphogen.cli.console import show_facts
    from morphogen.starters import STARTERS, starter
    from morphogen.store.outputs import write_new

    path = absolute_path(out, "FILE")
    text = starter(source).replace("experiment.yaml", shlex.quote(visible(out)))
    write_new(path, text.encode(), force=force)
    commands = [
        line.lstrip("# ").partition("  ")[0] for line in text.splitlines() if line.startswith("#     morphogen ")
    ]
    show_facts({"experiment": out, "what": STARTERS[source], "next": commands[0]}, as_json)


@app.command()
def convert(
    old: Annotated[str, typer.Argument(help="an experiment or templates of transformer-evolution-llm", metavar="OLD")],
    out: Annotated[str, typer.Option(help="the file to write, in YAML")],
    force: Annotated[bool, typer.Option("--force", help="overwrite what is there")] = False,
    as_json: flags.AsJson = False,
) -> None:
    """Turn a file of the older system (transformer-evolution-llm) into ours, and say what became of each field."""
    from morphogen.cli.console import show_facts, show_lines
    from morphogen.older.convert import convert as converted
    from morphogen.older.convert import told
    from morphogen.store.outputs import write_new

    path = absolute_path(out, "--out")
    found = converted(old)
    write_new(path, found.text.encode(), force=force)
    groups = {
        "translated": found.of("translated"),
        "approximated": found.of("approximated"),
        "dropped": found.of("dropped"),
        "dropped_without_effect": found.of("dropped", idle=True),
    }
    if as_json:
        fields = {
            name: [{"field": note.place, "to": note.to or None, "said": note.said} for note in notes]
            for name, notes in groups.items()
        }
        show_facts({"experiment": str(path), "lossless": found.lossless, **fields}, True)
        return
    for name, notes in groups.items():
        if notes:
            show_lines(f"{name.replace('_', ' ')} ({len(notes)}):", told(notes))
    lost = "nothing was lost" if found.lossless else "see what was approximated and dropped above"
    print(f"{out}: written; {lost}")
