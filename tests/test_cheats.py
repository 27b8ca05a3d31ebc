"""Cheats, planted one by one: each is caught by a check that passes without it.

They are the ones that have been found in searches before this one: text that is trained on and measured on, nothing
measured at all, recall reckoned from the blueprint, more training for one kind of layer, an auxiliary loss that no
gradient flows through, a block that sees the future.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from morphogen.blueprint.schema import Blueprint
from morphogen.data import store
from morphogen.data.mixture import EvalBatch, Mixture
from morphogen.data.prepare import prepare
from morphogen.errors import InputError
from morphogen.experiment import Data
from morphogen.metrics import perplexity, probing, recall
from morphogen.metrics.measuring import Measure, Subject
from morphogen.network import LanguageModel, build
from morphogen.parts.contract.branch import Record, State
from morphogen.parts.mixing.short_conv_layer import ShortConvBranch
from morphogen.run import evolve, load
from morphogen.testing.contract import output_shape_no_future_and_no_neighbour
from morphogen.training.trial import Trial
from strategies import VOCAB as TESTED
from tiny import write_config, write_corpus

pytestmark = pytest.mark.usefixtures("own_cache")

VOCAB = 257
RETRO = {"kind": "retro", "memory_tokens": 4, "stride": 4, "heads": 1, "head_dim": 4}


def blueprint(**block: Any) -> Blueprint:
    return Blueprint.model_validate({"emb": {"dim": 8, "vocab": VOCAB}, "blocks": [block]})


def text(folder: Path, documents: int = 40) -> Data:
    """The same documents in two places, of which one has one more; and a probe."""
    both = [{"source": str(write_corpus(folder / str(n), n))} for n in (documents, documents + 1)]
    split = {"train": 0.6, "eval": 0.2}
    plain = {"tokenizer": "bytes", "seq_len": 32, "batch_size": 4, "split": split, "shards": both}
    return Data.model_validate({**plain, "eval_shards": [*both, {"source": "probe:mqar:4"}]})


def test_text_that_is_trained_on_and_measured_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(text(tmp_path))
    drawn = count()
    monkeypatch.setattr(store, "split_of", lambda digest, split: ("train", "train", "eval")[next(drawn) % 3])
    with pytest.raises(InputError, match=r"documents stand in a training and a held-out split"):
        prepare(text(tmp_path, 43))


def test_nothing_measured_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mixture = Mixture(prepare(text(tmp_path)), seed=0)
    model = build(blueprint(ffn={"kind": "dense", "hidden": 8}), seed=0)
    assert perplexity.evaluate(model, mixture, 64)["ppl"] > 100
    nothing: Iterator[EvalBatch] = iter(())
    monkeypatch.setattr(Mixture, "eval_batches", lambda *_, **__: nothing)
    with pytest.raises(InputError, match="got 0 batches of its eval split, expected at least one"):
        perplexity.evaluate(model, mixture, 64)


def depends_on_weights(measure: Measure, mixture: Mixture) -> None:
    """A measured figure is another one with other weights, and the same for two blueprints that compute the same."""
    plain, more = (
        blueprint(ffn={"kind": "dense", "hidden": 8}),
        blueprint(ffn={"kind": "dense", "hidden": 8}, extras=[RETRO]),
    )
    one, other, same = build(plain, seed=0), build(plain, seed=1), build(more, seed=0)
    with torch.no_grad():  # the memory says nothing
        state = {name: tensor for name, tensor in one.state_dict().items() if name in same.state_dict()}
        same.load_state_dict(state, strict=False)
        for name, tensor in same.named_parameters():
            if ".extras." in name and name.endswith("o.weight"):
                tensor.zero_()

    def figures(model: LanguageModel) -> Mapping[str, float]:
        return measure(Subject(model, torch.device("cpu"), mixture, 256, False, [1.0], [1.0], {}))

    first, second, third = figures(one), figures(other), figures(same)
    for name, value in first.items():
        assert third[name] == pytest.approx(value, abs=1e-6), f"{name} depends on the blueprint alone"
    assert any(second[name] != value for name, value in first.items()), "no figure depends on the weights"


def test_recall_from_the_blueprint(tmp_path: Path) -> None:
    mixture = Mixture(prepare(text(tmp_path)), seed=0)

    def reckoned(subject: Subject) -> dict[str, float]:
        return {"long_recall": 0.2 * sum(bool(block.extras) for block in subject.model.blueprint.blocks)}

    for measure in (recall.probe_recall, probing.probes):
        depends_on_weights(measure, mixture)
    with pytest.raises(AssertionError, match="long_recall depends on the blueprint alone"):
        depends_on_weights(reckoned, mixture)


def equal_budgets(folder: Path) -> None:
    """The same experiment with another kind of layer trains on as many tokens, and no batch is read that is not told
    of."""
    own, read = {}, Counter[str]()
    batch = Mixture.batch
    for kind in ("{kind: MHA, heads: 2, head_dim: 8}", "{kind: LINEAR, heads: 2, head_dim: 8}"):

        def counted(mixture: Mixture, step: int, kind: str = kind) -> Any:
            found = batch(mixture, step)
            read[kind] += found[:, 1:].size
            return found

        (folder / kind[7:10]).mkdir()
        path = write_config(folder / kind[7:10], **{"{kind: MHA, heads: 2, head_dim: 8}": kind})
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Mixture, "batch", counted)
            run = evolve(load(path), folder / kind[7:10] / "run", generations=0)
        own[kind] = run.lineage.nodes[0].tokens.own
    assert len(set(own.values())) == 1, f"budgets differ: {own}"
    assert own == read, f"told {own}, but read {dict(read)}"


def test_a_budget_inflated_for_one_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fair").mkdir()
    equal_budgets(tmp_path / "fair")
    train = Trial._train

    def favoured(trial: Trial, until_step: int, progress: Any) -> Any:
        linear = trial.assignment.blueprint.blocks[0].attn
        more = 2 if linear is not None and linear.label == "LINEAR" else 1
        return train(trial, more * until_step, progress)

    monkeypatch.setattr(Trial, "_train", favoured)
    (tmp_path / "unfair").mkdir()
    with pytest.raises(AssertionError, match="budgets differ"):
        equal_budgets(tmp_path / "unfair")


def test_a_batch_that_is_not_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train = Trial._train

    def hidden(trial: Trial, until_step: int, progress: Any) -> Any:
        trial.trainer.run(trial.mixture.batch, 1, None)
        trial.trainer.step = 0
        return train(trial, until_step, progress)

    monkeypatch.setattr(Trial, "_train", hidden)
    with pytest.raises(AssertionError, match="but read"):
        equal_budgets(tmp_path)


def balance_reaches_the_router() -> None:
    """A step on the load-balance loss alone moves the router."""
    model = build(blueprint(ffn={"kind": "moe", "hidden": 8, "n_experts": 4, "balance": 1.0}), seed=0).train()
    with model.recording() as record:
        model(torch.arange(64).reshape(2, 32))
    loss = record.loss({"balance": 1.0})
    assert loss is not None
    assert loss.requires_grad, "no gradient flows through the auxiliary loss"
    loss.backward()
    (router,) = [tensor for name, tensor in model.named_parameters() if "router" in name and tensor.ndim == 2]
    assert router.grad is not None
    assert float(router.grad.abs().max()) > 0.0


def test_a_detached_auxiliary_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    balance_reaches_the_router()
    add: Callable[[Record, str, torch.Tensor], None] = Record.add_loss
    monkeypatch.setattr(Record, "add_loss", lambda record, name, loss: add(record, name, loss.detach()))
    with pytest.raises(AssertionError, match="no gradient flows through the auxiliary loss"):
        balance_reaches_the_router()


def sees_no_future(name: str) -> None:
    """name: of its model; what one of a name computes is remembered."""
    made = Blueprint.model_validate(
        {"name": name, "emb": {"dim": 8, "vocab": TESTED}, "blocks": [{"extras": [{"kind": "short_conv"}]}]}
    )

    @settings(max_examples=3, derandomize=True, database=None, suppress_health_check=list(HealthCheck), deadline=None)
    @given(data=st.data())
    def run(data: st.DataObject) -> None:
        output_shape_no_future_and_no_neighbour(made, data)

    run()


def test_a_block_that_sees_the_future(monkeypatch: pytest.MonkeyPatch) -> None:
    sees_no_future("honest")
    mix = ShortConvBranch.mix_on

    def peeking(branch: ShortConvBranch, x_BTD: torch.Tensor, state: State) -> torch.Tensor:
        return mix(branch, x_BTD + 1e-2 * x_BTD.mean(1, keepdim=True), state)

    monkeypatch.setattr(ShortConvBranch, "mix_on", peeking)
    with pytest.raises(AssertionError, match="a branch sees the future"):
        sees_no_future("peeking")
