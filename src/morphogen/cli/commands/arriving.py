"""Commands for those who arrive: `convert`, from the older system's files."""

from typing import Annotated

import typer

from morphogen.cli import flags
from morphogen.cli.app import app
from morphogen.paths import absolute_path


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
