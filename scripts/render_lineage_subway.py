"""Draw a lineage as a subway map: `python scripts/render_lineage_subway.py runs/demo/lineage.json --out map.svg`.

Also as .png, as .mmd for Mermaid, and as .dot for Graphviz. `morphogen lineage RUN --out …` does the same.
"""

from typing import Annotated

import typer

from morphogen.cli.drawing import draw
from morphogen.cli.launch import execute
from morphogen.escape import visible
from morphogen.paths import user_path

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def render(
    lineage: Annotated[str, typer.Argument(help="a lineage.json, or the folder of a run", metavar="LINEAGE")],
    out: Annotated[str, typer.Option(help="a .svg, .png, .mmd (Mermaid) or .dot file")],
) -> None:
    """Draw a lineage as a subway map: one line per candidate of the frontier, a station per edit."""
    draw(user_path(lineage, "LINEAGE"), user_path(out, "--out"))
    print(visible(f"wrote {out}"))


if __name__ == "__main__":
    execute(app, "render_lineage_subway.py")
