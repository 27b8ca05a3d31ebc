"""A candidate as the root of the next search: `python scripts/export_seed.py runs/frontier_smoke.json --id ID ...`.

`morphogen seed` as a program of its own; see `--help`.
"""

import typer

from morphogen.cli.commands.after import seed
from morphogen.cli.launch import execute

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
app.command()(seed)

if __name__ == "__main__":
    execute(app, "export_seed.py")
