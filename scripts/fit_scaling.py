"""Trends of frontiers in logarithms: `python scripts/fit_scaling.py runs/frontier_a.json runs/frontier_b.json`.

`morphogen scaling` as a program of its own; see `--help`.
"""

import typer

from morphogen.cli.commands.after import scaling
from morphogen.cli.launch import execute

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
app.command()(scaling)

if __name__ == "__main__":
    execute(app, "fit_scaling.py")
