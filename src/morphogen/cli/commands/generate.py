"""The command `generate`: text from a checkpoint."""

from typing import Annotated

import typer

from morphogen.cli import flags
from morphogen.cli.app import app


@app.command()
def generate(
    checkpoint: Annotated[str, typer.Argument(help="of a run or a training (.safetensors)", metavar="CHECKPOINT")],
    prompt: Annotated[str, typer.Option(help="what the text begins with; default: the start of a document")] = "",
    max_tokens: Annotated[int, typer.Option(min=0, help="tokens at most; it ends before where a document does")] = 200,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token")] = 1.0,
    top_k: Annotated[int | None, typer.Option(min=1, help="draw from so many likeliest tokens; default all")] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="of what is drawn")] = 0,
    device: flags.Device = "cpu",
    allow_code: flags.AllowCode = False,
    as_json: flags.AsJson = False,
) -> None:
    """Write on from a prompt, with the weights of a checkpoint as they were measured."""
    from morphogen.cli.facts import show_facts
    from morphogen.cli.generating import written
    from morphogen.escape import visible_lines
    from morphogen.paths import user_path

    found = written(
        user_path(checkpoint, "CHECKPOINT"),
        prompt,
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        seed=seed,
        device=device,
    )
    if as_json:
        show_facts({"prompt": prompt, "text": found.text, "tokens": found.tokens}, True)
    else:
        print(visible_lines(prompt + found.text))
