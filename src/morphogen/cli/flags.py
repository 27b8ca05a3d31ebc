"""Arguments and options that several commands take, each declared once."""

from typing import Annotated

import typer

from morphogen.plugins import allow_code


def _allow(context: typer.Context, allowed: bool) -> bool:
    """For as long as the command runs."""
    if allowed:
        context.with_resource(allow_code())
    return allowed


Config = Annotated[str, typer.Argument(help="an experiment in YAML", metavar="FILE")]
Frontier = Annotated[str, typer.Argument(help="a run's frontier.json, or its folder", metavar="FRONTIER")]
Frontiers = Annotated[
    list[str], typer.Argument(help="runs' frontier.json files, or their folders", metavar="FRONTIER...")
]
Folder = Annotated[str, typer.Argument(help="a run's folder", metavar="RUN")]
AsJson = Annotated[bool, typer.Option("--json", help="machine-readable output")]
Wide = Annotated[bool, typer.Option("--wide", help="tables in all their columns, however wide the terminal")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:N, mps, or auto")]
AllowCode = Annotated[
    bool, typer.Option("--allow-code", help="import what files name as module:Class; trust them", callback=_allow)
]

# Of a run.
Generations = Annotated[int | None, typer.Option(help="generations after the root's")]
Seed = Annotated[int | None, typer.Option(min=0, help="of the run; default train.seed")]
Steps = Annotated[int | None, typer.Option(help="training steps per candidate, over both rungs")]
EvalBatches = Annotated[int | None, typer.Option(help="held-out batches per shard")]
Resume = Annotated[bool, typer.Option("--resume", help="go on with the run in --out; start it if there is none")]
RetryFailed = Annotated[
    bool, typer.Option("--retry-failed", help="with --resume: train the failed candidates of the run's end again")
]
RetrainLost = Annotated[
    bool, typer.Option("--retrain-lost", help="with --resume: train needed checkpoints that are lost or damaged again")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="check everything, say what would be done, do nothing")]
ParentSelection = Annotated[str | None, typer.Option(help="such as weighted, lexicase or tournament")]
MutationWeight = Annotated[list[str] | None, typer.Option(help="NAME=W, repeatable; 0 switches an operator off")]
MutationSteps = Annotated[int | None, typer.Option(help="edits per child at most; 0 is the no-edit control")]
CleanUp = Annotated[
    bool,
    typer.Option(
        "--cleanup-old-checkpoints/--no-cleanup-old-checkpoints", help="drop what neither survivors nor frontier need"
    ),
]
Prune = Annotated[
    bool,
    typer.Option(
        "--prune-checkpoints-to-frontier/--no-prune-checkpoints-to-frontier",
        help="at the end, keep only the frontier's",
    ),
]
TensorBoard = Annotated[bool, typer.Option("--tensorboard", help="write TensorBoard's events too")]
Workers = Annotated[int | None, typer.Option(help="candidates at a time, each in a process of its own")]

# Of trainings beside a run.
Trainers = Annotated[int | None, typer.Option(help="processes that train; default this one alone")]
