"""Commands for those who arrive: `init` and `convert` give an experiment, `data` shows what its text is."""

import shlex
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import typer

from morphogen.cli import flags
from morphogen.cli.app import app
from morphogen.escape import visible
from morphogen.paths import absolute_path


@app.command()
def init(
    out: Annotated[str, typer.Argument(help="the file to write", metavar="FILE")] = "experiment.yaml",
    source: Annotated[str, typer.Option("--from", help="smoke, phi, growth or fusion")] = "smoke",
    force: Annotated[bool, typer.Option("--force", help="overwrite what is there")] = False,
    as_json: flags.AsJson = False,
) -> None:
    """Write a commented experiment to begin with."""
    from morphogen.cli.facts import show_facts
    from morphogen.starters import STARTERS, starter
    from morphogen.store.outputs import write_new

    path = absolute_path(out, "FILE")
    text = starter(source).replace("experiment.yaml", shlex.quote(visible(out)))
    write_new(path, text.encode(), force=force)
    commands = [
        line.lstrip("# ").partition("  ")[0] for line in text.splitlines() if line.startswith("#     morphogen ")
    ]
    show_facts({"experiment": out, "what": STARTERS[source], "next": commands[0]}, as_json)


@app.command()
def convert(
    old: Annotated[str, typer.Argument(help="an experiment or templates of transformer-evolution-llm", metavar="OLD")],
    out: Annotated[str, typer.Option(help="the file to write, in YAML")],
    force: Annotated[bool, typer.Option("--force", help="overwrite what is there")] = False,
    as_json: flags.AsJson = False,
) -> None:
    """Turn a file of the older system (transformer-evolution-llm) into ours, and say what became of each field."""
    from morphogen.cli.facts import show_facts, show_lines
    from morphogen.older.convert import convert as converted
    from morphogen.older.convert import told
    from morphogen.store.outputs import write_new

    path = absolute_path(out, "--out")
    found = converted(old)
    write_new(path, found.text.encode(), force=force)
    groups = {
        "translated": found.of("translated"),
        "approximated": found.of("approximated"),
        "dropped": found.of("dropped"),
        "dropped_without_effect": found.of("dropped", idle=True),
    }
    if as_json:
        fields = {
            name: [{"field": note.place, "to": note.to or None, "said": note.said} for note in notes]
            for name, notes in groups.items()
        }
        show_facts({"experiment": str(path), "lossless": found.lossless, **fields}, True)
        return
    for name, notes in groups.items():
        if notes:
            show_lines(f"{name.replace('_', ' ')} ({len(notes)}):", told(notes))
    lost = "nothing was lost" if found.lossless else "see what was approximated and dropped above"
    print(f"{out}: written; {lost}")


@app.command("data")
def data_(
    config: flags.Config,
    samples: Annotated[int, typer.Option(min=0, max=100, help="documents to show of each source")] = 2,
    allow_code: flags.AllowCode = False,
    as_json: flags.AsJson = False,
) -> None:
    """Read the text of an experiment as a run would: sizes, splits, bytes per token, overlap, samples."""
    from morphogen import reading
    from morphogen.cli.facts import show_facts, show_lines
    from morphogen.cli.launch import read_experiment
    from morphogen.data.looking import looked_at

    experiment = read_experiment(config)
    with reading.placed(config):
        told = looked_at(experiment.data, samples)
    if as_json:
        show_facts(told, True)
        return
    show_facts({"tokenizer": f"{told['tokenizer']['name']}, {told['tokenizer']['vocab']:,} tokens"}, False)
    for name, found in told["sources"].items():
        show_lines(f"{name} ({found['source']}, {found['share']:.1%} of {name.partition(':')[0]})", _of_source(found))
    for pair in told["overlap"]:
        shares = " and ".join(f"{share:.1%} of {name}" for name, share in pair["share_of"].items())
        show_lines(f"overlap: {pair['documents']:,} documents, {shares}", [])
    for name, probe in told["probes"].items():
        show_lines(f"probe {name}: asked at {', '.join(map(str, probe['lengths']))}, chance {probe['chance']:.4g}", [])
    if told["notes"]:
        show_lines("notes", told["notes"])


def _of_source(found: Mapping[str, Any]) -> Iterator[str]:
    left = f", {found['duplicates']:,} duplicates left out" if found["duplicates"] else ""
    yield f"{found['documents']:,} documents, {found['bytes']:,} bytes{left}"
    lost = f"; {found['lost']:.3%} of its characters are lost" if found["lost"] else ""
    yield f"{found['bytes_per_token']} bytes per token{lost}"
    for name, split in found["splits"].items():
        counts = f"{split['documents']:,} documents, {split['tokens']:,} tokens, {split['sequences']:,} sequences"
        yield f"{name:<6}{counts}"
    for one in found["samples"]:
        yield f"sample {one['key']} ({one['characters']:,} characters): {' '.join(one['head'].split())}"
