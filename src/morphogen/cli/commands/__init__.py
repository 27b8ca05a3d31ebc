"""The commands, one file a family. Only the family of the command that is called is imported; all are for help."""

import importlib
import re
from pathlib import Path
from typing import Final

import typer

from morphogen.cli.app import app

#: The files here, in the order that `--help` has their commands in; within a file they stand as they are written.
FAMILIES: Final = (
    *("run", "train", "generate", "experiments", "models", "known", "arriving", "runs", "outside", "evidence", "after"),
)


def app_with(command: str | None = None) -> typer.Typer:
    """The application with the family of a command; with all where none is called so."""
    for family in _in_turn(command):
        importlib.import_module(f"{__name__}.{family}")
        if command in [name_of(found) for found in app.registered_commands]:
            break
    app.registered_commands.sort(key=lambda found: FAMILIES.index(_family_of(found)))
    return app


def _in_turn(command: str | None) -> list[str]:
    """All families, first the one in whose file the command is written by its name."""
    if command is None:
        return list(FAMILIES)
    written = re.compile(rf"^def {re.escape(command)}_?\(", re.M)
    files = {family: Path(__file__).with_name(f"{family}.py") for family in FAMILIES}
    return sorted(FAMILIES, key=lambda family: written.search(files[family].read_text("utf-8")) is None)


def name_of(command: typer.models.CommandInfo) -> str:
    """What a registered command is called."""
    assert command.callback is not None
    return command.name or command.callback.__name__


def _family_of(command: typer.models.CommandInfo) -> str:
    assert command.callback is not None
    return command.callback.__module__.rpartition(".")[2]
