"""Layers of other trained models as a branch: exact where it is put in, causal, decodable, frozen where it says so."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from foreign_models import DIM, LAYERS, VOCAB, blueprint, home, ids_of, llama
from morphogen.blueprint.schema import Blueprint
from morphogen.blueprint.tensors import specs
from morphogen.cost import Step, costs
from morphogen.errors import InputError
from morphogen.experiment import Train
from morphogen.inherit.borrowed import DONORS, donors_of, to_metadata
from morphogen.inherit.checkpoint import load_checkpoint, save_checkpoint
from morphogen.inherit.descent import inherit
from morphogen.inherit.plan import plan
from morphogen.inherit.provenance import Provenance
from morphogen.network import LanguageModel, assemble, build, initial_state
from morphogen.parts.foreign.donors.opened import checksum_of, kept_of, shapes_of
from morphogen.parts.foreign.foreign import Foreign
from morphogen.parts.foreign.foreign_layer import ForeignBranch
from morphogen.testing.contract import CHECKS, Check
from morphogen.testing.models import loss_of
from morphogen.training.optimizers import make_updater
from morphogen.training.trainer import Trainer

__all__ = ["home"]


def inserted(home: Path, **fields: Any) -> tuple[Blueprint, dict[str, Tensor]]:
    """A child of a host without extras, and its weights."""
    parent = blueprint(norm=fields.get("norm", "rmsnorm"))
    child = blueprint(home, **fields)
    return child, inherit(child, [(parent, initial_state(parent, 0))])[0]


def writing(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state with everything that started at zero drawn anew."""
    noise = torch.Generator().manual_seed(3)
    return {
        name: torch.randn(x.shape, generator=noise) * 0.3 if x.dim() > 1 and not x.any() else x
        for name, x in state.items()
    }


#: Every adapter, router and way to train, with lanes of equal and of other widths.
WAYS: dict[str, dict[str, Any]] = {
    "linear": {},
    "bottleneck": {"adapter": "bottleneck", "bottleneck": 5},
    "one": {"experts": "b1"},
    "two models": {"experts": "a0 b1 b2", "adapter": "bottleneck"},
    "mean": {"router": "simple", "pooling": "mean", "norm": "layernorm"},
    "max": {"router": "simple", "pooling": "max", "experts": "a0 b1"},
    "attention": {"router": "simple", "pooling": "attention"},
    "top 1": {"router": "token", "top_k": 1, "experts": "a0 b1"},
    "top 2": {"router": "token", "top_k": 2, "noise": 0.1, "experts": "a0 a1 b1"},
    "lora": {"lora": 3, "normed": False},
    "trained": {"freeze": False, "experts": "a0 b0", "norm": "layernorm"},
}


@pytest.mark.parametrize("way", WAYS)
def test_put_in_it_changes_nothing_and_decodes_as_the_whole(home: Path, way: str) -> None:
    parent = blueprint(norm=WAYS[way].get("norm", "rmsnorm"))
    child, state = inserted(home, **WAYS[way])
    assert plan(child, [parent]).exact
    ids_BT = ids_of()
    with torch.no_grad():
        before_BTV = assemble(parent, initial_state(parent, 0)).eval()(ids_BT)
        assert torch.equal(assemble(child, state).eval()(ids_BT), before_BTV)
        model = assemble(child, writing(state)).eval()
        whole_BTV = model(ids_BT)
        assert float((whole_BTV - before_BTV).abs().max()) > 1e-3
        cache: dict[str, dict[str, Tensor]] = {}
        pieces = [model.extend(piece, cache) for piece in ids_BT.split([5, *[1] * 7, 8], 1)]
        changed = ids_BT.clone()
        changed[:, -1] = (changed[:, -1] + 1) % VOCAB
        moved_BTV = model(changed) - whole_BTV
    assert float((torch.cat(pieces, 1) - whole_BTV).abs().max()) <= 1e-4
    assert float(moved_BTV[:, :-1].abs().max()) <= 1e-6
    assert float(moved_BTV[:, -1].abs().max()) > 0


CONTRACT = [check for check in CHECKS if check.__name__ != "yaml_round_trip"]


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("check", CONTRACT, ids=lambda check: check.__name__)
@settings(max_examples=1, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_it_keeps_the_contract_of_every_kind(home: Path, check: Check, way: str, data: st.DataObject) -> None:
    whole = blueprint(home, **WAYS[way])
    extra, *_ = whole.blocks[0].extras
    first = {"id": "probe", "extras": [extra.model_dump(mode="json")]}
    rest = whole.blocks[0].model_dump(mode="json") | {"id": "rest", "extras": []}
    check(Blueprint.model_validate({**whole.to_json(), "blocks": [first, rest]}), data)


def test_all_layers_in_order_are_the_model_that_they_are_from(home: Path) -> None:
    """Not normalised, and read and written by the identity: x + f(x) − x."""
    import transformers

    theirs = transformers.LlamaForCausalLM.from_pretrained(home / "a").eval()
    block = [
        {"extras": [{"kind": "foreign", "normed": False, "experts": [{"model": str(home / "a"), "layer": i}]}]}
        for i in range(LAYERS)
    ]
    head = {"tie_embeddings": False}
    fused = Blueprint.model_validate({"emb": {"dim": DIM, "vocab": VOCAB}, "blocks": block, "head": head})
    state = initial_state(fused, 0)
    own = theirs.state_dict()
    state["emb.weight"], state["head.weight"] = own["model.embed_tokens.weight"], own["lm_head.weight"]
    state["norm.weight"], state["norm.eps"] = own["model.norm.weight"], torch.tensor(theirs.config.rms_norm_eps)
    for name in state:
        if ".write." in name:
            state[name] = torch.eye(DIM) * DIM**0.5
    model = assemble(fused, state).eval()
    ids_BT = ids_of()
    with torch.no_grad():
        assert float((model(ids_BT) - theirs(ids_BT).logits).abs().max()) <= 1e-4
    assert [int(block.extras[0].layers[0].executed) for block in model.blocks] == [1] * LAYERS  # type: ignore[union-attr]


# ------------------------------------------------------------------------------------------------------- training


def trained(model: LanguageModel, steps: int, **train: Any) -> Trainer:
    settings = Train.model_validate({"lr": 1e-2, "warmup": 0, "instability_threshold": 1e9, **train})
    trainer = Trainer(model, settings, total_steps=steps, tokens_per_step=64, seed=0)
    ids_BT = ids_of(17, batch=4).numpy()
    trainer.run(lambda step: ids_BT, steps)
    return trainer


def test_frozen_layers_stay_bit_for_bit_and_what_lies_below_them_trains(home: Path) -> None:
    child, state = inserted(home, router="simple", lora=2)
    kept = {name: x.clone() for name, x in state.items()}
    model = assemble(child, {name: x.clone() for name, x in state.items()})
    trainer = trained(model, 20)
    frozen = [name for name in kept if ".layers." in name]
    assert frozen
    after = model.state_dict()
    assert all(torch.equal(after[name], kept[name]) for name in frozen)
    updated = {id(parameter) for parameter in trainer.updater.parameters}
    assert not any(id(p) in updated for name, p in model.named_parameters() if name in frozen)
    for part in ("emb.weight", "read.0", "read.1", "write.1", "router", "lora_down.0", "lora_up.1"):
        assert all(not torch.equal(after[name], kept[name]) for name in after if part in name and name not in frozen)


def test_a_step_moves_the_output_by_little(home: Path) -> None:
    for adapter in ("linear", "bottleneck"):
        child, state = inserted(home, adapter=adapter, experts="b0 b1")
        model = assemble(child, state).eval()
        with torch.no_grad():
            before_BTV = model(ids_of())
        torch.autograd.backward(loss_of(model, ids_of()))
        own = [p for name, p in model.named_parameters() if "extras" in name and p.requires_grad]
        torch.optim.AdamW(own, lr=1e-4).step()
        with torch.no_grad():
            moved = (model(ids_of()) - before_BTV).norm() / before_BTV.norm()
        assert 0 < float(moved) <= 0.01


def test_adapters_and_routers_have_rates_of_their_own(home: Path) -> None:
    child = blueprint(home, router="token", adapter_lr=0.5, router_lr=3.0)
    model = build(child, seed=0)
    names = {parameter: name for name, parameter in model.named_parameters()}
    updater = make_updater(model, Train(lr=0.01))
    rates = {names[p]: group["lr"] for opt in updater.optimizers for group in opt.param_groups for p in group["params"]}
    prefix = "blocks.0.extras.0"
    assert rates[f"{prefix}.router.weight"] == pytest.approx(0.03)
    assert rates[f"{prefix}.read.1.weight"] == rates[f"{prefix}.write.0.weight"] == pytest.approx(0.005)
    assert rates["emb.weight"] == rates[f"{prefix}.norm.weight"] == 0.01
    assert set(rates) == {name for name, (_, _, spec) in specs(child).items() if spec.trained}


def test_a_router_learns_from_its_losses(home: Path) -> None:
    """Their gradient is there with nothing else, and follows the coefficients."""
    for router in ("simple", "token"):
        model = assemble(*inserted(home, router=router, balance=0.5)).train()
        gradients = []
        for coefficients in ({"balance": 1.0, "router_entropy": 0.0}, {"balance": 2.0, "router_entropy": 0.0},
                             {"balance": 0.0, "router_entropy": -1.0}):  # fmt: skip
            model.zero_grad()
            with model.recording() as record:
                model(ids_of())
            loss = record.loss(coefficients)
            assert loss is not None
            torch.autograd.backward(loss)
            weight = model.get_parameter("blocks.0.extras.0.router.weight")
            assert weight.grad is not None
            gradients.append(weight.grad.clone())
        assert all(bool(gradient.any()) for gradient in gradients)
        assert torch.allclose(gradients[1], 2 * gradients[0], atol=1e-7)
        assert record.means().keys() == {"foreign_router_entropy", "foreign_load_max_over_mean"}


def test_layers_that_come_only_to_run_give_the_same_and_the_same_gradients(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on an accelerator: in the backward pass their weights come again."""
    child, state = inserted(home, lora=2, offload=True)
    found = []
    for comes_and_goes in (False, True):
        monkeypatch.setattr(ForeignBranch, "_comes_and_goes", lambda self, x_BTE, answer=comes_and_goes: answer)
        model = assemble(child, writing(state)).train()
        loss = loss_of(model, ids_of())
        torch.autograd.backward(loss)
        found.append([loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
    assert len(found[0]) == len(found[1])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_offloaded_layers_never_leave_the_hosts_memory(home: Path) -> None:
    child, state = inserted(home, offload=True)
    branch = next(m for m in assemble(child, state).modules() if isinstance(m, ForeignBranch))
    names, before = list(branch.state_dict()), next(branch.layers.parameters()).clone()
    asked = list[int]()

    class Away(torch.Tensor):
        """On a device that is none."""

        device = torch.device("cuda")

    def move(x: Tensor) -> Tensor:
        asked.append(x.numel())
        return x.double().as_subclass(Away) if x.numel() == 0 else x.double()

    branch._apply(move)
    assert max(asked) == max(p.numel() for n, p in branch.named_parameters() if not n.startswith("layers."))
    assert sum(asked) == sum(x.numel() for n, x in branch.state_dict().items() if not n.startswith("layers."))
    assert list(branch.state_dict()) == names
    layer = next(branch.layers.parameters())
    assert (layer.dtype, layer.device.type) == (torch.float64, "cpu")
    assert torch.equal(layer, before.double())


# ------------------------------------------------------------------------------------------------ inheritance


@pytest.mark.parametrize("fields", [{}, {"adapter": "bottleneck"}, {"normed": False}, {"router": "simple"}])
@pytest.mark.parametrize("norm", ["rmsnorm", "layernorm"])
def test_a_wider_host_keeps_the_function_and_the_layers(home: Path, norm: str, fields: dict[str, Any]) -> None:
    parent, child = (blueprint(home, experts="a0 b1", dim=dim, norm=norm, **fields) for dim in (DIM, 22))
    state = writing(initial_state(parent, 0))
    wider, report = inherit(child, [(parent, state)])
    assert report.exact
    with torch.no_grad():
        before_BTV = assemble(parent, state).eval()(ids_of())
        after_BTV = assemble(child, wider).eval()(ids_of())
    assert float((after_BTV - before_BTV).abs().max()) <= 1e-5 * float(before_BTV.abs().max())
    layers = [name for name in state if ".layers." in name]
    assert layers
    assert all(torch.equal(wider[name], state[name]) for name in layers)


@pytest.mark.parametrize(
    ("before", "after", "exact"),
    [
        ({}, {"freeze": False}, True),
        ({}, {"lora": 4}, True),
        ({"lora": 4}, {"lora": 8}, True),
        ({"lora": 8}, {"lora": 4}, False),
        ({"freeze": False}, {"freeze": True}, False),
        ({"adapter": "bottleneck"}, {"adapter": "bottleneck", "bottleneck": 40}, True),
        ({}, {"adapter": "bottleneck"}, False),
        ({}, {"router": "simple"}, False),
        ({"experts": "a0 a1"}, {"experts": "a0 b1"}, False),
        ({"experts": "a0 a1"}, {"experts": "a0"}, False),
        ({"offload": False, "noise": 0.0}, {"offload": True}, True),
        ({}, {"adapter_lr": 0.1, "normed": False}, False),
    ],
)
def test_what_a_change_keeps_is_said_as_it_is(
    home: Path, before: dict[str, Any], after: dict[str, Any], exact: bool
) -> None:
    parent, child = blueprint(home, **before), blueprint(home, **after)
    state = writing(initial_state(parent, 0))
    if "freeze" in before:
        state |= {name: 1.1 * x for name, x in state.items() if ".layers." in name}
    changed, report = inherit(child, [(parent, state)])
    assert report.exact == plan(child, [parent]).exact == exact
    with torch.no_grad():
        one_BTV, other_BTV = (assemble(*of).eval()(ids_of()) for of in ((parent, state), (child, changed)))
    distance = float((one_BTV - other_BTV).abs().max() / one_BTV.abs().max())
    assert distance <= 2e-6 if exact else distance > 1e-5


def test_what_trained_layers_had_learned_is_given_up_when_they_are_frozen(home: Path) -> None:
    parent, child = blueprint(home, freeze=False), blueprint(home)
    state = {name: x + 1 if ".layers." in name else x for name, x in initial_state(parent, 0).items()}
    frozen, report = inherit(child, [(parent, state)])
    assert "what the layers had learned is given up" in " ".join(report.notes)
    fresh = initial_state(child, 0)
    assert all(torch.equal(frozen[name], fresh[name]) for name in fresh if ".layers." in name)


# ---------------------------------------------------------------------------------------------------------- costs


def test_frozen_layers_cost_their_weights_and_no_moments(home: Path) -> None:
    host, frozen, trained_too = (
        costs(b, 32, Step(4)) for b in (blueprint(), blueprint(home), blueprint(home, freeze=False))
    )
    entries = sum(
        int(torch.tensor(shape).prod()) for layer in (0, 2) for shape in shapes_of(str(home / "a"), layer).values()
    )
    assert trained_too["params"] - frozen["params"] == entries
    # moments and averages of every trained entry, nothing but the entry itself of a frozen one; and what each keeps
    kept_too, kept = (
        sum(kept_of(str(home / "a"), layer, 32, trained=trained) for layer in (0, 2)) for trained in (True, False)
    )
    more = 4 * 3 * entries + 4 * 32 * 4 * (kept_too - kept)
    assert trained_too["train_memory_bytes"] - frozen["train_memory_bytes"] == pytest.approx(more)
    assert frozen["flops_per_token"] == trained_too["flops_per_token"] > host["flops_per_token"] + 2 * entries * 0.9
    assert frozen["kv_bytes_per_token"] - host["kv_bytes_per_token"] == 2 * (2 * 8 * 2)  # layers, k and v, 2 bytes


# ---------------------------------------------------------------------------------------------------- checkpoints


def test_a_checkpoint_leaves_frozen_layers_out_and_brings_them_back(home: Path, tmp_path: Path) -> None:
    child, state = inserted(home, lora=2)
    path = tmp_path / "one.safetensors"
    save_checkpoint(path, state, child, {})
    loaded, again, metadata = load_checkpoint(path)
    assert again == child
    assert list(loaded) == list(specs(child))
    assert all(torch.equal(loaded[name], state[name]) for name in loaded)
    hashes = json.loads(metadata[DONORS])
    assert [(Path(one["model"]).name, one["layer"], len(one["sha256"])) for one in hashes] == [
        ("a", 0, 64),
        ("a", 2, 64),
    ]


def test_ten_children_of_a_donor_take_no_more_disk_than_ten_hosts(tmp_path: Path) -> None:
    donor = llama(tmp_path / "a", dim=64)
    whole = sum(file.stat().st_size for file in donor.glob("*.safetensors"))
    child, state = inserted(tmp_path, experts="a0 a1 a2")
    for i in range(10):
        save_checkpoint(tmp_path / f"{i}.safetensors", state, child, {})
    layers = 4 * sum(x.numel() for name, x in state.items() if ".layers." in name)
    own = 4 * sum(x.numel() for x in state.values()) - layers
    taken = sum((tmp_path / f"{i}.safetensors").stat().st_size for i in range(10))
    assert taken <= 10 * (own + 10_000)
    assert taken + whole < 10 * (own + layers) / 2  # copies in each


def test_no_checkpoint_says_of_layers_that_changed_that_they_are_what_it_was_made_with(tmp_path: Path) -> None:
    llama(tmp_path / "a")
    child, state = inserted(tmp_path)
    told = donors_of(child, state)
    llama(tmp_path / "a", seed=1)
    for say in (lambda: save_checkpoint(tmp_path / "c", state, child, {}), lambda: donors_of(child, state)):
        with pytest.raises(InputError, match="layer 0 has changed since it was read"):
            say()
    assert not (tmp_path / "c").exists()
    llama(tmp_path / "a")
    assert donors_of(child, state) == told
    save_checkpoint(tmp_path / "c", state, child, {})


def test_a_layer_that_was_trained_is_stamped_with_what_was_taken_and_with_what_it_became(tmp_path: Path) -> None:
    llama(tmp_path / "a")
    child, state = inserted(tmp_path, experts="a0 a2", freeze=False)
    taken = donors_of(child, state)
    assert [one.sha256 for one in taken] == [checksum_of(str(tmp_path / "a"), layer) for layer in (0, 2)]
    trained = {name: x + 0.1 if ".layers.0." in name else x for name, x in state.items()}
    llama(tmp_path / "a", seed=1)  # which matters to nobody any more
    save_checkpoint(tmp_path / "c.safetensors", trained, child, to_metadata(taken))
    _, _, metadata = load_checkpoint(tmp_path / "c.safetensors")
    behind = Provenance.from_metadata(metadata, tmp_path / "c.safetensors")
    assert [one.sha256 for one in behind.donors] == [one.sha256 for one in taken]
    assert behind.donors[0].became not in (None, taken[0].became)
    assert behind.donors[1].became == taken[1].became
    again = {name: x + 0.1 for name, x in trained.items()}
    save_checkpoint(tmp_path / "d.safetensors", again, child, behind.to_metadata())
    assert donors_of(child, again, behind.donors)[1].sha256 == taken[1].sha256
    assert donors_of(child, again)[1].sha256 != taken[1].sha256
    both = blueprint(tmp_path, "a0 a2")
    frozen = donors_of(both, {})
    assert [one.became for one in frozen] == [None, None]
    assert "became" not in frozen[0].model_dump()


def test_a_relative_folder_that_changed_is_read_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    llama(tmp_path / "a")
    monkeypatch.chdir(tmp_path)
    before = checksum_of("a", 0)
    llama(tmp_path / "a", seed=1)
    assert checksum_of("a", 0) == checksum_of(str(tmp_path / "a"), 0) != before


def test_a_checkpoint_refuses_layers_that_are_not_as_they_were(tmp_path: Path) -> None:
    llama(tmp_path / "a")
    child, state = inserted(tmp_path)
    save_checkpoint(tmp_path / "c.safetensors", state, child, {})
    llama(tmp_path / "a", seed=1)
    with pytest.raises(InputError, match=r"c.safetensors: needs layer 0 of .*/a as it was, .*but it has changed"):
        load_checkpoint(tmp_path / "c.safetensors")
    shutil.rmtree(tmp_path / "a")
    with pytest.raises(InputError, match="/a: no such folder"):
        load_checkpoint(tmp_path / "c.safetensors")


# -------------------------------------------------------------------------------------------------------- schema


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"router": "token", "top_k": 3}, "top_k is 3, but there are 2 experts"),
        ({"lora": 2, "freeze": False}, "lora is 2, but the layers are trained themselves"),
        ({"experts": []}, "at least 1"),
        ({"experts": [{"model": "a", "layer": -1}]}, "greater than or equal to 0"),
        ({"adapter": "conv"}, "'linear' or 'bottleneck'"),
    ],
)
def test_what_cannot_be_is_refused(fields: dict[str, Any], message: str) -> None:
    layers = [{"model": "a", "layer": 0}, {"model": "a", "layer": 1}]
    with pytest.raises(ValueError, match=message):
        Foreign.model_validate({"experts": layers, **fields})
