"""Splicing a child of about 100 M parameters from its parent's checkpoint, against loading that checkpoint.

Each figure is the least of several fresh processes: seconds from the file, which the system holds in memory, to a model
all of whose weights were read once, and the peak of resident memory (a mapped file counts). Three loads to compare:
`mapped` maps the file and checks nothing (safetensors' `load_file`), `checked` is morphogen's, which reads the checksum
too, `copying` reads the file into memory of its own (safetensors' `load`), as one does without mapping.

    python benchmarks/splice.py [--quick] [--repeats 3]
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import load, load_file

from morphogen.blueprint.schema import Blueprint
from morphogen.blueprint.tensors import parameter_count
from morphogen.candidate import Candidate, Edit, Job, ParentRef
from morphogen.inherit.checkpoint import load_checkpoint, save_checkpoint
from morphogen.inherit.descent import splice_job
from morphogen.network import assemble, initial_state
from morphogen.variation.crossover import crossover
from morphogen.variation.operator import edit

LOADS = ("mapped load", "checked load", "copying load")
OPERATORS = (
    "untie_head", "widen_ffn", "add_heads", "duplicate_block", "insert_block", "dense_to_moe", "delete_block",
    "toggle_parallel", "change_norm", "widen_dim", "narrow_dim",
)  # fmt: skip
CROSSOVER = "crossover"


def parent(dim: int, blocks: int, vocab: int, hidden: int) -> Blueprint:
    """A plain stack; `hidden` differs between the two parents of a crossover."""
    attn = {"kind": "GQA", "heads": dim // 64, "head_dim": 64, "kv_groups": 1}
    block = {"attn": attn, "ffn": {"kind": "dense", "hidden": hidden}}
    return Blueprint.model_validate({"emb": {"dim": dim, "vocab": vocab}, "blocks": [block] * blocks})


def measure(task: str, folder: Path, blueprints: list[Blueprint]) -> dict[str, float]:
    """One task in this process: seconds, peak MB, parameters."""
    first = folder / "p0.safetensors"
    if task == CROSSOVER:
        made = crossover(blueprints[0], blueprints[1], np.random.default_rng(0))
        assert made is not None
        child, edits = made
    elif task in LOADS:
        child, edits = blueprints[0], ()
    else:
        child, changed = edit(blueprints[0], task, 0)
        edits = (changed,)
    job = job_of(folder, child, edits, blueprints[: 2 if task == CROSSOVER else 1])
    started = time.perf_counter()
    if task == "mapped load":
        state = load_file(first)
    elif task == "checked load":
        state = load_checkpoint(first)[0]
    elif task == "copying load":
        state = load(first.read_bytes())
    else:
        state = splice_job(job, 0).state
    model = assemble(child, state)
    total = sum(float(tensor.sum()) for tensor in model.state_dict().values())
    assert np.isfinite(total)
    seconds = time.perf_counter() - started
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {"seconds": seconds, "peak": int(status["VmHWM"].split()[0]) / 1024, "params": parameter_count(child)}


def job_of(folder: Path, child: Blueprint, edits: tuple[Edit, ...], parents: list[Blueprint]) -> Job:
    """What a run would hand to a worker."""
    refs = tuple(
        ParentRef(id=f"p{i}", blueprint=each.to_json(), checkpoint=f"p{i}.safetensors")
        for i, each in enumerate(parents)
    )
    candidate = Candidate(id="c", index=1, generation=1, blueprint=child.to_json(), edits=edits)
    where = {"run_dir": str(folder), "device": "cpu"}
    return Job(experiment={}, candidate=candidate, parents=refs, ancestors=(), stages=(), seed=0, **where)


def main() -> None:
    """Print the table; with `--task`, one figure as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="6 M parameters, one repeat")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--task", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    size = (256, 6, 4096) if options.quick else (768, 12, 16384)
    blueprints = [parent(*size, hidden) for hidden in (size[0] * 8 // 3, size[0] * 2)]
    if options.task:
        print(json.dumps(measure(options.task, Path(options.folder), blueprints)))
        return
    table = Table(title="from the checkpoint's file to a child whose weights have all been read")
    for column in ("task", "M params", "seconds", *(f"to {name}" for name in LOADS), "peak MB"):
        table.add_column(column, justify="left" if column == "task" else "right")
    with tempfile.TemporaryDirectory() as folder:
        for i, blueprint in enumerate(blueprints):
            save_checkpoint(Path(folder) / f"p{i}.safetensors", initial_state(blueprint, i), blueprint, {})
        found: dict[str, dict[str, float]] = {}
        for task in (*LOADS, *OPERATORS, CROSSOVER):
            runs = [run(task, folder, options.quick) for _ in range(1 if options.quick else options.repeats)]
            found[task] = {name: min(each[name] for each in runs) for name in runs[0]}
    for task, each in found.items():
        ratios = (f"{each['seconds'] / base:.2f}" for base in (found[name]["seconds"] for name in LOADS))
        table.add_row(task, f"{each['params'] / 1e6:.1f}", f"{each['seconds']:.2f}", *ratios, f"{each['peak']:.0f}")
    Console(width=110).print(table)


def run(task: str, folder: str, quick: bool) -> dict[str, float]:
    """The task in a process of its own."""
    command = [sys.executable, __file__, "--task", task, "--folder", folder, *(["--quick"] if quick else [])]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


if __name__ == "__main__":
    main()
