"""10,000 random edits over 200 random blueprints of all kinds, trained a little on real text.

Counts what must not be: invalid children, unchanged children, tensors unaccounted for (each of the child's stands in
the plan once, each of the parent's is read or reported as dropped), claims of exactness that the logits break. Exact
means: max |Δlogit| at most 2e-6 of max |logit| in fp32, or 8 times what fp32 loses in the parent itself, and 1e-12 in
fp64.

The table has one row per operator: held-out loss after the splice less the parent's, and the same where tensors are
copied if name and shape match, and drawn afresh if not.

    python benchmarks/edits.py [--quick] [--blueprints 200] [--edits 10000]

B sequences, T tokens, V vocabulary
"""

import argparse
import math
import sys
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from rich.console import Console
from rich.table import Table
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from morphogen.blueprint.diff import digest
from morphogen.blueprint.schema import Blueprint
from morphogen.candidate import Inheritance
from morphogen.data.mixture import Mixture
from morphogen.data.prepare import prepare
from morphogen.experiment import Data, Train
from morphogen.inherit import Plan, inherit, plan
from morphogen.network import assemble, build, initial_state, specs
from morphogen.parts.base import OPERATORS
from morphogen.training.loop import Trainer
from morphogen.variation.operator import apply_operator
from strategies import blueprints

BOUND, BOUND_FP64, ROUNDINGS = 2e-6, 1e-12, 8
STEPS, SEQ_LEN, BATCH, JUDGED = 40, 64, 16, 8
State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Outcome:
    """One edit. jump, jump_fp64: max |Δlogit| over max |logit|; the latter of exact edits only. loss, naive: nats per
    token above the parent's."""

    exact: bool
    jump: float
    jump_fp64: float
    loss: float
    naive: float


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


def main() -> None:
    """Print the counts and the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blueprints", type=int, default=200)
    parser.add_argument("--edits", type=int, default=10_000)
    parser.add_argument("--quick", action="store_true", help="10 blueprints, 200 edits")
    options = parser.parse_args()
    count, edits = (10, 200) if options.quick else (options.blueprints, options.edits)
    torch.set_num_threads(1)
    prepared = prepare(Data(tokenizer="bytes", seq_len=SEQ_LEN, batch_size=BATCH))
    mixture = Mixture(prepared, 0)
    held_out = next(iter(mixture.eval_batches(prepared.eval_shards[0].name, SEQ_LEN * BATCH)))
    ids_BT, targets_BT = (torch.from_numpy(x[:JUDGED].copy()) for x in (held_out.ids[:, :-1], held_out.ids[:, 1:]))
    rows: dict[str, list[Outcome]] = defaultdict(list)
    wrong: Counter[str] = Counter()
    examples: dict[str, str] = {}
    names = sorted(OPERATORS)
    for number, bare in enumerate(drawn(count)):
        blueprint, rng = bare.with_vocab(prepared.vocab_size), np.random.default_rng([0, number])
        model = build(blueprint, seed=number)
        trainer = Trainer(model, Train(warmup=5), total_steps=STEPS, tokens_per_step=SEQ_LEN * BATCH, seed=number)
        trainer.run(mixture.batch, STEPS)
        state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        wide = {name: tensor.double() for name, tensor in state.items()}
        before_BTV, wide_BTV = logits(blueprint, state, ids_BT), logits(blueprint, wide, ids_BT)
        allowed = max(BOUND, ROUNDINGS * apart(before_BTV.double(), wide_BTV))
        left = edits * (number + 1) // count - edits * number // count
        while left:
            name = names[int(rng.integers(len(names)))]
            made = apply_operator(blueprint, name, rng)
            if made is None:
                continue
            left -= 1
            child, edit = made
            child_state, report = inherit(child, [(blueprint, state)], seed=number)
            after_BTV = logits(child, child_state, ids_BT)
            jump, jump_fp64 = apart(after_BTV, before_BTV), math.nan
            if edit.preserves:
                spliced, _ = inherit(child, [(blueprint, wide)], seed=number)
                jump_fp64 = apart(logits(child, spliced, ids_BT), wide_BTV)
            drawn_up = plan(child, [blueprint])
            faults = {
                "invalid children": Blueprint.model_validate(child.to_json()) != child
                or not after_BTV.isfinite().all(),
                "unchanged children": digest(child) == digest(blueprint),
                "tensors unaccounted for": unaccounted(child, blueprint, drawn_up, report),
                "operator and splice disagree on exactness": edit.preserves != report.exact,
                "exact claims beyond the bound": edit.preserves and (jump > allowed or jump_fp64 > BOUND_FP64),
            }
            for fault, times in faults.items():
                wrong[fault] += int(times)
                if times:
                    examples.setdefault(
                        fault, f"blueprint {number}, {name} at {edit.target}: {jump:.1e}, {jump_fp64:.1e}"
                    )
            copied_BTV = logits(child, naive(child, state, number), ids_BT)
            parent_loss = loss(before_BTV, targets_BT)
            gains = loss(after_BTV, targets_BT) - parent_loss, loss(copied_BTV, targets_BT) - parent_loss
            rows[name].append(Outcome(edit.preserves, jump, jump_fp64, *gains))
    show(rows)
    done = [outcome for found in rows.values() for outcome in found]
    print(f"{len(done)} edits over {count} blueprints, {sum(o.exact for o in done)} of them claimed exact")
    for fault, times in wrong.items():
        print(f"{fault}: {times}" + (f", first at {examples[fault]}" if times else ""))


def show(rows: dict[str, list[Outcome]]) -> None:
    """One row per operator, and the sums over the lossy and over all."""
    table = Table(title="held-out loss after the splice less the parent's, nats per byte")
    for column in ("operator", "edits", "exact", "max Δ fp32", "fp64", "mean", "median", "naive mean", "naive median"):
        table.add_column(column, justify="left" if column == "operator" else "right")

    def add(name: str, found: list[Outcome]) -> None:
        exact = [o for o in found if o.exact]
        table.add_row(
            name,
            str(len(found)),
            str(len(exact)),
            f"{max(o.jump for o in exact):.1e}" if exact else "",
            f"{max(o.jump_fp64 for o in exact):.1e}" if exact else "",
            *(
                f"{f([getattr(o, field) for o in found]):+.3f}"
                for field in ("loss", "naive")
                for f in (np.mean, np.median)
            ),
        )

    for name in sorted(rows):
        add(name, rows[name])
    everything = [outcome for found in rows.values() for outcome in found]
    table.add_section()
    for name, chosen in (
        ("exact", [o for o in everything if o.exact]),
        ("lossy", [o for o in everything if not o.exact]),
        ("all", everything),
    ):
        if chosen:
            add(name, chosen)
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
