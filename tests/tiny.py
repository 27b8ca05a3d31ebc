"""An experiment that trains in milliseconds, and runs of it."""

import importlib.util
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

#: Runs a command of the command line: (exit code, stdout, stderr).
Cli = Callable[..., tuple[int, str, str]]

CONFIG = """\
model:
  name: tiny
  emb: {dim: 16}
  blocks:
    - attn: {kind: MHA, heads: 2, head_dim: 8}
      ffn: {kind: dense, hidden: 32}
train: {lr: 0.01, warmup: 1, instability_threshold: 1000.0}
data:
  tokenizer: bytes
  seq_len: 32
  batch_size: 4
  split: {train: 0.6, eval: 0.2}
  shards: [{source: CORPUS}]
  eval_tokens: 128
evolution: {generations: 2, population: 3, topk_keep: 2, survivors: rest, rung1_tokens: 128, rung2_tokens: 256}
"""


def write_corpus(folder: Path, documents: int = 40) -> Path:
    """A folder of small distinct documents."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(0)
    for i in range(documents):
        words = " ".join(rng.choice(["alpha", "beta", "gamma", "delta", "epsilon", "zeta"]) for _ in range(40))
        (folder / f"{i:03}.txt").write_text(f"{i} {words}\n")
    return folder


def write_config(folder: Path, **replace: str) -> Path:
    """The experiment file, over a corpus beside it; `replace` maps old text to new (keys with _ for spaces are not)."""
    text = CONFIG.replace("CORPUS", str(write_corpus(folder / "corpus")))
    for old, new in replace.items():
        assert old in text
        text = text.replace(old, new)
    path = folder / "tiny.yaml"
    path.write_text(text)
    return path


def run_live() -> Any:
    """`scripts/run_live.py` as a module."""
    path = Path(__file__).parent.parent / "scripts" / "run_live.py"
    spec = importlib.util.spec_from_file_location("run_live", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def untimed(path: Path) -> Any:
    """A JSON file of a run without what depends on the clock."""

    def strip(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: strip(item) for name, item in value.items() if name != "timed"}
        return [strip(item) for item in value] if isinstance(value, list) else value

    return strip(json.loads(path.read_bytes()))


def events(folder: Path) -> list[dict[str, Any]]:
    """A run's ledger without what depends on the clock, and without the marks of interruptions."""
    from morphogen.store.ledger import Ledger, Stop

    with Ledger.open(folder, readonly=True) as ledger:
        kept = [event.model_dump(mode="json") for event in ledger.events() if not isinstance(event, Stop)]
    for event in kept:
        if event["kind"] == "report":
            event["report"]["timed"] = {}
    return kept
