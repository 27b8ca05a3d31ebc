"""The command `train`: one model, which may grow by the rules in its blueprint."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from morphogen.cli import flags
from morphogen.cli.app import app, takes

if TYPE_CHECKING:
    from morphogen.beginnings import Asked


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """What `morphogen train` can be told, in the order of its help."""

    source: Annotated[
        str, typer.Argument(help="an experiment in YAML, or a checkpoint (.safetensors)", metavar="EXPERIMENT")
    ]
    steps: Annotated[int, typer.Option(min=1, help="steps of the optimizer, in all")]
    output_dir: Annotated[str, typer.Option(help="the training's folder")]
    data: Annotated[
        str | None, typer.Option(help="other text: a file, a folder, a corpus, or an experiment whose data is taken")
    ] = None
    resume: Annotated[
        bool, typer.Option("--resume", help="go on with the training in --output-dir; begin it if there is none")
    ] = False
    seed: Annotated[int | None, typer.Option(min=0, help="of weights, text order and growth; default train.seed")] = (
        None
    )
    device: flags.Device = "cpu"
    nproc: Annotated[
        int, typer.Option(min=1, help="processes that share the work, on CUDA one a device; --accumulate a multiple")
    ] = 1
    lr: Annotated[float | None, typer.Option(help="highest learning rate; default train.lr")] = None
    batch_size: Annotated[int | None, typer.Option(min=1, help="sequences of a batch; default data.batch_size")] = None
    seq_len: Annotated[int | None, typer.Option(min=8, help="tokens of a sequence; default data.seq_len")] = None
    accumulate: Annotated[
        int | None, typer.Option(min=1, help="batches whose gradients make one step; default train.accumulate")
    ] = None
    checkpoint_every: Annotated[
        int | None, typer.Option(min=1, help="steps between checkpoints; default a tenth of all, at most 500")
    ] = None
    keep: Annotated[int, typer.Option(min=0, help="latest checkpoints that stay; 0: all")] = 3
    eval_every: Annotated[
        int | None, typer.Option(min=0, help="steps between held-out measurements; default a tenth of all, 0: the end")
    ] = None
    grow: Annotated[
        list[str] | None, typer.Option(help="id of a rule with the trigger manual, which acts now; repeatable")
    ] = None
    early_stop: Annotated[
        bool, typer.Option("--early-stop", help="end early where the guards in train would end a candidate's training")
    ] = False
    tensorboard: flags.TensorBoard = False
    allow_code: flags.AllowCode = False
    as_json: flags.AsJson = False

    def asked(self) -> "Asked":
        """What is to be otherwise than in the experiment."""
        from morphogen.beginnings import asked

        return asked(
            data=self.data,
            seed=self.seed,
            lr=self.lr,
            batch_size=self.batch_size,
            seq_len=self.seq_len,
            accumulate=self.accumulate,
        )


@app.command()
@takes(TrainOptions)
def train(options: TrainOptions) -> None:
    """Train one model, which grows by the rules in its blueprint, on an experiment's text."""
    from morphogen.cli.launch import check_text

    check_text(*((options.source, "EXPERIMENT") if options.data is None else (options.data, "--data")))
    from morphogen.cli.training import carry_out

    carry_out(options)
