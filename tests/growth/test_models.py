"""Models grown by hand, and copied or pickled at any time."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch

import morphogen as mg
from morphogen.blueprint.schema import Blueprint
from morphogen.errors import InputError, OperatorError
from morphogen.growth.surgery import max_delta
from morphogen.network import LanguageModel, assemble
from morphogen.parts.ffn.moe import MoE
from morphogen.testing.models import ids_of, loss_of, stirred

MIXED = Blueprint.model_validate(
    {
        "emb": {"dim": 16, "vocab": 37},
        "blocks": [
            {"attn": {"kind": "MHA", "heads": 2, "head_dim": 8}, "ffn": {"kind": "dense", "hidden": 16}},
            {"attn": {"kind": "MHA", "heads": 2, "head_dim": 8}, "ffn": {"kind": "moe", "hidden": 8, "n_experts": 4}},
        ],
    }
)


@pytest.fixture
def model() -> LanguageModel:
    return assemble(MIXED, stirred(MIXED))


EXACT: dict[str, Callable[[LanguageModel], LanguageModel]] = {
    "grow_layers": lambda model: model.grow_layers(4),
    "widen": lambda model: model.widen("ffn", 1.5),
    "widen_dim": lambda model: model.widen("dim", 1.5),
    "to_moe": lambda model: model.to_moe(),
    "split_expert": lambda model: model.split_expert("b1", 0),
    "split_twice": lambda model: model.split_expert("b1", 0).split_expert("b1", 0).split_expert("b1", 4),
    "grow_vocabulary": lambda model: model.grow_vocabulary(40),
    "grow": lambda model: mg.grow(model, {"action": "widen", "target": "heads", "factor": 2.0, "blocks": ["b0"]}),
}
LOSSY: dict[str, Callable[[LanguageModel], LanguageModel]] = {
    "stack": lambda model: model.grow_layers(2, how="stack"),
    "prune_expert": lambda model: model.prune_expert("b1", 2),
    "merge_experts": lambda model: model.merge_experts("b1", 0, 3),
    "cross": lambda model: model.grow({"action": "cross_experts", "blend": 0.3}, experts={"b1": (0, 1)}),
}


@pytest.mark.parametrize("name", EXACT)
def test_a_grown_copy_computes_the_same_and_the_model_stays_as_it_was(name: str, model: LanguageModel) -> None:
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    grown = EXACT[name](model.train())
    assert grown.training
    assert grown is not model
    assert sum(p.numel() for p in grown.parameters()) > sum(p.numel() for p in model.parameters())
    delta, size = max_delta(model, grown, ids_of(1))
    assert delta <= 1e-12 * size
    theirs = {p.data_ptr() for p in model.parameters()}
    assert not theirs & {p.data_ptr() for p in grown.parameters()}
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert model.blueprint == MIXED


@pytest.mark.parametrize("name", [*EXACT, "merge_experts"])
def test_what_is_frozen_stays_frozen_wherever_it_goes(name: str, model: LanguageModel) -> None:
    frozen = {"emb.weight", "blocks.1.attn.q.weight", "blocks.1.ffn.up.weight"}
    for each, parameter in model.named_parameters():
        parameter.requires_grad_(each not in frozen)
    grown = {**EXACT, **LOSSY}[name](model)
    last = len(grown.blocks) - 1 if name == "grow_layers" else 1
    places = [block.id for block in grown.blueprint.blocks].index("b1")
    assert {each for each, parameter in grown.named_parameters() if not parameter.requires_grad} == {
        each.replace("blocks.1.", f"blocks.{places}.") for each in frozen
    }
    assert places == last
    assert {each for each, parameter in model.named_parameters() if not parameter.requires_grad} == frozen


@pytest.mark.parametrize("name", LOSSY)
def test_a_lossy_growth_changes_the_logits(name: str, model: LanguageModel) -> None:
    delta, size = max_delta(model, LOSSY[name](model.eval()), ids_of(1))
    assert delta > 1e-4 * size


def test_of_experts_that_merge_the_first_becomes_the_mean(model: LanguageModel) -> None:
    for twin in (False, True):
        before = model.split_expert("b1", 0) if twin else model
        after = before.merge_experts("b1", 0, 4 if twin else 3)
        part = after.blueprint.blocks[1].ffn
        assert isinstance(part, MoE)
        assert part.n_experts == (4 if twin else 3)
        old, new = (each.state_dict()["blocks.1.ffn.up.weight"] for each in (before, after))
        torch.testing.assert_close(new[1:3], old[1:3])
        assert torch.equal(new[0], old[0]) == twin


def test_of_an_expert_that_goes_by_merging_the_nearest_becomes_the_mean(model: LanguageModel) -> None:
    with torch.no_grad():
        for name, stack in model.blocks[1].ffn.named_parameters():
            if name in ("up.weight", "gate.weight", "down.weight"):
                stack[3] = stack[1].flip(0) + 0.05 * stack[3]  # the units in another order, and a little of its own
    asked = {"action": "prune_experts", "chooser": "merge"}
    after = model.grow(asked, experts={"b1": (3,)})
    plain = model.prune_expert("b1", 3)
    old, new, cut = (each.state_dict()["blocks.1.ffn.up.weight"] for each in (model, after, plain))
    torch.testing.assert_close(new[1], (old[1] + old[3].flip(0)) / 2)
    assert torch.equal(new[[0, 2]], old[[0, 2]])
    assert torch.equal(cut, old[:3])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m: m.widen("fnn"), InputError, "target"),
        (lambda m: m.grow({"action": "wide"}), InputError, "wide"),
        (lambda m: m.widen("ffn", 0.5), InputError, "factor"),
        (lambda m: m.widen(blocks=["b7"]), InputError, "widen: block: got 'b7', expected one of b0, b1"),
        (lambda m: m.split_expert("b0", 0), InputError, "block with a mixture of experts: got .b0., expected"),
        (lambda m: m.split_expert("b1", 4), InputError, "got expert 4 of block b1, expected 0 to 3"),
        (lambda m: m.merge_experts("b1", 1, 1), InputError, "the same expert of block b1 twice"),
        (lambda m: m.grow({"action": "merge_experts"}), InputError, "expected two experts"),
        (lambda m: m.grow({"action": "prune_experts"}), InputError, "expected the experts of a block that are to go"),
        (lambda m: m.grow({"action": "prune_experts"}, experts={"b1": ()}), InputError, "experts of a block that"),
        (lambda m: m.grow({"action": "prune_experts", "chooser": "gate_norm"}, experts={"b1": (0,)}), InputError,
         "chooser: gate_norm is measured in training alone"),
        (lambda m: m.grow({"action": "deepen"}, experts={"b1": (0,)}), InputError, "no experts of one's own choice"),
        (lambda m: m.grow_vocabulary(37), OperatorError, "nothing for it to do"),
        (lambda m: m.to_moe().to_moe(), OperatorError, "nothing for it to do"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)  # fmt: skip
def test_what_cannot_be_is_told(call: Any, error: type[Exception], message: str, model: LanguageModel) -> None:
    with pytest.raises(error, match=message):
        call(model)


@pytest.mark.parametrize(
    "way", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["copy", "pickle"]
)
def test_a_model_is_copied_and_pickled_at_any_time(way: Any, model: LanguageModel) -> None:
    for here in (model, model.split_expert("b1", 0), model.grow_layers(2)):
        with here.train().recording():
            loss = loss_of(here, ids_of(2))
            inside = way(here)
        loss.backward()
        for twin in (inside, way(here)):
            assert twin.record is None
            assert all(module.record is None for module in twin.modules() if hasattr(module, "record"))
            assert max_delta(here, twin, ids_of(1))[0] == 0.0
            assert twin.blueprint == here.blueprint
            deeper = twin.grow_layers(1)
            assert max_delta(here, deeper, ids_of(1))[0] == 0.0
        with inside.recording() as record:
            inside(ids_of(1))
        assert record.losses
