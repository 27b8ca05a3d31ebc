"""Commands on an experiment's file, before anything is trained: `validate`, `explain`, `diff`."""

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from morphogen.cli import flags
from morphogen.cli.app import app
from morphogen.cli.launch import read_experiment
from morphogen.errors import InputError, MorphogenError
from morphogen.escape import visible
from morphogen.plugins import looking

if TYPE_CHECKING:
    from morphogen.cli.explain import Forecast, Probe


@app.command()
def validate(
    files: Annotated[list[str], typer.Argument(help="experiments in YAML", metavar="FILE...")],
    measure: Annotated[bool, typer.Option("--measure", help="measure too in which precision a device trains")] = False,
    device: Annotated[str, typer.Option(help="which one: cpu, cuda, cuda:N, mps, or auto")] = "cpu",
    allow_code: flags.AllowCode = False,
    as_json: flags.AsJson = False,
) -> None:
    """Check experiment files: every mistake with its line and column."""
    from morphogen.checks import validated
    from morphogen.cli.facts import show_facts

    mistakes: list[str] = []
    told: dict[str, Any] = {}
    for file in files:
        try:
            found = validated(file)
        except MorphogenError as error:
            mistakes.append(str(error))
            if as_json:
                told[file] = {"ok": False, "parameters": None, "notes": [], "mistakes": str(error).splitlines()}
            continue
        notes = [*found.notes]
        if measure and found.train is not None:
            from morphogen.cli.explain import precision

            notes += precision(found.train, device)
        if as_json:
            told[file] = {"ok": True, "parameters": found.parameters, "notes": notes, "mistakes": []}
        else:
            told[file] = found.said
            for line in notes:
                print(visible(f"note: {line}"), file=sys.stderr)
    show_facts(told, as_json)
    if mistakes:
        raise InputError("\n".join(mistakes))


@app.command()
def explain(
    config: flags.Config,
    device: Annotated[str, typer.Option(help="where to measure: cpu, cuda, cuda:N, mps, or auto")] = "cpu",
    measure: Annotated[bool, typer.Option(help="train a few steps on this machine, to estimate time")] = True,
    allow_code: flags.AllowCode = False,
    as_json: flags.AsJson = False,
) -> None:
    """Parameters, FLOPs, memory and estimated time of an experiment."""
    from morphogen import reading
    from morphogen.cli import explain as explaining
    from morphogen.cli.facts import show_facts
    from morphogen.figures import known
    from morphogen.training.device import choose_device
    from morphogen.training.kernels import kernels_of

    experiment = read_experiment(config)
    with reading.placed(config):
        found = explaining.blueprint_costs(experiment)
        grown = explaining.grown_costs(experiment)
    prepared = explaining.text_at_hand(experiment.data)
    forecast = explaining.forecast(experiment, prepared)
    told: dict[str, Any] = {
        name: int(value) if value.is_integer() else round(value, 4) for name, value in found.items()
    }
    told |= {"may_grow_to": grown} if grown else {}
    told |= {
        "candidates": forecast.candidates,
        "tokens_each": forecast.tokens_each,
        "eval_tokens_each": forecast.eval_tokens_each,
    }
    if (asked := experiment.evolution.proposer) is not None:
        places = asked.places(experiment.evolution.population)
        told["proposer"] = {"name": asked.name, "command": " ".join(asked.command), "places": places}
    if not as_json:
        told |= {name: f"{told[name]:,} {known()[name].unit}" for name in found}
        if grown:
            told["may_grow_to"] = explaining.grown_told(grown)
    told["precision"], *warnings = explaining.precision(experiment.train, device)
    if warnings:
        told["warnings"] = warnings
    kernels = kernels_of(experiment.model, choose_device(device))
    told |= {"kernels": kernels} if as_json else {f"kernel of {kind}": way for kind, way in kernels.items()}
    if prepared is None:
        told["eval_text"] = "not read here, so that eval_tokens_each is the most; run --dry-run reads it"
    if measure and (why := explaining.too_large(experiment, device)):
        told["measured"] = None if as_json else f"not, for {why}"
        told |= {"not_measured": why} if as_json else {}
    elif measure:
        told |= _measured(explaining.probe(experiment, device), forecast, as_json)
    show_facts(told, as_json)


def _measured(probe: "Probe", forecast: "Forecast", as_json: bool) -> dict[str, Any]:
    """What a few steps took, and how long the search is to take at that speed."""
    from morphogen.report.wording import duration

    seconds = forecast.seconds(probe.tokens_per_second)
    measured = {
        "sequences": probe.sequences,
        "sequence_tokens": probe.sequence_tokens,
        "tokens_per_second": round(probe.tokens_per_second, 1),
        "peak_memory_bytes": probe.peak_memory_bytes,
    }
    rounded = round(seconds, 1)
    estimated = rounded if as_json else f"{rounded} ({duration(seconds)}; an estimate from those steps)"
    return {"measured": measured, "estimated_seconds": estimated}


@app.command()
def diff(
    a: Annotated[str, typer.Argument(metavar="A")],
    b: Annotated[str, typer.Argument(metavar="B")],
    as_json: flags.AsJson = False,
) -> None:
    """What differs between two experiments: the blueprint by gene id, then everything else."""
    from morphogen.blueprint.diff import changes, digest, distance
    from morphogen.cli.facts import show_facts
    from morphogen.differences import differences

    with looking():
        one, other = read_experiment(a), read_experiment(b)
    found = changes(one.model, other.model)
    rest = differences(one.model_dump(mode="json", exclude={"model"}), other.model_dump(mode="json", exclude={"model"}))
    if as_json:
        told: dict[str, Any] = {"changes": [change.model_dump(mode="json") for change in found]}
        told |= {"others": [dict(zip(("path", "a", "b"), entry, strict=True)) for entry in rest]}
        show_facts(
            told | {"distance": distance(one.model, other.model), "same": digest(one.model) == digest(other.model)},
            True,
        )
        return
    for path, before, after in [*((c.path, c.before, c.after) for c in found), *rest]:
        print(visible(f"{path}: {_flow(before)} -> {_flow(after)}"))
    same = "the same architecture" if digest(one.model) == digest(other.model) else "different architectures"
    print(f"{same}, structural distance {distance(one.model, other.model):.4g}")


def _flow(value: object) -> str:
    return json.dumps(value)
