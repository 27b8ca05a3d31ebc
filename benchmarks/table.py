"""A table of small language models, each trained once from scratch, to try rules of search on in seconds.

`make` draws blueprints, a tree of random edits of one root, trains every one on the same batches, and writes what was
measured to benchmarks/data/table.json. It goes on where it was stopped. `show` prints the ten best.

    python benchmarks/table.py [make|show] [--entries 300] [--minutes 45]
"""

import argparse
import hashlib
import json
import time
from collections.abc import Collection, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from morphogen.analysis.trials import Trial, Workshop, run_trials
from morphogen.blueprint.diff import digest
from morphogen.blueprint.encoding import encoded
from morphogen.blueprint.schema import Blueprint
from morphogen.candidate import Candidate, Edit, Status, stream
from morphogen.cost import Step, costs
from morphogen.experiment import Experiment
from morphogen.run import settle
from morphogen.search.space import Design
from morphogen.store.files import write_atomic
from morphogen.variation.operator import mutate

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "benchmarks" / "data" / "table.json"
#: Of a training, in steps, and of all that an entry may have.
STEPS, MOST_PARAMS, MOST_BLOCKS = 80, 400_000, 4
#: Entries that an edit may lead to besides those that it led to when the table was made.
NEAREST = 8
COSTS = ("params", "flops_per_token", "kv_bytes_per_token", "train_memory_bytes")


def experiment() -> Experiment:
    """The root and how it is trained."""
    attn = {"kind": "MHA", "heads": 4, "head_dim": 12, "alibi": True}
    block = {"attn": attn, "ffn": {"kind": "dense", "hidden": 192, "activation": "gelu"}}
    return Experiment.model_validate(
        {
            "model": {"name": "table", "emb": {"dim": 48}, "norm": "layernorm", "blocks": [block, block]},
            "train": {"lr": 8e-3, "warmup": 5},
            "data": {
                "tokenizer": {"kind": "bpe", "vocab": 512},
                "seq_len": 64,
                "batch_size": 16,
                "shards": [{"source": "stdlib-code"}],
                "eval_tokens": 16384,
            },
        }
    )


def drawn(root: Blueprint, count: int, seq_len: int) -> list[tuple[int, Blueprint]]:
    """Blueprints with the number of the one that each was edited from (-1 for the root): a random tree, in which every
    entry is one or two edits from one before it."""
    found, seen = [(-1, root)], {digest(root)}
    for draw in range(100 * count):
        if len(found) == count:
            break
        rng = stream(0, draw, "table")
        parent = int(rng.integers(len(found)))
        child = mutate(found[parent][1], rng, 2, {}).child
        known = costs(child, seq_len)
        if known["params"] <= MOST_PARAMS and known["layers"] <= MOST_BLOCKS and digest(child) not in seen:
            seen.add(digest(child))
            found.append((parent, child))
    return found


def make(entries: int, minutes: float) -> None:
    """Trains what is missing and writes the table of what there is."""
    torch.set_num_threads(1)
    settled, prepared = settle(experiment())
    folder = ROOT / "runs" / "table"
    folder.mkdir(parents=True, exist_ok=True)
    shop = Workshop(folder, settled, prepared)
    deadline, rows = time.monotonic() + 60.0 * minutes, []
    for number, (parent, blueprint) in enumerate(drawn(settled.model, entries, settled.data.seq_len)):
        if time.monotonic() > deadline:
            break
        design, tokens = Design(blueprint, settled.train), STEPS * prepared.tokens_per_step
        (report,) = run_trials(shop, [Trial(f"entry {number}", design, 0, tokens)])
        known = costs(blueprint, settled.data.seq_len, Step.of(settled.train, settled.data.batch_size))
        rows.append(
            {
                "parent": parent,
                "bpb": round(report.metrics["bpb"], 5) if report.status is Status.TRAINED else None,
                **{name: known[name] for name in COSTS},
                "blueprint": _brief(blueprint.to_json(), blueprint.model_dump(mode="json", exclude_defaults=True)),
            }
        )
        if number % 10 == 9:
            print(f"{number + 1} entries", flush=True)
            _write(rows)
    _write(rows)


def _brief(full: Any, short: Any) -> Any:
    """What differs from the defaults, and every kind."""
    if isinstance(full, dict):
        return {name: _brief(full[name], short.get(name)) for name in full if name in short or name == "kind"}
    if isinstance(full, list):
        return [_brief(one, other) for one, other in zip(full, short, strict=True)]
    return full


def _write(rows: list[dict]) -> None:
    lines = ",\n".join(json.dumps(row, separators=(",", ":")) for row in rows)
    TABLE.parent.mkdir(exist_ok=True)
    write_atomic(TABLE, f"[\n{lines}\n]\n".encode())


class Table:
    """The table as a space to search: genomes are numbers of entries. An edit leads to an entry that is linked to the
    parent's: by an edit when the table was made, or as one of its nearest by their encodings. Two entries cross to the
    one nearest to the middle between them."""

    objectives = ("bpb", "flops_per_token", "train_memory_bytes")

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self._rows = rows
        self._features = [encoded(Blueprint.model_validate(row["blueprint"])) for row in rows]
        names = sorted(set().union(*self._features))
        X_nf = np.array([[found.get(name, 0.0) for name in names] for found in self._features])
        spread_f = X_nf.max(axis=0) - X_nf.min(axis=0)
        self._X_nf = (X_nf - X_nf.min(axis=0)) / np.where(spread_f > 0.0, spread_f, 1.0)
        apart_nn = np.linalg.norm(self._X_nf[:, None] - self._X_nf[None], axis=2)
        near_nk = np.argsort(apart_nn, axis=1, kind="stable")[:, 1 : NEAREST + 1]
        self._links = [set(near.tolist()) for near in near_nk]
        for i, row in enumerate(rows):
            if row["parent"] >= 0:
                self._links[i].add(row["parent"])
                self._links[row["parent"]].add(i)

    @classmethod
    @cache
    def read(cls) -> "Table":
        """From the file."""
        return cls(json.loads(TABLE.read_text()))

    def __len__(self) -> int:
        return len(self._rows)

    def figures(self) -> np.ndarray:
        """The objectives of every entry that could be trained."""
        return np.array([[row[name] for name in self.objectives] for row in self._rows if row["bpb"] is not None])

    def measure(self, genome: int) -> dict[str, float]:
        """What was measured; nothing where training failed."""
        bpb = self._rows[genome]["bpb"]
        return {} if bpb is None else {"bpb": bpb}

    def founders(self, rng: np.random.Generator) -> tuple[int, ...]:
        """The root."""
        return (0,)

    def record(self, genome: int) -> dict[str, Any]:
        """In place of a blueprint, its number."""
        return {"blueprint": {"entry": genome}}

    def load(self, candidate: Candidate) -> int:
        """From a record."""
        return int(candidate.blueprint["entry"])

    def digest(self, genome: int) -> str:
        """Of its number."""
        return hashlib.sha256(str(genome).encode()).hexdigest()

    def key(self, genome: int) -> str:
        """Its number."""
        return str(genome)

    def costs(self, genome: int) -> dict[str, float]:
        """As computed when the table was made."""
        return {name: self._rows[genome][name] for name in COSTS}

    def mutate(self, genome: int, rng: np.random.Generator) -> tuple[int, tuple[Edit, ...]] | None:
        """One or two links away."""
        entry = genome
        for _ in range(int(rng.integers(1, 3))):
            entry = int(rng.choice(sorted(self._links[entry])))
        return None if entry == genome else (entry, (Edit(operator="link", target="table", preserves=False),))

    def crossover(self, first: int, second: int, rng: np.random.Generator) -> tuple[int, tuple[Edit, ...]] | None:
        """The entry nearest to a point between the two that is neither."""
        share = rng.uniform(0.25, 0.75)
        middle_f = share * self._X_nf[first] + (1.0 - share) * self._X_nf[second]
        for entry in np.argsort(np.linalg.norm(self._X_nf - middle_f, axis=1), kind="stable")[:3].tolist():
            if entry not in (first, second):
                return entry, (Edit(operator="between", target="table", preserves=False),)
        return None

    def traits(self, genome: int) -> np.ndarray:
        """Its encoding."""
        return self._X_nf[genome]

    def distance(self, first: np.ndarray, second: np.ndarray) -> float:
        """Euclidean."""
        return float(np.linalg.norm(first - second))

    def features(self, genome: int) -> dict[str, float]:
        """Its encoding, by name."""
        return self._features[genome]

    def after(self, newborn: Sequence[Candidate], survivors: Collection[str]) -> "Table":
        """The same."""
        return self


def main() -> None:
    """Reads the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["make", "show"], nargs="?", default="show")
    parser.add_argument("--entries", type=int, default=300)
    parser.add_argument("--minutes", type=float, default=45.0, help="no training is begun after so many")
    options = parser.parse_args()
    if options.command == "make":
        make(options.entries, options.minutes)
    for row in sorted(json.loads(TABLE.read_text()), key=lambda row: row["bpb"] or np.inf)[:10]:
        print(*(f"{name} {row[name]:.5g}" for name in ("bpb", *COSTS)))


if __name__ == "__main__":
    main()
