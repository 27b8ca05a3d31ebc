"""10,000 random edits over 200 random blueprints of all kinds, trained a little on real text.

Counts what must not be: invalid children, unchanged children, tensors unaccounted for (each of the child's stands in
the plan once, each of the parent's is read or reported as dropped), claims of exactness that the logits break. Exact
means: max |Δlogit| at most 2e-6 of max |logit| in fp32, or 8 times what fp32 loses in the parent itself, and 1e-12 in
fp64.

The table has one row per operator: held-out loss after the splice less the parent's, and the same where tensors are
copied if name and shape match, and drawn afresh if not.

    python benchmarks/edits.py [--quick] [--blueprints 200] [--edits 10000] [--keep FILE]

B sequences, T tokens, V vocabulary
"""

import argparse
import json
import math
import sys
from collections import Counter, defaultdict
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from rich.console import Console
from rich.table import Table
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from morphogen.blueprint.diff import apply
from morphogen.blueprint.schema import Blueprint
from morphogen.blueprint.tensors import specs
from morphogen.candidate import Edit, Inheritance
from morphogen.data.mixture import Mixture
from morphogen.data.prepare import prepare
from morphogen.experiment import Data, Train
from morphogen.inherit.descent import inherit
from morphogen.inherit.plan import Plan, plan
from morphogen.network import assemble, build, initial_state
from morphogen.parts.contract.operator import OPERATORS
from morphogen.training.trainer import Trainer
from morphogen.variation.act import identity, trained
from morphogen.variation.operator import apply_operator
from strategies import blueprints

BOUND, BOUND_FP64, ROUNDINGS = 2e-6, 1e-12, 8
STEPS, SEQ_LEN, BATCH, JUDGED = 25, 64, 16, 4
SETTINGS = Train(warmup=5)
State = dict[str, torch.Tensor]


FAULTS = (
    "invalid children",
    "unchanged children",
    "tensors unaccounted for",
    "operator and splice disagree on exactness",
    "exact claims beyond the bound",
)


@dataclass(frozen=True)
class Outcome:
    """One edit of one blueprint. jump, jump_fp64: max |Δlogit| over max |logit|; the latter of exact edits only. loss,
    naive: nats per byte above the parent's. faults: how many of each of FAULTS."""

    blueprint: int
    operator: str
    target: str
    exact: bool
    jump: float
    jump_fp64: float
    loss: float
    naive: float
    faults: tuple[int, ...]


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


def apart(a: torch.Tensor, b: torch.Tensor) -> float:
    """max |a − b| over max |b|."""
    return float((a - b).abs().max() / b.abs().max())


def naive(child: Blueprint, parent: State, number: int) -> State:
    """What one gets by copying where name and shape match."""
    fresh = initial_state(child, number)
    return {n: parent[n] if n in parent and parent[n].shape == x.shape else x for n, x in fresh.items()}


def unaccounted(child: Blueprint, parent: Blueprint, made: Plan, report: Inheritance) -> int:
    """Tensors of the child that are not in the plan once, and of the parent that are not either read or dropped."""
    planned = Counter(item.tensor for item in made.tensors)
    wrong = sum(planned[name] != 1 for name in specs(child)) + len(planned.keys() - specs(child).keys())
    read = {item.source for item in made.tensors if item.source is not None and not item.clear}
    read |= {source for item in made.derived for source in item.sources}
    read -= {item.name for item in made.derived}
    gone = {item.tensor for item in made.dropped}
    wrong += len(read & gone) + len(specs(parent).keys() ^ (read | gone))
    entries = sum(math.prod(spec.shape) for _, _, spec in specs(child).values())
    return wrong + (report.inherited + report.resized + report.fresh != entries)


def descend(blueprint: Blueprint, state: State, whole: Edit, number: int) -> tuple[State, bool, int]:
    """The child's weights, step by step where the edit is a compound one; whether all were exact; what is unaccounted
    for."""
    exact, lost = True, 0
    for step in whole.single():
        child = apply(blueprint, step.changes)
        made, (state, report) = plan(child, [blueprint]), inherit(child, [(blueprint, state)], seed=number)
        exact, lost, blueprint = exact and report.exact, lost + unaccounted(child, blueprint, made, report), child
    return state, exact, lost


def edited(number: int, blueprint: Blueprint, mixture: Mixture, edits: int) -> list[Outcome]:
    """Train the blueprint a little, then edit it so many times, each time anew."""
    held_out = next(iter(mixture.eval_batches(mixture.prepared.eval_shards[0].name, SEQ_LEN * BATCH)))
    ids_BT, targets_BT = (torch.from_numpy(x[:JUDGED].copy()) for x in (held_out.ids[:, :-1], held_out.ids[:, 1:]))
    rng, names = np.random.default_rng([0, number]), sorted(OPERATORS)
    model = build(blueprint, seed=number)
    trainer = Trainer(model, SETTINGS, total_steps=STEPS, tokens_per_step=SEQ_LEN * BATCH, seed=number)
    trainer.run(mixture.batch, STEPS)
    state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    wide = {name: tensor.double() for name, tensor in state.items()}
    before_BTV, wide_BTV = logits(blueprint, state, ids_BT), logits(blueprint, wide, ids_BT)
    allowed, parent_loss = max(BOUND, ROUNDINGS * apart(before_BTV.double(), wide_BTV)), loss(before_BTV, targets_BT)
    outcomes: list[Outcome] = []
    while len(outcomes) < edits:
        name = names[int(rng.integers(len(names)))]
        made = apply_operator(blueprint, name, rng)
        if made is None:
            continue
        child, edit = made
        child_state, exact, lost = descend(blueprint, state, edit, number)
        after_BTV = logits(child, child_state, ids_BT)
        jump, jump_fp64 = apart(after_BTV, before_BTV), 0.0
        if edit.preserves:
            spliced, _, _ = descend(blueprint, wide, edit, number)
            jump_fp64 = apart(logits(child, spliced, ids_BT), wide_BTV)
        copied_BTV = logits(child, naive(child, state, number), ids_BT)
        faults = (
            Blueprint.model_validate(child.to_json()) != child or not bool(after_BTV.isfinite().all()),
            identity(child, trained(SETTINGS, (edit,))) == identity(blueprint, SETTINGS),
            lost,
            edit.preserves != exact,
            edit.preserves and (jump > allowed or jump_fp64 > BOUND_FP64),
        )
        gains = loss(after_BTV, targets_BT) - parent_loss, loss(copied_BTV, targets_BT) - parent_loss
        counts = tuple(int(fault) for fault in faults)
        outcomes.append(Outcome(number, name, edit.target, edit.preserves, jump, jump_fp64, *gains, counts))
    return outcomes


def main() -> None:
    """Print the counts and the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blueprints", type=int, default=200)
    parser.add_argument("--edits", type=int, default=10_000)
    parser.add_argument("--quick", action="store_true", help="10 blueprints, 200 edits")
    parser.add_argument("--keep", type=Path, help="a file for what was found; a second run goes on where one stopped")
    options = parser.parse_args()
    count, edits = (10, 200) if options.quick else (options.blueprints, options.edits)
    torch.set_num_threads(1)
    prepared = prepare(Data(tokenizer="bytes", seq_len=SEQ_LEN, batch_size=BATCH))
    mixture = Mixture(prepared, 0)
    found: list[Outcome] = []
    if options.keep and options.keep.exists():
        found = [Outcome(*values) for line in options.keep.read_text().splitlines() for values in json.loads(line)]
    known = {outcome.blueprint for outcome in found}
    for number, bare in enumerate(drawn(count)):
        if number in known:
            continue
        share = edits * (number + 1) // count - edits * number // count
        outcomes = edited(number, bare.with_vocab(prepared.vocab_size), mixture, share)
        found += outcomes
        if options.keep:
            with options.keep.open("a") as file:
                file.write(json.dumps([astuple(outcome) for outcome in outcomes]) + "\n")
    show(found)
    print(f"{len(found)} edits over {count} blueprints, {sum(o.exact for o in found)} of them claimed exact")
    for i, fault in enumerate(FAULTS):
        guilty = [outcome for outcome in found if outcome.faults[i]]
        print(f"{fault}: {sum(outcome.faults[i] for outcome in guilty)}")
        for outcome in guilty[:3]:
            print(f"    {outcome}")


def show(found: list[Outcome]) -> None:
    """One row per operator, and the sums over the lossy and over all."""
    rows: dict[str, list[Outcome]] = defaultdict(list)
    for outcome in found:
        rows[outcome.operator].append(outcome)
    table = Table(title="held-out loss after the splice less the parent's, nats per byte")
    for column in ("operator", "edits", "exact", "max Δ fp32", "fp64", "mean", "median", "naive mean", "naive median"):
        table.add_column(column, justify="left" if column == "operator" else "right")

    def add(name: str, chosen: list[Outcome]) -> None:
        exact = [o for o in chosen if o.exact]
        table.add_row(
            name,
            str(len(chosen)),
            str(len(exact)),
            f"{max(o.jump for o in exact):.1e}" if exact else "",
            f"{max(o.jump_fp64 for o in exact):.1e}" if exact else "",
            *(
                f"{f([getattr(o, field) for o in chosen]):+.3f}"
                for field in ("loss", "naive")
                for f in (np.mean, np.median)
            ),
        )

    for name in sorted(rows):
        add(name, rows[name])
    table.add_section()
    for name, chosen in (
        ("exact", [o for o in found if o.exact]),
        ("lossy", [o for o in found if not o.exact]),
        ("all", found),
    ):
        if chosen:
            add(name, chosen)
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
