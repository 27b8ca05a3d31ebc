"""The commands, one file a family. Only the family of the command that is called is imported; all are for help."""

import importlib
from collections.abc import Mapping
from typing import Final

import typer

from morphogen.cli.app import app

#: Family -> its commands; `--help` has them in this order.
FAMILIES: Final[Mapping[str, tuple[str, ...]]] = {
    "run": ("run",),
    "train": ("train",),
    "generate": ("generate",),
    "experiments": ("validate", "explain", "diff"),
    "models": ("import", "export", "merge"),
    "known": ("schema", "operators", "figures"),
    "arriving": ("init", "convert", "data"),
    "runs": ("status", "report", "lineage", "doctor"),
    "outside": ("ask", "tell"),
    "evidence": ("verify", "fidelity", "ablate"),
    "after": ("seed", "finetune", "archive", "motifs", "scaling", "scale"),
}


def app_with(command: str | None = None) -> typer.Typer:
    """The application with the family of a command; with all where none is called so."""
    own = [family for family, names in FAMILIES.items() if command in names]
    for family in own or FAMILIES:
        importlib.import_module(f"{__name__}.{family}")
    order = [name for names in FAMILIES.values() for name in names]
    app.registered_commands.sort(key=lambda found: order.index(name_of(found)))
    return app


def name_of(command: typer.models.CommandInfo) -> str:
    """What a registered command is called."""
    assert command.callback is not None
    return command.name or command.callback.__name__
