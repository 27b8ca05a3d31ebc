"""Commands that train anew, to tell whether a run found anything, and what: `verify`, `fidelity`, `ablate`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from morphogen.cli import flags
from morphogen.cli.app import app
from morphogen.cli.launch import run_folder
from morphogen.errors import InputError
from morphogen.paths import user_path

if TYPE_CHECKING:
    from morphogen.analysis.records import Ablations


@app.command()
def verify(
    run: Annotated[str, typer.Argument(help="a run's folder, or its frontier.json", metavar="RUN|FRONTIER")],
    baseline: Annotated[str | None, typer.Option(help="a run to take the baseline's best from")] = None,
    random: Annotated[
        int | None, typer.Option(help="candidates of the random search; default as many as the run trained, 0 for none")
    ] = None,
    seeds: Annotated[int, typer.Option(help="trainings of each blueprint")] = 3,
    tokens: Annotated[int | None, typer.Option(help="of each training; default what the run gave a candidate")] = None,
    times: Annotated[
        list[int] | None,
        typer.Option(help="train on so many times these tokens, too; give it once for each; default 1 and 4"),
    ] = None,
    finalists: Annotated[int, typer.Option(help="at most so many of the frontier, the best by --metric")] = 5,
    metric: Annotated[str, typer.Option(help="what is compared")] = "bpb",
    device: flags.Device = "cpu",
    workers: flags.Trainers = None,
    allow_code: flags.AllowCode = False,
    as_json: flags.AsJson = False,
    wide: flags.Wide = False,
) -> None:
    """Train the finalists, the root and a random search's best from scratch, with several seeds: who is better?"""
    from morphogen.analysis.verify import TIMES
    from morphogen.analysis.verify import verify as verified
    from morphogen.cli.console import show_measured
    from morphogen.cli.facts import aside
    from morphogen.training.threads import default_threads, threads

    with threads(default_threads()):
        found = verified(
            user_path(run, "RUN"),
            baseline=user_path(baseline, "--baseline") if baseline is not None else None,
            random=random,
            seeds=seeds,
            tokens=tokens,
            times=times or TIMES,
            finalists=finalists,
            metric=metric,
            device=device,
            workers=workers,
            say=aside,
        )
    lengths = " and ".join(f"{factor * found.tokens:,}" for factor in found.times)
    told = f"{found.metric} on the {found.split} split after {lengths} tokens from scratch, against the root as long"
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
    from morphogen.cli.console import show_measured
    from morphogen.cli.facts import aside
    from morphogen.training.threads import default_threads, threads

    with threads(default_threads()):
        found = measured(
            run_folder(run),
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
def ablate(
    frontier: flags.Frontier,
    top_n: Annotated[int, typer.Option(help="of the frontier so many, the best by --metric")] = 3,
    id: Annotated[list[str] | None, typer.Option("--id", help="a candidate of the run; repeatable")] = None,
    ablation: Annotated[
        list[str] | None,
        typer.Option(
            help="repeatable; undo: every edit of the lineage, undo:OPERATOR[@CANDIDATE]: some; default all named ones"
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(help="trainings of each blueprint")] = 3,
    steps: Annotated[
        int | None, typer.Option(help="of each training; default as many as the run gave a candidate")
    ] = None,
    eval_batches: flags.EvalBatches = None,
    metric: Annotated[str, typer.Option(help="what is compared")] = "bpb",
    out: Annotated[
        str | None, typer.Option(help="the report, and beside it a picture; default ablation_report.json by the run")
    ] = None,
    checkpoint_dir: Annotated[str | None, typer.Option(help="is not needed: ablated models leave no weights")] = None,
    device: flags.Device = "cpu",
    workers: flags.Trainers = None,
    allow_code: flags.AllowCode = False,
    as_json: flags.AsJson = False,
    wide: flags.Wide = False,
) -> None:
    """Candidates less one part, or one edit, beside themselves trained alike: from scratch, and from their weights."""
    from morphogen.analysis.ablation import ablate as ablated
    from morphogen.analysis.recorded import run_of
    from morphogen.cli.console import show_measured
    from morphogen.cli.facts import aside
    from morphogen.training.threads import default_threads, threads

    path = user_path(frontier, "FRONTIER")
    folder = run_of(path)
    report = _ablation_report(folder, out)
    if checkpoint_dir is not None:
        aside("note: --checkpoint-dir: ablated models leave no weights, so that nothing is put there")
    with threads(default_threads()):
        found = ablated(
            path,
            ids=id or (),
            top_n=top_n,
            ablations=ablation or (),
            seeds=seeds,
            steps=steps,
            eval_batches=eval_batches,
            metric=metric,
            device=device,
            workers=workers,
            say=aside,
        )
    for line in found.left_out():
        aside(line)
    told = f"{found.metric} without, less with; {found.tokens:,} tokens, {len(found.seeds)} seeds"
    show_measured(found, told, as_json, wide)
    _write_ablations(found, folder, report)
    aside(f"wrote {report} and {report.with_suffix('.png')}")


def _ablation_report(folder: Path, out: str | None) -> Path:
    """Where the report on a run is written; InputError where that may not be."""
    from morphogen.store.outputs import check_output, check_own_report

    report = folder.resolve().parent / "ablation_report.json" if out is None else user_path(out, "--out")
    if report.suffix != ".json":
        raise InputError(f"--out: {report}: expected a name that ends in .json; the picture comes to lie beside it")
    check_output(report, "ablation.json", folder, "--out")
    check_output(report.with_suffix(".png"), "ablation.png", folder, "--out")
    if out is None:
        check_own_report(report, folder)
    return report


def _write_ablations(found: "Ablations", folder: Path, report: Path) -> None:
    """The report and its picture, in the run's folder and where they were asked for."""
    from morphogen.report.pictures import ablations
    from morphogen.store.files import write_atomic

    drawn = ablations(found.model_dump(mode="json"))
    found.write(report)
    for path in (folder / "ablation.png", report.with_suffix(".png")):
        write_atomic(path, drawn)
