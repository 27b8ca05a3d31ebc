"""Commands that look at a run's folder and change nothing in it."""

import json
from typing import Annotated

import typer

from morphogen.cli import flags
from morphogen.cli.app import app
from morphogen.cli.launch import run_folder
from morphogen.escape import json_shown, visible
from morphogen.paths import user_path


@app.command()
def status(folder: flags.Folder, as_json: flags.AsJson = False) -> None:
    """Where a run stands. It may be running meanwhile."""
    from morphogen.cli.console import show_facts
    from morphogen.cli.status import in_words, standing

    told = standing(run_folder(folder))
    show_facts(told if as_json else in_words(told), as_json)


@app.command()
def lineage(
    folder: flags.Folder,
    out: Annotated[str | None, typer.Option(help="draw the picture anew: a .svg or .dot file")] = None,
    as_json: flags.AsJson = False,
) -> None:
    """How the frontier came about: every frontier candidate with its ancestors and their edits."""
    from morphogen.cli.console import aside
    from morphogen.cli.status import ancestry, draw
    from morphogen.store.lineage import Lineage

    found = Lineage.read(run_folder(folder) / "lineage.json")
    candidates, reports = found.records()
    if out is not None:
        draw(run_folder(folder), user_path(out, "--out"))
        (aside if as_json else print)(visible(f"wrote {out}"))
    if as_json:
        print(json_shown(found.to_json()), end="")
    elif out is None:
        print("\n\n".join(ancestry(candidates, reports, id) for id in found.frontier) or "no frontier yet")


@app.command()
def doctor(folder: flags.Folder, allow_code: flags.AllowCode = False, as_json: flags.AsJson = False) -> None:
    """Check a run's folder, and say what to do about what is wrong. Exits with 2 where anything is."""
    from morphogen.cli.doctor import examine

    findings = examine(run_folder(folder))
    if as_json:
        print(json_shown(json.dumps([vars(finding) for finding in findings], indent=2)))
    else:
        for finding in findings:
            print(f"{visible(f'{finding.place}: {finding.wrong}')}\n    {visible(finding.remedy)}")
        print(f"{len(findings)} problems" if findings else "healthy")
    if findings:
        raise typer.Exit(2)
