"""One row per operator, over random blueprints trained a little on real text: how often it applies, whether it is exact
or lossy as declared, how far the logits move, and held-out loss before and after the edit.

Exact means: max |Δlogit| at most 2e-6 of max |logit| in fp32, and 1e-12 in fp64. The blueprints are those of the tests'
Hypothesis strategies, with all kinds and fields.

    python benchmarks/operators.py [--quick] [--blueprints 200]

B sequences, T tokens, V vocabulary
"""

import argparse
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from rich.console import Console
from rich.table import Table
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from morphogen.blueprint.schema import Blueprint
from morphogen.data.mixture import Mixture
from morphogen.data.prepare import prepare
from morphogen.experiment import Data, Train
from morphogen.inherit import inherit
from morphogen.network import assemble, build
from morphogen.parts.base import OPERATORS
from morphogen.training.loop import Trainer
from morphogen.variation.operator import apply_operator
from strategies import blueprints

BOUND, BOUND_FP64 = 2e-6, 1e-12
STEPS, SEQ_LEN, BATCH = 40, 64, 16
State = dict[str, torch.Tensor]


def drawn(count: int) -> list[Blueprint]:
    """Random blueprints, the same every time."""
    found: list[Blueprint] = []

    @seed(0)
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(blueprint=blueprints(vocab=None))
    def collect(blueprint: Blueprint) -> None:
        found.append(blueprint)

    collect()
    return found


def logits(blueprint: Blueprint, state: State, ids_BT: torch.Tensor) -> torch.Tensor:
    """(B, T, V), without gradients or dropout."""
    with torch.no_grad():
        return assemble(blueprint, state).eval()(ids_BT)


def loss(logits_BTV: torch.Tensor, targets_BT: torch.Tensor) -> float:
    """Nats per token."""
    return float(F.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten()))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blueprints", type=int, default=200)
    parser.add_argument("--quick", action="store_true", help="20 blueprints")
    options = parser.parse_args()
    torch.set_num_threads(1)
    prepared = prepare(Data(tokenizer="bytes", seq_len=SEQ_LEN, batch_size=BATCH))
    mixture = Mixture(prepared, 0)
    held_out = next(iter(mixture.eval_batches(prepared.eval_shards[0].name, SEQ_LEN * BATCH)))
    ids_BT, targets_BT = (torch.from_numpy(x.copy()) for x in (held_out.ids[:, :-1], held_out.ids[:, 1:]))
    rows: dict[str, list[tuple[bool, float, float, float, float]]] = defaultdict(list)
    total = 0
    for number, bare in enumerate(drawn(20 if options.quick else options.blueprints)):
        blueprint, total = bare.with_vocab(prepared.vocab_size), total + 1
        model = build(blueprint, seed=number)
        trainer = Trainer(model, Train(warmup=5), total_steps=STEPS, tokens_per_step=SEQ_LEN * BATCH, seed=number)
        trainer.run(mixture.batch, STEPS)
        state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        wide = {name: tensor.double() for name, tensor in state.items()}
        before_BTV, before_wide_BTV = logits(blueprint, state, ids_BT), logits(blueprint, wide, ids_BT)
        for name in sorted(OPERATORS):
            made = apply_operator(blueprint, name, np.random.default_rng([number, len(name)]))
            if made is None:
                continue
            child, edit = made
            after_BTV = logits(child, inherit(child, [(blueprint, state)], seed=number)[0], ids_BT)
            after_wide_BTV = logits(child, inherit(child, [(blueprint, wide)], seed=number)[0], ids_BT)
            jump = float((after_BTV - before_BTV).abs().max() / before_BTV.abs().max())
            jump_wide = float((after_wide_BTV - before_wide_BTV).abs().max() / before_wide_BTV.abs().max())
            rows[name].append(
                (edit.preserves, jump, jump_wide, loss(before_BTV, targets_BT), loss(after_BTV, targets_BT))
            )
    table = Table(title=f"{total} random blueprints, {STEPS} training steps each")
    for column in (
        "operator",
        "applies",
        "exact",
        "lossy",
        "exact: max Δ fp32",
        "fp64",
        "beyond bound",
        "lossy: median Δ",
        "loss before",
        "after",
    ):
        table.add_column(column, justify="left" if column == "operator" else "right")
    beyond = 0
    for name in sorted(OPERATORS):
        exact, lossy = [r for r in rows[name] if r[0]], [r for r in rows[name] if not r[0]]
        outside = sum(r[1] > BOUND or r[2] > BOUND_FP64 for r in exact)
        beyond += outside
        table.add_row(
            name,
            f"{len(rows[name]) / total:.0%}",
            str(len(exact)),
            str(len(lossy)),
            f"{max(r[1] for r in exact):.1e}" if exact else "",
            f"{max(r[2] for r in exact):.1e}" if exact else "",
            str(outside) if exact else "",
            f"{np.median([r[1] for r in lossy]):.1e}" if lossy else "",
            f"{np.mean([r[3] for r in rows[name]]):.3f}" if rows[name] else "",
            f"{np.mean([r[4] for r in rows[name]]):.3f}" if rows[name] else "",
        )
    Console(width=150).print(table)
    claims = sum(r[0] for found in rows.values() for r in found)
    print(f"{claims} exact claims, {beyond} beyond the bound (2e-6 in fp32, 1e-12 in fp64)")


if __name__ == "__main__":
    main()
