"""The application that every command registers with, by `@app.command()`; what `morphogen` alone says."""

import inspect
from collections.abc import Callable
from typing import Annotated, TypeVar, get_type_hints

import typer

from morphogen import __version__

Options = TypeVar("Options")

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


def takes(options: type[Options]) -> Callable[[Callable[[Options], None]], Callable[..., None]]:
    """Gives a command of one argument the fields of that argument's dataclass for its arguments and flags."""

    def declared(command: Callable[[Options], None]) -> Callable[..., None]:
        def called(**given: object) -> None:
            command(options(**given))

        called.__name__, called.__doc__, called.__module__ = command.__name__, command.__doc__, command.__module__
        called.__annotations__ = get_type_hints(options, include_extras=True)
        called.__dict__["__signature__"] = inspect.signature(options)  # which is what typer reads
        return called

    return declared
