"""The command line: thin. Each command reads its arguments, calls one function, and prints.

Exit codes: 0 done, 2 bad input (one message on stderr), 130 interrupted and resumable. Nothing heavy is imported until
a command needs it.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from morphogen import __version__, flags
from morphogen.errors import InputError, MorphogenError, unknown
from morphogen.escape import json_shown, visible
from morphogen.launch import carry_out, execute, placed, read_experiment, rehearse
from morphogen.paths import user_path
from morphogen.plugins import looking

if TYPE_CHECKING:
    from pydantic import BaseModel

app = typer.Typer(
    name="morphogen",
    help="Evolve language-model architectures on real text.",
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback()
def top(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="say which version this is, and leave")] = False,
) -> None:
    """Evolve language-model architectures on real text."""
    if version:
        print(f"morphogen {__version__}")
    elif context.invoked_subcommand is None:
        print(context.get_help())
    else:
        return
    raise typer.Exit


SCHEMAS = ("experiment", "blueprint", "frontier", "lineage", "verification", "fidelity")


@app.command()
def run(
    config: flags.Config,
    out: Annotated[str | None, typer.Option(help="the run's folder; default runs/<name of FILE>")] = None,
    generations: flags.Generations = None,
    seed: flags.Seed = None,
    steps: flags.Steps = None,
    eval_batches: flags.EvalBatches = None,
    device: flags.Device = "cpu",
    resume: flags.Resume = False,
    retry_failed: flags.RetryFailed = False,
    retrain_lost: flags.RetrainLost = False,
    parent_selection: flags.ParentSelection = None,
    mutation_weight: flags.MutationWeight = None,
    mutation_steps: flags.MutationSteps = None,
    dry_run: flags.DryRun = False,
    allow_code: flags.AllowCode = False,
    as_json: flags.AsJson = False,
    wide: flags.Wide = False,
    cleanup_old_checkpoints: flags.CleanUp = False,
    prune_checkpoints_to_frontier: flags.Prune = False,
    disk_budget: Annotated[str | None, typer.Option(help="checkpoints' size at most, such as 20GB")] = None,
    executor: Annotated[str, typer.Option(help="local, or ray for a cluster")] = "local",
    workers: flags.Workers = None,
    timeout: Annotated[float | None, typer.Option(help="seconds that a candidate may take")] = None,
    memory_limit: Annotated[str | None, typer.Option(help="memory of a candidate's process, such as 4GB")] = None,
    address: Annotated[str | None, typer.Option(help="ray: of a running cluster; default: one started here")] = None,
    gpus_per_candidate: Annotated[float, typer.Option(help="ray: such as 0.25")] = 0.0,
    shared: Annotated[str | None, typer.Option(help="ray: path or fsspec URL that checkpoints travel through")] = None,
) -> None:
    """Evolve the experiment in FILE."""
    from morphogen.evolve import Keep
    from morphogen.options import execution_of, named_weights, size_bytes, with_options

    experiment = with_options(
        read_experiment(config),
        generations=generations,
        steps=steps,
        eval_batches=eval_batches,
        parent_selection=parent_selection,
        mutation_steps=mutation_steps,
        mutation_weights=named_weights("--mutation-weight", mutation_weight or ()),
    )
    folder = user_path(out, "--out") if out else Path("runs") / Path(config).stem
    keep = Keep(
        cleanup=cleanup_old_checkpoints,
        prune=prune_checkpoints_to_frontier,
        disk_budget=None if disk_budget is None else size_bytes("--disk-budget", disk_budget),
    )
    execution = execution_of(
        executor=executor,
        workers=workers,
        timeout=timeout,
        memory_limit=memory_limit,
        address=address,
        gpus_per_candidate=gpus_per_candidate,
        shared=shared,
    )
    with placed(config, experiment):
        if dry_run:
            rehearse(experiment, folder, device=device, resume=resume, as_json=as_json)
        else:
            carry_out(
                experiment,
                folder,
                seed=seed,
                device=device,
                resume=resume,
                keep=keep,
                execution=execution,
                as_json=as_json,
                retry_failed=retry_failed,
                retrain_lost=retrain_lost,
                wide=wide,
            )


@app.command()
def validate(
    files: Annotated[list[str], typer.Argument(help="experiments in YAML", metavar="FILE...")],
    allow_code: flags.AllowCode = False,
    as_json: flags.AsJson = False,
) -> None:
    """Check experiment files: every mistake with its line and column."""
    from morphogen.checks import validated
    from morphogen.console import show_facts

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
        if as_json:
            told[file] = {"ok": True, "parameters": found.parameters, "notes": found.notes, "mistakes": []}
        else:
            told[file] = found.said
            for line in found.notes:
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
    from morphogen import explain as explaining
    from morphogen import reading
    from morphogen.console import show_facts
    from morphogen.figures import known
    from morphogen.report.wording import duration

    experiment = read_experiment(config)
    with reading.placed(config):
        found = explaining.blueprint_costs(experiment)
    prepared = explaining.text_at_hand(experiment.data)
    plan = explaining.plan(experiment, prepared)
    told: dict[str, Any] = {
        name: int(value) if value.is_integer() else round(value, 4) for name, value in found.items()
    }
    told |= {"candidates": plan.candidates, "tokens_each": plan.tokens_each, "eval_tokens_each": plan.eval_tokens_each}
    if not as_json:
        told |= {name: f"{told[name]:,} {known()[name].unit}" for name in found}
    if prepared is None:
        told["eval_text"] = "not read here, so that eval_tokens_each is the most; run --dry-run reads it"
    if measure and (why := explaining.too_large(experiment, device)):
        told["measured"] = None if as_json else f"not, for {why}"
        told |= {"not_measured": why} if as_json else {}
    elif measure:
        from morphogen.training.loop import choose_device
        from morphogen.training.precision import bf16_warning

        probe = explaining.probe(experiment, device)
        seconds = plan.seconds(probe.tokens_per_second)
        told["measured"] = {
            "sequences": probe.sequences,
            "sequence_tokens": probe.sequence_tokens,
            "tokens_per_second": round(probe.tokens_per_second, 1),
            "peak_memory_bytes": probe.peak_memory_bytes,
        }
        told["estimated_seconds"] = round(seconds, 1)
        if not as_json:
            told["estimated_seconds"] = (
                f"{told['estimated_seconds']} ({duration(seconds)}; an estimate from those steps)"
            )
        if warning := bf16_warning(experiment.train.bf16, choose_device(device)):
            told["warnings"] = [warning]
    show_facts(told, as_json)


@app.command()
def diff(
    a: Annotated[str, typer.Argument(metavar="A")],
    b: Annotated[str, typer.Argument(metavar="B")],
    as_json: flags.AsJson = False,
) -> None:
    """What differs between two experiments: the blueprint by gene id, then everything else."""
    from morphogen.blueprint.diff import changes, digest, distance
    from morphogen.console import show_facts
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


@app.command()
def schema(
    which: Annotated[str, typer.Argument(help=", ".join(SCHEMAS), metavar="WHICH")] = "experiment",
) -> None:
    """The JSON Schema of a file format, for editors and other programs."""
    from morphogen.analysis.records import Fidelity, Verification
    from morphogen.blueprint.schema import Blueprint
    from morphogen.experiment import Experiment
    from morphogen.store.frontier import Frontier
    from morphogen.store.lineage import Lineage

    kinds: tuple[type[BaseModel], ...] = (Experiment, Blueprint, Frontier, Lineage, Verification, Fidelity)
    models = dict(zip(SCHEMAS, kinds, strict=True))
    if which not in models:
        raise InputError(unknown("schema", which, SCHEMAS))
    print(json.dumps(models[which].model_json_schema(), indent=2))


@app.command()
def operators(
    config: Annotated[str | None, typer.Argument(help="say which apply to this experiment", metavar="FILE")] = None,
    allow_code: flags.AllowCode = False,
    as_json: flags.AsJson = False,
    wide: flags.Wide = False,
) -> None:
    """Every mutation: its name, whether it keeps the function, what it does."""
    from morphogen.console import show_table
    from morphogen.parts.contract.operator import OPERATORS, load_operators
    from morphogen.variation.act import Around
    from morphogen.variation.operator import describe_operators
    from morphogen.variation.template import resolve_templates

    if config is not None:
        experiment = read_experiment(config)
        templates = resolve_templates(experiment.evolution.templates)
        around = Around(experiment.train, templates=templates)
        rows: list[dict[str, Any]] = [{**info} for info in describe_operators(experiment.model, around)]
    else:
        load_operators()
        rows = [
            {"name": op.name, "summary": op.summary, "level": op.level, "preserves": op.declared, "weight": op.weight}
            for op in (OPERATORS[name] for name in sorted(OPERATORS))
        ]
    if as_json:
        print(json_shown(json.dumps(rows, indent=2)))
        return
    words = {True: "exact", False: "lossy", None: "depends"}
    order = ("name", "level", "weight", "applies", "function", "summary")
    shown = [{**row, "function": words[row["preserves"]]} for row in rows]
    show_table([{name: row[name] for name in order if name in row} for row in shown], "operators", wide, ("summary",))


@app.command()
def lineage(
    folder: flags.Folder,
    out: Annotated[str | None, typer.Option(help="draw the picture anew: a .svg or .dot file")] = None,
    as_json: flags.AsJson = False,
) -> None:
    """How the frontier came about: every frontier candidate with its ancestors and their edits."""
    from morphogen.console import aside
    from morphogen.status import ancestry, draw
    from morphogen.store.lineage import Lineage

    found = Lineage.read(_run(folder) / "lineage.json")
    candidates, reports = found.records()
    if out is not None:
        draw(_run(folder), user_path(out, "--out"))
        (aside if as_json else print)(visible(f"wrote {out}"))
    if as_json:
        print(json_shown(found.to_json()), end="")
    elif out is None:
        print("\n\n".join(ancestry(candidates, reports, id) for id in found.frontier) or "no frontier yet")


@app.command()
def verify(
    run: Annotated[str, typer.Argument(help="a run's folder, or its frontier.json", metavar="RUN|FRONTIER")],
    baseline: Annotated[str | None, typer.Option(help="a run to take the baseline's best from")] = None,
    random: Annotated[
        int | None, typer.Option(help="candidates of the random search; default as many as the run trained, 0 for none")
    ] = None,
    seeds: Annotated[int, typer.Option(help="trainings of each blueprint")] = 3,
    tokens: Annotated[int | None, typer.Option(help="of each training; default what the run gave a candidate")] = None,
    finalists: Annotated[int, typer.Option(help="at most so many of the frontier, the best by --metric")] = 5,
    metric: Annotated[str, typer.Option(help="what is compared")] = "bpb",
    device: flags.Device = "cpu",
    workers: flags.Trainers = None,
    allow_code: flags.AllowCode = False,
    as_json: flags.AsJson = False,
    wide: flags.Wide = False,
) -> None:
    """Train the finalists, the root and a random search's best from scratch, with several seeds: who is better?"""
    from morphogen.analysis.verify import verify as verified
    from morphogen.console import aside, show_measured
    from morphogen.evolve import default_threads, threads

    with threads(default_threads()):
        found = verified(
            user_path(run, "RUN"),
            baseline=user_path(baseline, "--baseline") if baseline is not None else None,
            random=random,
            seeds=seeds,
            tokens=tokens,
            finalists=finalists,
            metric=metric,
            device=device,
            workers=workers,
            say=aside,
        )
    told = f"{found.metric} on the {found.split} split after {found.tokens:,} tokens from scratch, p against the root"
    show_measured(found, told, as_json, wide)


@app.command()
def fidelity(
    run: flags.Folder,
    short: Annotated[int | None, typer.Option(help="training tokens of the short rung; default rung 1's")] = None,
    long: Annotated[
        int | None, typer.Option(help="of the long one; default what the run gave a candidate in all")
    ] = None,
    candidates: Annotated[int, typer.Option(help="at most so many of the run's, evenly over it")] = 16,
    seeds: Annotated[int, typer.Option(help="trainings of each candidate and length, of which the mean counts")] = 1,
    top_k: Annotated[int, typer.Option(help="regret of taking the best of so many")] = 1,
    bootstrap: Annotated[int, typer.Option(help="resamples for the intervals")] = 2000,
    metric: Annotated[str, typer.Option(help="what is ranked by")] = "bpb",
    device: flags.Device = "cpu",
    workers: flags.Trainers = None,
    allow_code: flags.AllowCode = False,
    as_json: flags.AsJson = False,
    wide: flags.Wide = False,
) -> None:
    """How well the ranking after a short training predicts that after a long one, beside counting parameters."""
    from morphogen.analysis.fidelity import fidelity as measured
    from morphogen.console import aside, show_measured
    from morphogen.evolve import default_threads, threads

    with threads(default_threads()):
        found = measured(
            _run(run),
            short=short,
            long=long,
            candidates=candidates,
            seeds=seeds,
            top_k=top_k,
            resamples=bootstrap,
            metric=metric,
            device=device,
            workers=workers,
            say=aside,
        )
    budgets = f"{found.short_tokens:,} for {found.long_tokens:,} tokens"
    show_measured(found, f"ranking of {len(found.candidates)} candidates by {found.metric}, {budgets}", as_json, wide)


@app.command()
def status(folder: flags.Folder, as_json: flags.AsJson = False) -> None:
    """Where a run stands. It may be running meanwhile."""
    from morphogen.console import show_facts
    from morphogen.status import in_words, standing

    told = standing(_run(folder))
    show_facts(told if as_json else in_words(told), as_json)


@app.command()
def doctor(folder: flags.Folder, allow_code: flags.AllowCode = False, as_json: flags.AsJson = False) -> None:
    """Check a run's folder, and say what to do about what is wrong. Exits with 2 where anything is."""
    from morphogen.doctor import examine

    findings = examine(_run(folder))
    if as_json:
        print(json_shown(json.dumps([vars(finding) for finding in findings], indent=2)))
    else:
        for finding in findings:
            print(f"{visible(f'{finding.place}: {finding.wrong}')}\n    {visible(finding.remedy)}")
        print(f"{len(findings)} problems" if findings else "healthy")
    if findings:
        raise typer.Exit(2)


def main(args: Sequence[str] | None = None) -> NoReturn:
    """The entry point: runs one command and exits with its code."""
    execute(app, "morphogen", args)


def _run(folder: str) -> Path:
    path = user_path(folder, "RUN")
    if not path.is_dir():
        names = [p.name for p in path.parent.iterdir() if p.is_dir()] if path.parent.is_dir() else []
        raise InputError(unknown("run folder", path.name, names) if names else f"{folder}: no such run folder")
    return path


def _flow(value: object) -> str:
    return json.dumps(value)
