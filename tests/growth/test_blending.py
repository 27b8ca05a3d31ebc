"""What experts weigh and write, and what becomes of their weights when they merge or are crossed.

B batch, T tokens, E experts, H hidden
"""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from morphogen.blueprint.schema import Blueprint
from morphogen.growth import blending
from morphogen.network import LanguageModel, assemble, build
from morphogen.parts.contract.branch import Branch
from morphogen.parts.ffn.moe import MoE
from morphogen.parts.ffn.moe_layer import Experts

VOCAB, D, H = 32, 8, 12


def blueprint(recurrences: list[dict[str, Any]] | None = None, **fields: Any) -> Blueprint:
    attn = {"kind": "MHA", "heads": 2, "head_dim": 4}
    blocks = [{"attn": attn}, {"ffn": {"kind": "moe", "hidden": H, "n_experts": 4, "k": 2, **fields}}]
    whole = {"emb": {"dim": D, "vocab": VOCAB}, "blocks": blocks, "recurrences": recurrences or []}
    return Blueprint.model_validate(whole)


def model(seed: int = 0, **fields: Any) -> LanguageModel:
    made = build(blueprint(**fields), seed)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(3.0)  # so that choices differ
    return made


def ids(batch: int = 3, length: int = 16) -> Tensor:
    return torch.randint(VOCAB, (batch, length), generator=torch.Generator().manual_seed(0))


MIXTURES: list[dict[str, Any]] = [
    {},
    {"k": 1},
    {"shared": 2},
    {"n_experts": 6, "twins": (1, 2)},
    {"n_experts": 5, "experts": [{"kind": "dense", "hidden": 4}]},
    {"n_experts": 6, "k": 2, "twins": (0,), "experts": [{"kind": "short_conv"}, {"kind": "dense", "hidden": 4}]},
    {"capacity_factor": 0.5, "drop_policy": "greedy"},
    {"router_bias": "aux_free", "router_type": "sigmoid"},
]


@pytest.mark.parametrize("mixture", MIXTURES)
def test_loads_count_every_assignment_of_routed_experts_once(mixture: dict[str, Any]) -> None:
    made = model(**mixture)
    with made.recording() as record:
        made(ids())
    loads = blending.loads(made, record)
    moe = made.blueprint.blocks[1].ffn
    assert set(loads) == {"b1"}
    assert isinstance(moe, MoE)
    assert len(loads["b1"]) == moe.n_experts
    assert loads["b1"].sum() == ids().numel() * moe.k


def test_loads_of_a_looped_block_add_up() -> None:
    made = model(recurrences=[{"start": 0, "end": 2, "train_recurrence": 3, "max_train_recurrence": 3}])
    with made.recording() as record:
        made(ids())
    assert blending.loads(made, record)["b1"].sum() == 3 * 2 * ids().numel()


@pytest.mark.parametrize("mixture", MIXTURES)
def test_written_is_the_mean_of_gate_weight_times_output_norm(mixture: dict[str, Any]) -> None:
    made = model(**mixture)
    layer = blending.layers(made)["b1"]
    seen: list[Tensor] = []
    hook = layer.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    found = blending.written(made, ids())["b1"]
    hook.remove()
    with torch.no_grad():
        x_BTD = layer.norm(seen[0])
        expected = by_hand(layer, x_BTD)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


def by_hand(layer: Experts, x_BTD: Tensor) -> list[float]:
    """Token by token."""
    part = layer.part
    routed = layer._route(x_BTD.flatten(0, 1))
    kept_NK = layer._kept(routed.experts_NK.view(*x_BTD.shape[:2], -1), None)
    sums, counts = [0.0] * part.n_experts, [0] * part.n_experts
    whole = [other.mix(x_BTD).flatten(0, 1) for other in layer.others if isinstance(other, Branch)]
    for n, x_D in enumerate(x_BTD.flatten(0, 1)):
        for k, e in enumerate(routed.experts_NK[n].tolist()):
            counts[e] += 1
            if kept_NK is not None and not kept_NK[n, k]:
                continue
            if e < part.stacked:
                assert layer.up is not None
                assert layer.gate is not None
                assert layer.down is not None
                h = torch.nn.functional.silu(layer.gate.weight[e] @ x_D) * (layer.up.weight[e] @ x_D)
                y_D = h @ layer.down.weight[e]
            else:
                y_D = whole[e - part.stacked][n]
            sums[e] += float(routed.weights_NK[n, k] * y_D.norm())
    return [total / max(1, count) for total, count in zip(sums, counts, strict=True)]


def test_measuring_leaves_the_model_as_it_was() -> None:
    made = model(router_bias="aux_free").train()
    before = {name: tensor.clone() for name, tensor in made.state_dict().items()}
    blending.written(made, ids())
    assert made.training
    assert not blending.layers(made)["b1"]._forward_pre_hooks
    for name, tensor in made.state_dict().items():
        assert torch.equal(tensor, before[name])


UP, GATE, DOWN = (f"blocks.1.ffn.{name}.weight" for name in ("up", "gate", "down"))


def permuted(state: dict[str, Tensor], source: int, to: int, noise: float = 0.0) -> dict[str, Tensor]:
    """Expert `to` becomes `source` with its hidden units in another order."""
    rng = torch.Generator().manual_seed(1)
    order = torch.randperm(H, generator=rng)
    out = {name: tensor.clone() for name, tensor in state.items()}
    for name in (UP, GATE, DOWN):
        drawn = torch.randn(H, D, generator=rng) * noise
        out[name][to] = out[name][source][order] + drawn
    return out


def test_experts_whose_units_stand_in_another_order_are_the_same() -> None:
    state = permuted(model().state_dict(), 1, 3)
    cosine, order = blending.match(state, blueprint(), "b1", 1, 3)
    assert cosine == pytest.approx(1.0)
    assert torch.equal(state[UP][3][torch.from_numpy(order)], state[UP][1])
    others = [blending.match(state, blueprint(), "b1", 1, e)[0] for e in (0, 2)]
    assert max(others) < 0.9
    assert blending.nearest(state, blueprint(), "b1", 1) == 3
    assert blending.nearest(state, blueprint(), "b1", 3) == 1
    assert blending.nearest_pair(permuted(state, 0, 2, 0.01), blueprint(), "b1") == (1, 3)


def test_a_blend_of_an_expert_and_its_reordered_copy_is_the_expert() -> None:
    made = model()
    state = permuted(made.state_dict(), 1, 3)
    _, order = blending.match(state, blueprint(), "b1", 3, 1)
    out = blending.blended(state, blueprint(), "b1", (3, 1), 0.3, order)
    assert set(out) == {UP, GATE, DOWN}
    for name, stack in out.items():
        assert torch.allclose(stack, state[name], atol=1e-7)
    after = assemble(blueprint(), {**state, **out})
    before = assemble(blueprint(), state)
    assert torch.allclose(after(ids()), before(ids()), atol=1e-5)


def test_averages_are_weighed_and_other_experts_stay() -> None:
    state = model().state_dict()
    same = np.arange(H)
    out = blending.merged(state, blueprint(), "b1", (0, 2), 0.25, same)
    for name in (UP, GATE, DOWN, "blocks.1.ffn.router.weight"):
        assert torch.allclose(out[name][0], 0.75 * state[name][0] + 0.25 * state[name][2])
        assert torch.equal(out[name][1:], state[name][1:])


@pytest.mark.parametrize("pair", [(1, 4), (1, 0), (0, 1), (2, 4)])
def test_the_router_stays_where_a_place_is_shared(pair: tuple[int, int]) -> None:
    shared = blueprint(n_experts=5, twins=(1,))
    state = model(n_experts=5, twins=(1,)).state_dict()
    out = blending.merged(state, shared, "b1", pair, 0.5, np.arange(H))
    assert set(out) == {UP, GATE, DOWN}


def test_moments_go_the_same_way_and_step_counts_stay() -> None:
    state = model(router_bias="aux_free").state_dict()
    moments = {name: torch.rand_like(state[name]) for name in (UP, GATE, DOWN)}
    biased = blueprint(router_bias="aux_free")
    out = blending.merged(moments, biased, "b1", (0, 2), 0.5, np.arange(H))
    assert torch.allclose(out[UP][0], (moments[UP][0] + moments[UP][2]) / 2)
    steps = dict.fromkeys((UP, GATE, DOWN, "blocks.1.ffn.router.weight"), torch.tensor(5.0))
    assert blending.merged(steps, biased, "b1", (0, 2), 0.5, np.arange(H)) == {}
    weights = blending.merged(state, biased, "b1", (0, 2), 0.5, np.arange(H))
    assert "blocks.1.ffn.router.bias" in weights
