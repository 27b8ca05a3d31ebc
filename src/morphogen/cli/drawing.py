"""Pages and pictures of runs, written where they are asked for."""

import webbrowser
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from morphogen.errors import InputError
from morphogen.report.outlines import lineage_dot, lineage_mermaid
from morphogen.report.subway import lineage_svg
from morphogen.store.files import write_atomic
from morphogen.store.frontier import Frontier
from morphogen.store.lineage import Lineage
from morphogen.store.outputs import Kind, check_output

#: The page of a run, in its folder.
PAGE: Final = "report.html"
#: Ending of a picture's name -> its kind.
KINDS: dict[str, Kind] = {
    ".svg": "lineage.svg",
    ".png": "lineage.png",
    ".mmd": "lineage.mmd",
    ".mermaid": "lineage.mmd",
    ".dot": "lineage.dot",
}


def draw(lineage: Path, out: Path) -> None:
    """A run's lineage as a picture, or as text for Mermaid or Graphviz, as the ending of `out` says.

    Args:
        lineage: A `lineage.json`, or the folder of a run. Objectives are read from a `frontier.json` beside it, where
            there is one of the same run.
        out: Where to write it.

    Raises:
        InputError: Something cannot be read, another ending, or there is something else already.
    """
    file = lineage / "lineage.json" if lineage.is_dir() else lineage
    if (kind := KINDS.get(out.suffix)) is None:
        raise InputError(f"{out}: got ending {out.suffix!r}, expected one of {', '.join(KINDS)}")
    found = Lineage.read(file)
    check_output(out, kind, file.parent, "--out")
    candidates, reports = found.records()
    if kind == "lineage.dot":
        data = lineage_dot(candidates, reports, found.frontier).encode()
    elif kind == "lineage.mmd":
        data = lineage_mermaid(candidates, reports, found.frontier).encode()
    else:
        beside = file.with_name("frontier.json")
        frontier = Frontier.read(beside) if beside.exists() else None
        objectives = frontier.objectives if frontier is not None and frontier.run == found.run else {}
        svg = lineage_svg(found.run, candidates, reports, found.frontier, objectives)
        data = _png(svg) if kind == "lineage.png" else svg.encode()
    write_atomic(out, data)


def _png(svg: str) -> bytes:
    from morphogen.report.png import png

    return png(svg)


def write_page(folders: Sequence[Path], out: Path | None) -> Path:
    """The page of a run, or of several side by side; where it lies.

    Args:
        folders: Of the runs.
        out: Where to write it; by default the page of one run lies in its folder, that of several where the user is.
    """
    from morphogen.pages import read
    from morphogen.report.html import report_html

    runs = [read(folder) for folder in folders]
    if len(runs) > 1:  # a search and its control are runs of one experiment, and called the same
        runs = [replace(run, run=name) for run, name in zip(runs, told_apart(folders), strict=True)]
    place = out or (folders[0] / PAGE if len(folders) == 1 else Path(PAGE))
    if place != folders[0] / PAGE:
        check_output(place, PAGE, folders[0], "--out")
    write_atomic(place, report_html(runs).encode())
    return place


def told_apart(folders: Sequence[Path]) -> list[str]:
    """What to call runs beside one another: by their folders' names, by whole paths where these are the same, and by
    numbers where one is named twice."""
    names = [folder.resolve().name for folder in folders]
    if len(set(names)) < len(names):
        names = [str(folder) for folder in folders]
    return [f"{name} ({k})" if names.count(name) > 1 else name for k, name in enumerate(names, 1)]


def show(page: Path, say: Callable[[str], None]) -> None:
    """Opens a page in the user's browser, or says that there is none."""
    if not webbrowser.open(page.resolve().as_uri()):
        say(f"no browser was found to open {page}")
