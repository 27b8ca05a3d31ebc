"""How much a model uses its layers: a number in [0, 1] that says what taking a layer away would cost."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from morphogen.blueprint.schema import Blueprint
from morphogen.experiment import Train
from morphogen.growth.triggers import SAMPLES
from morphogen.growth.utilization import Uses, Watch, normalised, removal
from morphogen.network import LanguageModel, build
from morphogen.ops.cross_entropy import cross_entropy
from morphogen.training.trainer import Trainer

SEQ, BATCH, LAYERS, STEPS = 48, 8, 8, 150
SENTENCE = (
    "the old grey cat sat by a door and a young red fox ran over that hill while some slow green river went on past "
    "every small house where many quiet people sleep but nobody ever saw how it began or why"
)
WORDS = SENTENCE.split()


def text(words: int = 40_000) -> np.ndarray:
    """Bytes of a language in which every word is followed by one of three."""
    rng = np.random.default_rng(0)
    follow = rng.integers(len(WORDS), size=(len(WORDS), 3))
    ids = [0]
    for _ in range(words):
        ids.append(int(follow[ids[-1]][rng.integers(3)]))
    return np.frombuffer(" ".join(WORDS[i] for i in ids).encode(), dtype=np.uint8).astype(np.int64)


TEXT = text()


def batch(step: int, rows: int = BATCH) -> np.ndarray:
    starts = np.random.default_rng(step).integers(len(TEXT) - SEQ - 1, size=rows)
    return np.stack([TEXT[start : start + SEQ + 1] for start in starts])


HELD = torch.from_numpy(batch(10**6, 64))


@torch.no_grad()
def held_loss(model: LanguageModel) -> float:
    return float(cross_entropy(model(HELD[:, :-1]).flatten(0, 1), HELD[:, 1:].flatten()).mean())


@pytest.fixture(scope="module")
def trained() -> Trainer:
    """A model of several layers that was trained a little."""
    block = {"attn": {"kind": "MHA", "heads": 2, "head_dim": 16}, "ffn": {"kind": "dense", "hidden": 64}}
    model = build(Blueprint.model_validate({"emb": {"dim": 32, "vocab": 256}, "blocks": [block] * LAYERS}), seed=0)
    train = Train.model_validate({"lr": 3e-3, "warmup": 10})
    trainer = Trainer(model, train, total_steps=STEPS + 2 * SAMPLES, tokens_per_step=SEQ * BATCH, seed=0)
    trainer.run(batch, STEPS)
    return trainer


def measured(trainer: Trainer, measure: str) -> dict[str, float]:
    uses = Uses(measure, SAMPLES)
    while uses.values is None:
        watch = Watch(trainer.model, measure)
        with watch.open():
            trainer.run(batch, trainer.step + 1)
        uses.add(watch.scores())
    return uses.values


def test_the_gradient_ranks_layers_as_their_removal_does(trained: Trainer) -> None:
    lost = removal(trained.model, held_loss)
    used = measured(trained, "gradient")
    assert all(0.0 <= value <= 1.0 for value in used.values())
    assert max(used.values()) == 1.0
    assert spearmanr([used[block] for block in lost], list(lost.values()))[0] >= 0.7
    assert normalised(lost)[max(lost, key=lost.__getitem__)] == 1.0


@pytest.mark.parametrize("measure", ["gradient", "removal", "activation"])
def test_a_layer_that_does_nothing_is_not_used(trained: Trainer, measure: str) -> None:
    model = trained.model
    with torch.no_grad():
        for name, parameter in model.blocks[5].named_parameters():
            if name.endswith(("o.weight", "down.weight")):
                parameter.zero_()
    assert torch.equal(model.blocks[5](x := torch.randn(1, 3, 32)), x)
    if measure == "removal":
        used = normalised(removal(model, held_loss))
    else:
        watch = Watch(model, measure)
        with watch.open():
            logits_BTV = model(HELD[:8, :-1])
            cross_entropy(logits_BTV.flatten(0, 1), HELD[:8, 1:].flatten()).mean().backward()
        model.zero_grad()
        used = normalised(watch.scores())
    assert used["b5"] < 0.05
    assert sum(value > 0.05 for value in used.values()) >= 2


def test_a_window_rolls_and_survives_a_restart() -> None:
    uses = Uses("gradient", 40)
    assert [step for step in range(12) if uses.due(step)] == [3, 7, 11]
    assert uses.values is None
    for k in range(SAMPLES + 5):
        uses.add({"a": float(k), "b": 2.0, "c": -1.0})
    mean = sum(range(5, SAMPLES + 5)) / SAMPLES
    assert uses.values == pytest.approx({"a": 1.0, "b": 2.0 / mean, "c": 0.0})
    assert Uses.from_state("gradient", 40, uses.state()).values == uses.values
    uses.forget()
    assert (uses.values, uses.so_far) == (None, {})
    assert normalised({"a": 0.0, "b": 0.0}) == {"a": 0.0, "b": 0.0}
    assert not math.isnan(sum(normalised({"a": -1.0}).values()))
