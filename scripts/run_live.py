"""Evolve an experiment: `python scripts/run_live.py configs/live_smoke.yaml --generations 3 --steps 40`.

`morphogen run` as a program of its own; see `--help`.
"""

import typer

from morphogen.cli.commands.run import run
from morphogen.cli.launch import execute

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
app.command()(run)

if __name__ == "__main__":
    execute(app, "run_live.py")
