"""Recall against models whose answers are known."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from morphogen.data.probes import Probe
from morphogen.errors import DivergedError
from morphogen.estimates import Estimate, standard_error
from morphogen.metrics.recall import SEQUENCES, recall

PROBE = Probe(size=4, weight=0.0, seq_len=47, vocab_size=40)


class Answering(nn.Module):
    """Reads the pairs and gives logits by a rule: (the right value, distance in tokens) to logits_V."""

    def __init__(self, rule: Callable[[int, int], Tensor]) -> None:
        super().__init__()
        self.rule = rule
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, ids_BT: Tensor) -> Tensor:
        logits_BTV = torch.zeros(*ids_BT.shape, 40)
        for b, row in enumerate(ids_BT.tolist()):
            for k in range(4):
                at = row.index(row[2 * k], 8)
                logits_BTV[b, at] = self.rule(row[2 * k + 1], at - 2 * k)
        return logits_BTV


def certain(value: int, nats: float = 30.0) -> Tensor:
    return nats * nn.functional.one_hot(torch.tensor(value), 40).float()


def test_one_that_knows_all_and_one_that_knows_which_half() -> None:
    known = recall(Answering(lambda value, _: certain(value)), PROBE, batch_size=10)
    assert known["long_recall"] == 1.0
    assert known["recall_nll"] == pytest.approx(0.0, abs=1e-9)
    upper_V = torch.where(torch.arange(40) < 20, -math.inf, 0.0)
    guess = recall(Answering(lambda *_: upper_V), PROBE, batch_size=10)
    assert guess["recall_nll"] == pytest.approx(-math.log(guess["recall_chance"]))
    assert guess["recall_chance"] == 1 / 20
    assert guess["long_recall"] == pytest.approx(1 / 20, abs=0.06)


def test_every_bucket_of_distances_weighs_the_same() -> None:
    near = recall(Answering(lambda value, distance: certain(value if distance < 32 else 0)), PROBE, batch_size=64)
    distances = np.concatenate([PROBE.sequence(2, k).distance for k in range(SEQUENCES)])
    buckets = {int(math.log2(d)) for d in distances.tolist()}
    assert buckets == {1, 2, 3, 4, 5}
    assert near["long_recall"] == pytest.approx(4 / 5)
    assert (distances < 32).mean() > 0.85


def test_the_batch_size_changes_nothing_and_the_mode_is_kept() -> None:
    model = Answering(lambda value, distance: certain((value + distance % 3) % 40, 2.0)).train()
    assert recall(model, PROBE, batch_size=7) == pytest.approx(recall(model, PROBE, batch_size=64))
    assert model.training


def test_a_loss_that_is_not_finite_is_an_error() -> None:
    with pytest.raises(DivergedError, match="probe:mqar is nan"):
        recall(Answering(lambda *_: torch.full((40,), math.nan)), PROBE, batch_size=64)


def test_the_error_of_recall_is_that_over_sequences() -> None:
    """Of questions that are answered by chance alone the error is the binomial's, or about."""
    generator = torch.Generator().manual_seed(0)
    half = recall(Answering(lambda *_: torch.rand(40, generator=generator)), PROBE, batch_size=64)
    found = half["long_recall"]
    assert isinstance(found, Estimate)
    assert len(found.influence_U) == SEQUENCES
    questions = SEQUENCES * PROBE.size
    least = math.sqrt(found * (1.0 - found) / questions)
    assert least * 0.8 < (standard_error(found.influence_U) or 0.0) < least * 3.0  # buckets are of unequal size
    assert found.influence_U.sum() == pytest.approx(0.0, abs=1e-9)
