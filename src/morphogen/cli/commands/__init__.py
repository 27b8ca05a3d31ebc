"""The commands, one file a family. Only the families up to that of the command that is called are imported; all are for
help."""

import importlib
from typing import Final

import typer

from morphogen.cli.app import app

#: The files here, in the order that `--help` has their commands in; within a file they stand as they are written.
FAMILIES: Final = (
    *("run", "train", "generate", "experiments", "models", "known", "arriving", "runs", "outside", "evidence", "after"),
)


def app_with(command: str | None = None) -> typer.Typer:
    """The application with the families up to that of a command; with all where none is called so."""
    for family in FAMILIES:
        importlib.import_module(f"{__name__}.{family}")
        if command in [name_of(found) for found in app.registered_commands]:
            break
    app.registered_commands.sort(key=lambda found: FAMILIES.index(_family_of(found)))
    return app


def name_of(command: typer.models.CommandInfo) -> str:
    """What a registered command is called."""
    assert command.callback is not None
    return command.name or command.callback.__name__


def _family_of(command: typer.models.CommandInfo) -> str:
    assert command.callback is not None
    return command.callback.__module__.rpartition(".")[2]
