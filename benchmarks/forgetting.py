"""What a model forgets of a first text while it learns a second one, with each means against forgetting and with none.

Trained on prose (the running Python's documentation topics), then on code (its library), with equal steps; loss on
held-out parts of both, in nats per byte, means and standard errors over seeds. The two models called wider also grow by
half of their hidden units when the second text begins: one with no means, one that freezes what is old.

    python benchmarks/forgetting.py [--quick]
"""

import argparse
import copy
import statistics
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

import texts
from morphogen.blueprint.schema import Blueprint
from morphogen.experiment import Train
from morphogen.inherit.descent import Moments
from morphogen.inherit.plan import plan
from morphogen.inherit.splice import from_parent, splice
from morphogen.network import LanguageModel, assemble, build
from morphogen.training.anchored import Anchoring
from morphogen.training.trainer import Trainer

DIM, LAYERS, HIDDEN, WIDER = 64, 2, 128, 192
LENGTH = 128
BATCH_TOKENS = texts.BATCH * LENGTH
batch, held_out = partial(texts.batch, LENGTH), partial(texts.held_out, LENGTH)
#: That are kept to rehearse from.
TOKENS = 16_384
#: The byte that begins what the model samples itself.
FIRST = ord("\n")
FREEZE: dict[str, Any] = {"freeze_expand_tune": {"freeze_steps": 100, "tune_steps": 20}}
MEANS: dict[str, tuple[bool, dict[str, Any]]] = {
    "none": (False, {}),
    "rehearsal of data, 25 %": (False, {"rehearsal": {"share": 0.25, "buffer_tokens": TOKENS}}),
    "rehearsal of generations, 25 %": (
        False,
        {"rehearsal": {"share": 0.25, "buffer_tokens": TOKENS, "source": "generations"}},
    ),
    "self-distillation, forward": (False, {"self_distillation": {"weight": 1.0, "decay": 0.999}}),
    "self-distillation, reverse": (
        False,
        {"self_distillation": {"weight": 1.0, "decay": 0.999, "direction": "reverse"}},
    ),
    "rehearsal of data and self-distillation": (
        False,
        {"rehearsal": {"share": 0.25, "buffer_tokens": TOKENS}, "self_distillation": {"weight": 1.0, "decay": 0.999}},
    ),
    "wider, none": (True, {}),
    "wider, frozen for half of it": (True, FREEZE),
}


class Trained(NamedTuple):
    """A model after the first text: weights, moments, and the sequences that it rehearses from."""

    state: dict[str, torch.Tensor]
    moments: dict[str, dict[str, torch.Tensor]]
    rows: list[NDArray[np.int64]]


def blueprint(hidden: int = HIDDEN) -> Blueprint:
    """Attention and a feed-forward layer in every block."""
    block = {"attn": {"kind": "MHA", "heads": 2, "head_dim": 32}, "ffn": {"kind": "dense", "hidden": hidden}}
    return Blueprint.model_validate({"emb": {"dim": DIM, "vocab": 256}, "blocks": [block] * LAYERS})


def corpora() -> dict[str, NDArray[np.int64]]:
    """The bytes of prose and of code."""
    prose = "\n".join(topics[name] for name in sorted(topics)).encode()
    files = sorted(Path(statistics.__file__).parent.glob("*.py"))[::10]
    code = b"".join(file.read_bytes()[:40_000] for file in files)
    return {
        name: np.frombuffer(raw[:600_000], dtype=np.uint8).astype(np.int64)
        for name, raw in (("prose", prose), ("code", code))
    }


def first(prose: NDArray[np.int64], steps: int, seed: int) -> Trained:
    """Trained on the first text."""
    section = Train.model_validate({"anchoring": {"rehearsal": {"share": 0.01, "buffer_tokens": TOKENS}}})
    trainer = Trainer(build(blueprint(), seed), section, total_steps=steps, tokens_per_step=BATCH_TOKENS, seed=seed)
    anchoring = Anchoring(section.anchoring, trainer, seq_len=LENGTH, seed=seed, end_of_text=FIRST)
    trainer.run(anchoring.batches(lambda step: batch(prose, seed, step)), steps)
    assert anchoring.rehearsal is not None
    return Trained(dict(trainer.model.state_dict()), trainer.updater.moments(), anchoring.rehearsal.buffer.rows)


def second(
    start: Trained, code: NDArray[np.int64], steps: int, seed: int, wider: bool, anchors: Mapping[str, Any]
) -> LanguageModel:
    """Trained on the second text from there on."""
    after = blueprint(WIDER if wider else HIDDEN)
    start = copy.deepcopy(start)
    spliced = splice(plan(after, [blueprint()]), [from_parent(start.state, 0, start.moments)], seed)
    train = Train.model_validate({"anchoring": anchors})
    moments = Moments.carried(spliced)
    trainer = Trainer(
        assemble(after, spliced.state),
        train,
        total_steps=steps,
        tokens_per_step=BATCH_TOKENS,
        seed=seed + 100,
        moments=moments,
        earlier_steps=steps,
    )
    anchoring = Anchoring(train.anchoring, trainer, seq_len=LENGTH, seed=seed, end_of_text=FIRST)
    if anchoring.rehearsal is not None and anchoring.rehearsal.takes_in:
        anchoring.rehearsal.buffer.restore(start.rows, len(start.rows))
        anchoring.rehearsal.takes_in = False  # what is rehearsed is the first text alone
    anchoring.begin(None, new=moments.fresh)
    trainer.run(anchoring.batches(lambda step: batch(code, seed + 100, step)), steps)
    return trainer.model


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Loss on a first text after training on a second.")
    parser.add_argument("--quick", action="store_true", help="one seed")
    seeds = (0,) if parser.parse_args().quick else (0, 1, 2)
    torch.set_num_threads(1)
    steps, both = 200, corpora()
    found: dict[str, list[tuple[float, float]]] = {"before": []}
    for seed in seeds:
        start = first(both["prose"], steps, seed)
        model = assemble(blueprint(), copy.deepcopy(start.state))
        found["before"].append((held_out(model, both["prose"]), held_out(model, both["code"])))
        for name, (wider, anchors) in MEANS.items():
            model = second(start, both["code"], steps, seed, wider, anchors)
            found.setdefault(name, []).append((held_out(model, both["prose"]), held_out(model, both["code"])))
    print(f"{steps} steps on prose, then {steps} on code; {len(seeds)} seeds; nats per byte, held out")
    print(f"{'':<42}{'prose':>16}{'code':>16}")
    for name, figures in found.items():
        cells = [_shown(list(column)) for column in zip(*figures, strict=True)]
        print(f"{name:<42}{cells[0]:>16}{cells[1]:>16}")


def _shown(values: list[float]) -> str:
    """Mean and standard error."""
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return f"{statistics.fmean(values):.3f} ± {error:.3f}"


if __name__ == "__main__":
    main()
