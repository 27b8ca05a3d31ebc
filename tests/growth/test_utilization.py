"""How much a model uses its layers: a number in [0, 1] that says what taking a layer away would cost."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from morphogen.blueprint.schema import Blueprint
from morphogen.blueprint.triggers import UtilizationTrigger
from morphogen.experiment import Train
from morphogen.growth.triggers import SAMPLES, samples
from morphogen.growth.utilization import Uses, Watch, normalised, removal
from morphogen.network import LanguageModel, build
from morphogen.ops.cross_entropy import cross_entropy
from morphogen.training.growing import Growing
from morphogen.training.trainer import Trainer

SEQ, BATCH, LAYERS = 48, 8, 8
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


def model_of(seed: int, trained: int, steps: int) -> Trainer:
    """A model of several layers that was trained a little, and may be trained on for so many steps."""
    block = {"attn": {"kind": "MHA", "heads": 2, "head_dim": 16}, "ffn": {"kind": "dense", "hidden": 64}}
    blueprint = Blueprint.model_validate({"emb": {"dim": 32, "vocab": 256}, "blocks": [block] * LAYERS})
    train = Train.model_validate({"lr": 3e-3, "warmup": 10})
    total = trained + steps
    trainer = Trainer(build(blueprint, seed), train, total_steps=total, tokens_per_step=SEQ * BATCH, seed=seed)
    trainer.run(lambda step: batch(1000 * seed + step), trained)
    return trainer


@pytest.fixture(scope="module")
def trained() -> Trainer:
    return model_of(0, 80, WINDOW)


#: Steps over which the gradient is averaged where a few have to do.
WINDOW = 40


def measured(trainer: Trainer, window: int, seed: int = 0) -> dict[str, float]:
    """Utilization by gradient over so many further steps."""
    uses = Uses("gradient", window)
    while uses.values is None:
        watch = Watch(trainer.model, "gradient")
        with watch.open():
            trainer.run(lambda step: batch(1000 * seed + step), trainer.step + 1)
        uses.add(watch.scores())
    return uses.values


def correlation(one: dict[str, float], other: dict[str, float]) -> float:
    """Of ranks."""
    return float(spearmanr([one[block] for block in other], list(other.values()))[0])


def by_removal(trainer: Trainer) -> list[dict[str, float]]:
    """Utilization by removal as a training measures it, of four held batches: on a few of their sequences."""
    found = []
    for seed in range(4):
        uses = Uses("removal", UtilizationTrigger().window)
        Growing(trainer, held_BT1=batch(7 * 10**5 + seed), seed=0).measure(uses)
        assert uses.values is not None
        found.append(uses.values)
    return found


def test_utilization_ranks_layers_as_their_removal_does_on_much_text(trained: Trainer) -> None:
    used = measured(trained, WINDOW)
    lost, removed = removal(trained.model, held_loss), by_removal(trained)
    for values in (used, *removed):
        assert all(0.0 <= value <= 1.0 for value in values.values())
        assert max(values.values()) == 1.0
    assert np.mean([correlation(values, lost) for values in removed]) >= 0.7
    assert correlation(used, lost) >= 0.5
    assert normalised(lost)[max(lost, key=lost.__getitem__)] == 1.0


def test_removal_is_measured_on_as_much_text_as_the_window_affords(trained: Trainer) -> None:
    growing = Growing(trained, held_BT1=batch(0), seed=0)
    rows = list[int]()

    def loss(model: LanguageModel, count: int) -> float:
        rows.append(count)
        return 1.0

    growing._held_loss = loss
    for window in (2, 20, 100, 1000):
        growing.measure(Uses("removal", window))
    # a step is 24 passes of a sequence, and each sequence takes LAYERS + 1 of them
    assert rows == [count for count in (1, 1, 4, BATCH) for _ in range(LAYERS + 1)]


@pytest.mark.slow
def test_over_six_seeds_utilization_ranks_layers_as_their_removal_does() -> None:
    by: dict[str, list[float]] = {"removal": [], "gradient": []}
    for seed in range(6):
        trainer = model_of(seed, 150, SAMPLES)
        used = measured(trainer, SAMPLES, seed)
        lost = removal(trainer.model, held_loss)
        by["gradient"].append(correlation(used, lost))
        by["removal"].append(float(np.mean([correlation(values, lost) for values in by_removal(trainer)])))
    print({measure: np.round(ranks, 2).tolist() for measure, ranks in by.items()})
    assert min(by["removal"]) >= 0.7
    assert np.mean(by["gradient"]) >= 0.7


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
    assert [step for step in range(6) if uses.due(step)] == [0, 1, 2, 3, 4, 5]
    assert [step for step in range(12) if Uses("gradient", 4 * SAMPLES).due(step)] == [3, 7, 11]
    assert uses.values is None
    for k in range(45):
        uses.add({"a": float(k), "b": 2.0, "c": -1.0})
    mean = sum(range(5, 45)) / 40
    assert uses.values == pytest.approx({"a": 1.0, "b": 2.0 / mean, "c": 0.0})
    assert Uses.from_state("gradient", 40, uses.state()).values == uses.values
    for window in (2, 19, 99, 101, 150, 1050):  # a window is full when so many steps have been measured, or nearly
        each = samples("gradient", window)
        assert 0.95 * window <= each * (window // each) <= window
    uses.forget()
    assert (uses.values, uses.so_far) == (None, {})
    assert normalised({"a": 0.0, "b": 0.0}) == {"a": 0.0, "b": 0.0}
    assert not math.isnan(sum(normalised({"a": -1.0}).values()))
