"""Update rules against their published form, and which parameters are decayed."""

import numpy as np
import pytest
import torch

from morphogen.blueprint.schema import Blueprint
from morphogen.blueprint.tensors import specs
from morphogen.errors import InputError
from morphogen.experiment import Optimizer, Train
from morphogen.network import LanguageModel, build
from morphogen.training.optimizers import Lion, make_updater, split_parameters

BLUEPRINT = Blueprint.model_validate(
    {
        "emb": {"dim": 16, "vocab": 11},
        "norm": "layernorm",
        "head": {"tie_embeddings": False},
        "blocks": [
            {
                "attn": {"kind": "GQA", "heads": 2, "head_dim": 8, "kv_groups": 2, "qk_norm": "rms",
                         "gating_pos": "output", "gating_op": "diagonal"},
                "extras": [{"kind": "layer_scale", "targets": ["attn", "ffn"]}],
                "ffn": {"kind": "dense", "hidden": 24},
            }
        ],
    }
)  # fmt: skip


def names_of(model: LanguageModel, parameters: list[torch.nn.Parameter]) -> set[str]:
    by_identity = {id(parameter): name for name, parameter in model.named_parameters()}
    return {by_identity[id(parameter)] for parameter in parameters}


def test_every_trainable_parameter_is_in_exactly_one_group() -> None:
    model = build(BLUEPRINT)
    decayed, plain = split_parameters(model)
    both = [id(p) for p in decayed + plain]
    assert len(set(both)) == len(both)
    wanted = {name for name, (_, _, spec) in specs(BLUEPRINT).items() if spec.trained}
    assert names_of(model, decayed + plain) == wanted


def test_only_matrices_that_are_not_indexed_by_token_are_decayed() -> None:
    model = build(BLUEPRINT)
    assert names_of(model, split_parameters(model)[0]) == {
        f"blocks.0.{name}.weight" for name in ("attn.q", "attn.k", "attn.v", "attn.o", "ffn.up", "ffn.gate", "ffn.down")
    }


def test_frozen_parameters_are_in_no_group() -> None:
    model = build(BLUEPRINT)
    model.get_parameter("blocks.0.ffn.up.weight").requires_grad_(False)
    decayed, plain = split_parameters(model)
    assert "blocks.0.ffn.up.weight" not in names_of(model, decayed + plain)


@pytest.mark.parametrize("name", ["adamw", "lion", "muon"])
def test_the_updater_covers_each_parameter_once_and_moves_all(name: str) -> None:
    model = build(BLUEPRINT)
    train = Train.model_validate({"optimizer": {"name": name}})
    updater = make_updater(model, train)
    covered = [id(p) for p in updater.parameters]
    assert sorted(covered) == sorted(id(p) for p in model.parameters())
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    model(torch.arange(11)[None]).square().mean().backward()
    updater.step(1.0)
    still = [n for n, p in model.named_parameters() if torch.equal(p, before[n])]
    assert still == []
    assert all(p.grad is None for p in model.parameters())


def test_muon_takes_the_hidden_matrices_and_adamw_the_rest() -> None:
    model = build(BLUEPRINT)
    muon, adamw = make_updater(model, Train(optimizer=Optimizer(name="muon"))).optimizers
    in_muon = [p for group in muon.param_groups for p in group["params"]]
    assert names_of(model, in_muon) == names_of(model, split_parameters(model)[0])
    in_adamw = [p for group in adamw.param_groups for p in group["params"]]
    assert {"emb.weight", "head.weight"} <= names_of(model, in_adamw)


def test_muon_is_refused_where_torch_lacks_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(InputError, match=r"train\.optimizer\.name: got 'muon'"):
        make_updater(build(BLUEPRINT), Train(optimizer=Optimizer(name="muon")))


def test_rates_and_decay_of_the_optimizer_override_those_of_train() -> None:
    train = Train(lr=0.1, weight_decay=0.2, optimizer=Optimizer(lr=0.3, weight_decay=0.4))
    groups = make_updater(build(BLUEPRINT), train).optimizers[0].param_groups
    assert [(g["lr"], g["weight_decay"]) for g in groups] == [(0.3, 0.4), (0.3, 0.0)]


@pytest.mark.parametrize("betas", [(1.0, 0.95), (0.9, 1.0)])
def test_moments_that_would_never_move_are_refused(betas: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="should be less than 1"):
        Optimizer(betas=betas)


def test_a_step_scales_every_groups_own_rate() -> None:
    model = build(BLUEPRINT)
    updater = make_updater(model, Train(lr=0.1))
    for scale in (0.5, 0.25):
        model(torch.arange(11)[None]).square().mean().backward()
        updater.step(scale)
        assert [g["lr"] for g in updater.optimizers[0].param_groups] == [0.1 * scale] * 2


def test_adamw_follows_the_published_rule() -> None:
    """arXiv 1711.05101 with bias correction, in float64 numpy."""
    lr, (b1, b2), eps, decay = 0.01, (0.9, 0.95), 1e-8, 0.1
    model = build(BLUEPRINT)
    updater = make_updater(model, Train(lr=lr, weight_decay=decay))
    parameter = model.get_parameter("blocks.0.ffn.up.weight")
    theta = parameter.detach().double().numpy().copy()
    m, v = np.zeros_like(theta), np.zeros_like(theta)
    draw = torch.Generator().manual_seed(0)
    for t in range(1, 5):
        for p in model.parameters():
            p.grad = torch.randn(p.shape, generator=draw)
        assert parameter.grad is not None
        g = parameter.grad.double().numpy()
        theta = theta - lr * decay * theta
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        theta = theta - lr * (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps)
        updater.step(1.0)
    np.testing.assert_allclose(parameter.detach().numpy(), theta, rtol=2e-5, atol=1e-6)


def test_lion_follows_the_published_rule() -> None:
    """arXiv 2302.06675, algorithm 2, in float64 numpy."""
    lr, (b1, b2), decay = 0.01, (0.9, 0.99), 0.1
    draw = torch.Generator().manual_seed(0)
    parameter = torch.nn.Parameter(torch.randn(3, 5, generator=draw))
    optimizer = Lion([{"params": [parameter]}], lr, (b1, b2), decay)
    theta, m = parameter.detach().double().numpy().copy(), np.zeros((3, 5))
    for _ in range(6):
        parameter.grad = torch.randn(3, 5, generator=draw)
        g = parameter.grad.double().numpy()
        c = b1 * m + (1 - b1) * g
        theta = theta - lr * (np.sign(c) + decay * theta)
        m = b2 * m + (1 - b2) * g
        optimizer.step()
    np.testing.assert_allclose(parameter.detach().numpy(), theta, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(optimizer.state[parameter]["exp_avg"].numpy(), m, rtol=1e-5, atol=1e-7)
