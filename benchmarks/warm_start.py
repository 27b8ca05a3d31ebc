"""What inherited weights save: for parent-child pairs over different operators, how many of its training tokens the
spliced child needs to be as good as a fresh child is after all of them.

Both children are trained on the same batches by the same schedule; held-out loss is taken every few steps. A second
spliced child gets its parent's optimizer moments too. The parent's own training is not counted: in a search it is there
already.

    python benchmarks/warm_start.py [--quick] [--steps 200]

B sequences, T tokens
"""

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch.nn import functional as F

from morphogen.blueprint.schema import Blueprint
from morphogen.data.mixture import Mixture
from morphogen.data.prepare import prepare
from morphogen.experiment import Data, Train
from morphogen.inherit.checkpoint import save_checkpoint, save_moments
from morphogen.inherit.descent import Inherited, splice_job
from morphogen.network import LanguageModel, assemble, build
from morphogen.training.trainer import Trainer
from morphogen.variation.operator import edit
from splice import job_of

SEQ_LEN, BATCH, EVERY = 128, 8, 10
OPERATORS = (
    "widen_ffn", "widen_dim", "duplicate_block", "insert_block", "dense_to_moe", "insert_retro_module",
    "add_recurrence", "add_heads", "toggle_ssm", "toggle_parallel", "delete_block", "change_norm",
)  # fmt: skip
PARENT = {
    "name": "parent",
    "emb": {"dim": 64},
    "blocks": [
        {"attn": {"kind": "GQA", "heads": 4, "head_dim": 16, "kv_groups": 2}, "ffn": {"kind": "dense", "hidden": 168}},
        {
            "attn": {"kind": "GQA", "heads": 4, "head_dim": 16, "kv_groups": 2, "sparsity": "sliding", "sw": 32},
            "ffn": {"kind": "dense", "hidden": 168},
        },
        {"ssm": {"kind": "mamba2", "head_dim": 32}, "ffn": {"kind": "dense", "hidden": 168}},
    ],
}


def held_out(model: LanguageModel, ids_BT1: torch.Tensor) -> float:
    """Nats per byte."""
    mode = model.training
    with torch.no_grad():
        logits_BTV = model.eval()(ids_BT1[:, :-1])
    model.train(mode)
    return float(F.cross_entropy(logits_BTV.flatten(0, 1), ids_BT1[:, 1:].flatten()))


def curve(
    model: LanguageModel, mixture: Mixture, ids_BT1: torch.Tensor, steps: int, start: Inherited | None
) -> Trainer:
    """The trainer at its end; losses before the first step and then every `EVERY` steps in `trace.figures`."""
    moments = None if start is None else start.moments
    train = Train(instability_threshold=1e9, no_improve_patience=10**6)
    trainer = Trainer(model, train, total_steps=steps, tokens_per_step=SEQ_LEN * BATCH, seed=0, moments=moments)
    losses = [held_out(model, ids_BT1)]
    for until in range(EVERY, steps + 1, EVERY):
        trainer.run(mixture.batch, until)
        losses.append(held_out(model, ids_BT1))
    trainer.trace.figures["held out"] = losses
    return trainer


def share(losses: list[float], goal: float) -> float:
    """The part of its budget that a child needed to reach `goal`; infinite where it never did."""
    reached = [i for i, loss in enumerate(losses) if loss <= goal]
    return reached[0] / (len(losses) - 1) if reached else float("inf")


def main() -> None:
    """Print every pair and the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--quick", action="store_true", help="40 steps, 4 pairs")
    options = parser.parse_args()
    steps, operators = (40, OPERATORS[:4]) if options.quick else (options.steps, OPERATORS)
    torch.set_num_threads(1)
    prepared = prepare(Data(tokenizer="bytes", seq_len=SEQ_LEN, batch_size=BATCH))
    parent = Blueprint.model_validate(PARENT).with_vocab(prepared.vocab_size)
    mixture, later = Mixture(prepared, 0), Mixture(prepared, 1)
    name = prepared.eval_shards[0].name
    ids_BT1 = torch.cat([torch.from_numpy(b.ids.copy()) for b in mixture.eval_batches(name, 2 * SEQ_LEN * BATCH)])
    trained = curve(build(parent, seed=0), mixture, ids_BT1, steps, None)
    table = Table(
        title=f"{steps} steps of {SEQ_LEN * BATCH} tokens; parent at {trained.trace.figures['held out'][-1]:.3f}"
    )
    for column in (
        "operator",
        "exact",
        "spliced at",
        "fresh ends at",
        "spliced ends at",
        "tokens needed",
        "with moments",
    ):
        table.add_column(column, justify="left" if column == "operator" else "right")
    shares: list[tuple[float, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "p0.safetensors"
        save_checkpoint(checkpoint, trained.model.state_dict(), parent, {})
        save_moments(checkpoint, trained.updater.moments())
        for number, operator in enumerate(operators):
            child, made = edit(parent, operator, number)
            start = splice_job(job_of(Path(folder), child, (made,), [parent]), number)
            again = splice_job(job_of(Path(folder), child, (made,), [parent]), number, with_moments=True)
            fresh = curve(build(child, seed=number + 1), later, ids_BT1, steps, None)
            spliced = curve(assemble(child, start.state), later, ids_BT1, steps, None)
            informed = curve(assemble(child, again.state), later, ids_BT1, steps, again)
            curves = [each.trace.figures["held out"] for each in (fresh, spliced, informed)]
            needed = (share(curves[1], curves[0][-1]), share(curves[2], curves[0][-1]))
            shares.append(needed)
            print(f"{operator}: {needed[0]:.0%}, with moments {needed[1]:.0%}", file=sys.stderr, flush=True)
            exact = "yes" if start.report.exact else "no"
            losses = (curves[1][0], curves[0][-1], curves[1][-1])
            table.add_row(operator, exact, *(f"{loss:.3f}" for loss in losses), *(f"{part:.0%}" for part in needed))
    table.add_section()
    table.add_row("median", "", "", "", "", *(f"{np.median(column):.0%}" for column in zip(*shares, strict=True)))
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
