"""Commands that look at a run's folder and change nothing in it."""

import json
import sys
from typing import Annotated, Any

import typer

from morphogen.cli import flags
from morphogen.cli.app import app
from morphogen.cli.launch import run_folder
from morphogen.escape import json_shown, visible
from morphogen.paths import user_path


@app.command()
def status(
    place: Annotated[str, typer.Argument(help="the folder of a run or a training, or a checkpoint", metavar="PLACE")],
    as_json: flags.AsJson = False,
) -> None:
    """Where a run or a training stands, or what a checkpoint holds. It may be running meanwhile."""
    from morphogen.cli.facts import show_facts
    from morphogen.cli.status import in_words, standing

    if (grown := _of_one_model(place)) is not None:
        from morphogen.cli import grown as growth

        show_facts(grown if as_json else growth.in_words(grown), as_json)
        for line in () if as_json else growth.history(grown):
            print(line)
        return
    told = standing(run_folder(place))
    show_facts(told if as_json else in_words(told), as_json)


def _of_one_model(place: str) -> dict[str, Any] | None:
    """What is told of a training or a checkpoint; None for a run."""
    path = user_path(place, "PLACE")
    if path.suffix == ".safetensors":
        from morphogen.cli.grown import of_checkpoint

        return of_checkpoint(path)
    if (path / "training.json").exists():
        from morphogen.cli.grown import of_training

        return of_training(path)
    return None


@app.command()
def report(
    folders: Annotated[list[str], typer.Argument(help="folders of runs", metavar="RUN...")],
    out: Annotated[
        str | None, typer.Option(help="where to write it; default RUN/report.html, of several ./report.html")
    ] = None,
    in_browser: Annotated[bool, typer.Option("--open", help="open it in the browser")] = False,
    allow_code: flags.AllowCode = False,
) -> None:
    """One page with all that is known of a run, or of several side by side. They may be running meanwhile."""
    from morphogen.cli.drawing import show, write_page
    from morphogen.cli.facts import aside

    page = write_page([run_folder(folder) for folder in folders], None if out is None else user_path(out, "--out"))
    print(visible(f"wrote {page}"))
    if in_browser:
        show(page, aside)


@app.command()
def lineage(
    folder: flags.Folder,
    out: Annotated[str | None, typer.Option(help="draw it: a .svg, .png, .mmd (Mermaid) or .dot file")] = None,
    as_json: flags.AsJson = False,
) -> None:
    """How the frontier came about: every frontier candidate with its ancestors and their edits."""
    from morphogen.cli.facts import aside
    from morphogen.cli.status import ancestry
    from morphogen.store.lineage import Lineage

    run = run_folder(folder)
    found = Lineage.read(run / "lineage.json")
    candidates, reports = found.records()
    if out is not None:
        from morphogen.cli.drawing import draw

        draw(run, user_path(out, "--out"))
        (aside if as_json else print)(visible(f"wrote {out}"))
    if as_json:
        print(json_shown(found.to_json()), end="")
    elif out is None:
        if (before := found.continues) is not None:
            print(visible(f"goes on from {before.id} of the run {before.run}, {before.tokens:,} lineage tokens\n"))
        print("\n\n".join(ancestry(candidates, reports, id) for id in found.frontier) or "no frontier yet")


@app.command()
def doctor(folder: flags.Folder, allow_code: flags.AllowCode = False, as_json: flags.AsJson = False) -> None:
    """Check a run's folder, and say what to do about what is wrong. Exits with 2 where anything is."""
    from morphogen.cli.doctor import examine, remarks

    run = run_folder(folder)
    findings = examine(run)
    for line in remarks(run):
        print(visible(f"note: {line}"), file=sys.stderr)
    if as_json:
        print(json_shown(json.dumps([vars(finding) for finding in findings], indent=2)))
    else:
        for finding in findings:
            print(f"{visible(f'{finding.place}: {finding.wrong}')}\n    {visible(finding.remedy)}")
        print(f"{len(findings)} problems" if findings else "healthy")
    if findings:
        raise typer.Exit(2)
