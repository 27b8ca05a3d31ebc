"""Commands by which a program outside drives a run: `ask` says where it stands, `tell` takes what is to be trained."""

import json
from typing import Annotated, Any

import typer

from morphogen.cli import flags
from morphogen.cli.app import app
from morphogen.cli.launch import run_folder
from morphogen.errors import InputError
from morphogen.escape import json_shown
from morphogen.paths import user_path


@app.command()
def ask(folder: flags.Folder, allow_code: flags.AllowCode = False, as_json: flags.AsJson = False) -> None:
    """What a program needs to know to propose candidates: history, operators, parents, open places. See `tell`."""
    place = run_folder(folder)
    from morphogen.cli.facts import show_facts
    from morphogen.cli.status import evolution_of
    from morphogen.proposers import open_seats, refusals, replayed, state
    from morphogen.store.ledger import Ledger

    with Ledger.open(place, readonly=True) as ledger:
        start, events, engine = replayed(ledger, place)
    generations = evolution_of(place, start).generations
    found = state(start.run, engine, refusals(events), generations, open_seats(engine))
    if as_json:
        print(json_shown(found.to_json()), end="")
        return
    told: dict[str, Any] = {"run": found.run, "generation": found.generation, "generations": found.generations}
    told |= {"open seats": found.seats, "waiting": len(found.waiting), "refused": len(found.refused)}
    told |= {"parents": ", ".join(parent.id for parent in found.parents), "operators": len(found.operators)}
    show_facts(told, False)


@app.command()
def tell(
    folder: flags.Folder,
    file: Annotated[str, typer.Argument(help="the answer in JSON; - for standard input", metavar="FILE")] = "-",
    proposer: Annotated[str, typer.Option(help="who proposes, unless the answer says it")] = "tell",
    allow_code: flags.AllowCode = False,
    as_json: flags.AsJson = False,
) -> None:
    """Propose candidates, which the next generation of the run trains before it breeds the rest: all of them, or none
    where one cannot be."""
    from morphogen.cli.facts import show_facts
    from morphogen.proposers import tell as tell_run

    proposed = tell_run(run_folder(folder), _read(file), "stdin" if file == "-" else file, proposer)
    if as_json:
        print(json_shown(json.dumps([one.model_dump(mode="json") for one in proposed], indent=2)))
    else:
        show_facts({"waiting for the next generation": len(proposed)}, False)


def _read(file: str) -> bytes:
    from morphogen.store.ordinary import read_ordinary

    try:
        if file != "-":
            return read_ordinary(user_path(file, "FILE"))
        with open(0, "rb", closefd=False) as stdin:
            return stdin.read()
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror or error}") from None
