"""What are candidates without parts of theirs? `python scripts/run_ablation.py runs/frontier_smoke.json --top-n 2`.

`morphogen ablate` as a program of its own; see `--help`.
"""

import typer

from morphogen.cli.commands.evidence import ablate
from morphogen.cli.launch import execute

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
app.command()(ablate)

if __name__ == "__main__":
    execute(app, "run_ablation.py")
