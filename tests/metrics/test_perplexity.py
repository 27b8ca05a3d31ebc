"""Held-out loss against a model whose probabilities are known."""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from morphogen.data.mixture import FEW_DOCUMENTS, EvalBatch, Mixture
from morphogen.data.prepare import prepare
from morphogen.errors import DivergedError, InputError
from morphogen.estimates import Estimate, ratio
from morphogen.experiment import Data, Shard, Split
from morphogen.metrics.perplexity import Score, evaluate, held_out, score_batches, shard_metrics


class Constant(nn.Module):
    """Predicts the same distribution everywhere."""

    def __init__(self, probabilities_V: list[float]) -> None:
        super().__init__()
        self.logits_V = nn.Parameter(torch.tensor(probabilities_V).log())

    def forward(self, ids_BT: Tensor) -> Tensor:
        return self.logits_V.expand(*ids_BT.shape, -1)


def batches(*rows: list[int], n_bytes: int) -> Iterator[EvalBatch]:
    yield EvalBatch(np.array(rows, dtype=np.int64), n_bytes)


def test_nats_tokens_and_bytes_of_known_probabilities() -> None:
    model = Constant([0.5, 0.25, 0.25])
    (score,) = score_batches(model, batches([2, 0, 0, 1], [1, 1, 2, 0], n_bytes=4))
    assert score.nats == pytest.approx(3 * math.log(2) + 3 * math.log(4))
    assert (score.tokens, score.n_bytes) == (6, 4)
    assert score.bpb == pytest.approx((3 * 1 + 3 * 2) / 4)
    assert score.ppl == pytest.approx(2**1.5)


def test_the_model_stays_in_its_mode() -> None:
    model = Constant([0.5, 0.5])
    for mode in (True, False):
        model.train(mode)
        score_batches(model, batches([0, 1], n_bytes=1))
        assert model.training is mode


def test_metrics_are_per_shard_and_their_means() -> None:
    half = Score(math.log(2) * 10, 10, 5)
    scores = {"a": [half, half], "b": [Score(math.log(8) * 6, 6, 6)]}
    metrics = shard_metrics(scores, {"a": 1.0, "b": 1.0})
    assert metrics["ppl_a"] == pytest.approx(2)
    assert metrics["bpb_a"] == pytest.approx(2)
    assert metrics["ppl_b"] == pytest.approx(8)
    assert metrics["bpb_b"] == pytest.approx(3)
    assert metrics["ppl"] == pytest.approx(5)
    assert metrics["bpb"] == pytest.approx(2.5)
    weighted = shard_metrics(scores, {"a": 3.0, "b": 1.0})
    assert weighted["ppl"] == pytest.approx((3 * 2 + 8) / 4)
    assert weighted["bpb"] == pytest.approx((3 * 2 + 3) / 4)
    assert weighted["bpb_a"] == metrics["bpb_a"]


@pytest.mark.parametrize("nats", [math.nan, math.inf, 1e6])
def test_a_loss_without_a_perplexity_is_an_error(nats: float) -> None:
    with pytest.raises(DivergedError, match="gives no perplexity"):
        shard_metrics({"a": [Score(nats, 10, 10)]}, {"a": 1.0})


@pytest.fixture
def mixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Mixture:
    monkeypatch.setenv("MORPHOGEN_CACHE", str(tmp_path / "cache"))
    text = tmp_path / "text"
    text.mkdir()
    for k in range(80):
        (text / f"{k}.txt").write_text(f"{k} " + "abcdefghij" * 20)
    split = Split(train=0.5, eval=0.3)
    return Mixture(prepare(Data(shards=(Shard(source=str(text)),), split=split, seq_len=16, batch_size=4)), seed=0)


def test_uniform_predictions_cost_log_v_per_token_on_real_batches(mixture: Mixture) -> None:
    vocab = mixture.prepared.vocab_size
    (shard,) = mixture.prepared.eval_shards
    metrics = evaluate(Constant([1 / vocab] * vocab), mixture, eval_tokens=10**9)
    assert metrics["ppl"] == pytest.approx(vocab, rel=1e-5)
    tokens = shard.windows("eval", 16) * 16
    n_bytes = sum(batch.n_bytes for batch in mixture.eval_batches(shard.name, 10**9))
    assert metrics[f"bpb_{shard.name}"] == pytest.approx(math.log2(vocab) * tokens / n_bytes, rel=1e-5)


def test_a_smaller_measurement_is_the_head_of_a_larger_one(mixture: Mixture) -> None:
    model = Constant([1 / 257] * 257)
    whole, head = (held_out(model, mixture, 10**9, limit_batches=limit) for limit in (None, 2))
    (name,) = whole
    assert len(whole[name]) > 2
    assert head[name] == whole[name][:2]


def test_no_eval_batches_is_an_error_and_never_perplexity_one(mixture: Mixture) -> None:
    with pytest.raises(InputError, match="got 0 batches"):
        evaluate(Constant([1 / 257] * 257), mixture, eval_tokens=1000, limit_batches=0)
    with pytest.raises(InputError, match="got 0 batches"):
        shard_metrics({"a": []}, {"a": 1.0})


def test_the_parts_of_a_score_are_its_documents(mixture: Mixture) -> None:
    """What each costs adds up to the whole, and the error of bits per byte is that of a ratio over them."""
    torch.manual_seed(0)
    model = Constant(torch.rand(257).softmax(0).tolist())
    (scores,) = held_out(model, mixture, 10**9).values()
    whole = sum(scores[1:], scores[0])
    assert whole.parts is not None
    parts = whole.parts.merged()
    (shard,) = mixture.prepared.eval_shards
    assert FEW_DOCUMENTS <= len(parts.part_P) <= shard.files["eval"].documents
    assert parts.nats_P.sum() == pytest.approx(whole.nats)
    assert (parts.tokens_P.sum(), parts.bytes_P.sum()) == (whole.tokens, whole.n_bytes)
    assert isinstance(whole.bpb, Estimate)
    wanted = ratio(parts.nats_P, parts.bytes_P)
    assert whole.bpb == pytest.approx(wanted / math.log(2.0))
    assert whole.bpb.influence_U == pytest.approx(wanted.influence_U / math.log(2.0))
    assert whole.bpb.influence_U.sum() == pytest.approx(0.0, abs=1e-9)


def test_of_few_documents_the_parts_are_sequences(mixture: Mixture) -> None:
    (scores,) = held_out(Constant([1 / 257] * 257), mixture, 8 * mixture.prepared.seq_len).values()
    whole = sum(scores[1:], scores[0])
    assert whole.parts is not None
    assert set(whole.parts.merged().tokens_P) == {float(mixture.prepared.seq_len)}
