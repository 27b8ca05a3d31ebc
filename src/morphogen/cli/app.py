"""The application that every command registers with, by `@app.command()`; what `morphogen` alone says."""

from typing import Annotated

import typer

from morphogen import __version__

app = typer.Typer(
    name="morphogen",
    help="Evolve language-model architectures on real text.",
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback()
def top(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="say which version this is, and leave")] = False,
) -> None:
    """Evolve language-model architectures on real text."""
    if version:
        print(f"morphogen {__version__}")
    elif context.invoked_subcommand is None:
        print(context.get_help())
    else:
        return
    raise typer.Exit
