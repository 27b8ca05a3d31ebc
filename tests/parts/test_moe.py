"""The mixture of experts: decoding, reporting, inheritance, cost.

B batch, T tokens, D model dim, E experts, K choices
"""

import weakref
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from morphogen.blueprint.schema import Blueprint
from morphogen.blueprint.yaml import loads
from morphogen.errors import InputError
from morphogen.experiment import Train
from morphogen.inherit.descent import inherit
from morphogen.network import LanguageModel, assemble, build, initial_state
from morphogen.parts.contract.branch import Branch
from morphogen.parts.contract.part import Context, Part
from morphogen.parts.ffn.mlp import MLP
from morphogen.parts.ffn.moe import MoE
from morphogen.parts.ffn.moe_layer import BIAS_STEP, Experts
from morphogen.training.trainer import Trainer
from morphogen.variation.operator import edit as named_edit
from strategies import VOCAB

DIM = 16


def blueprint(**ffn: Any) -> Blueprint:
    """Two blocks, the second with the feed-forward part in question."""
    attn = {"kind": "MHA", "heads": 2, "head_dim": 8}
    blocks = [{"attn": attn, "ffn": {"kind": "dense", "hidden": 24}}, {"attn": attn, "ffn": ffn}]
    return Blueprint.model_validate({"emb": {"dim": DIM, "vocab": VOCAB}, "blocks": blocks})


def moe(**fields: Any) -> dict[str, Any]:
    return {"kind": "moe", "hidden": 24, "n_experts": 6, "k": 2, **fields}


def layer(part: Part, dtype: torch.dtype = torch.float32, seed: int = 0, dim: int = DIM) -> Any:
    """The part's module alone, its weights of order one."""
    ctx = Context(dim=dim, norm="rmsnorm", vocab=VOCAB, init_std=0.02, branches=1)
    module = part.build(ctx)
    draw = torch.Generator().manual_seed(seed)
    state = {n: torch.randn(s.shape, generator=draw) / max(1, s.shape[-1] if s.shape else 1) ** 0.5 * 1.5
             for n, s in part.specs(ctx).items()}  # fmt: skip
    state["norm.eps"] = torch.tensor(1e-5)
    module.load_state_dict(state)
    return module.to(dtype)


def hidden(batch: int, length: int, dtype: torch.dtype = torch.float32, dim: int = DIM) -> Tensor:
    return torch.randn(batch, length, dim, generator=torch.Generator().manual_seed(length), dtype=dtype)


def ids(seed: int, batch: int = 4, length: int = 64) -> Tensor:
    return torch.randint(VOCAB, (batch, length), generator=torch.Generator().manual_seed(seed))


def rel(want: Tensor, got: Tensor) -> float:
    return float(((want - got).norm() / want.norm().clamp(min=1e-12)).detach())


# --------------------------------------------------------------------------------------------------- decoding

KINDS = {
    "plain": MoE(hidden=24, n_experts=6),
    "one": MoE(hidden=24, n_experts=6, k=1, router_type="sigmoid"),
    "greedy": MoE(hidden=7, n_experts=5, capacity_factor=0.8, drop_policy="greedy", router_bias="aux_free"),
    "rich": MoE(
        hidden=8, n_experts=7, k=3, twins=(1, 0), experts=(MLP(hidden=20, activation="gelu"),), shared=1,
        router_bias="aux_free", capacity_factor=1.25, drop_policy="greedy", activation="geglu",
    ),
    "nested": MoE(hidden=8, n_experts=9, k=2, twins=(1, 0, 1, 4, 6), router_bias="aux_free", activation="gelu"),
    "others": MoE(hidden=8, n_experts=2, k=1, experts=(MLP(hidden=20), MLP(hidden=5, activation="relu2"))),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_chunks_decode_to_what_the_whole_gives(kind: str, dtype: torch.dtype) -> None:
    module, x_BTD = layer(KINDS[kind], dtype), hidden(2, 63, dtype)
    whole_BTD = module.mix(x_BTD)
    for cuts in ([1] * 63, [7, 1, 30, 25], [62, 1]):
        state: dict[str, Tensor] = {}
        pieces = [module.mix_on(piece, state) for piece in torch.split(x_BTD, cuts, 1)]
        assert rel(whole_BTD, torch.cat(pieces, 1)) <= (1e-4 if dtype == torch.float32 else 1e-10)
        assert all(len(value) == 2 for value in state.values())
    assert bool(state) == (KINDS[kind].drop_policy == "greedy")


@pytest.mark.parametrize("kind", KINDS)
def test_bf16_stays_bf16_and_near_fp32(kind: str) -> None:
    module, x_BTD = layer(KINDS[kind]), hidden(2, 63)
    want_BTD = module.mix(x_BTD)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y_BTD = module(x_BTD)
        got_BTD = module.mix(x_BTD)
    assert y_BTD.dtype == got_BTD.dtype == torch.bfloat16
    got_BTD.float().square().mean().backward()
    assert {p.grad.dtype for p in module.parameters() if p.grad is not None} == {torch.float32}
    # bf16 moves a few tokens that were nearly undecided to another expert; all others are near
    off_N = (want_BTD - got_BTD.float()).norm(dim=-1).flatten() / want_BTD.norm(dim=-1).flatten()
    assert float(off_N.detach().nanmedian()) <= 2e-2
    pure = module.to(torch.bfloat16).mix(x_BTD.bfloat16())
    assert pure.dtype == torch.bfloat16


def test_other_kinds_read_the_whole_sequence_but_count_where_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    module, x_BTD = layer(MoE(hidden=8, n_experts=3, k=1, experts=(MLP(hidden=12),))), hidden(2, 20)
    module.others[0] = RunningSum()
    monkeypatch.setattr(MLP, "pointwise", False)
    y_BTD = module.mix(x_BTD)
    logits_BTF = x_BTD @ torch.cat([module.router.weight, module.other_router.weight]).T
    chosen_BT = logits_BTF.argmax(-1) == 2
    torch.testing.assert_close(y_BTD[chosen_BT], x_BTD.cumsum(1)[chosen_BT])
    state: dict[str, Tensor] = {}
    pieces = [module.mix_on(piece, state) for piece in torch.split(x_BTD, [3, 1, 16], 1)]
    torch.testing.assert_close(torch.cat(pieces, 1), y_BTD)
    assert set(state) == {"others.0.sum"}


class RunningSum(Branch):
    """A branch that sums all tokens so far."""

    def mix(self, x_BTD: Tensor) -> Tensor:
        return x_BTD.cumsum(1)

    def mix_on(self, x_BTD: Tensor, state: dict[str, Tensor]) -> Tensor:
        y_BTD = x_BTD.cumsum(1) + (state["sum"][:, None] if state else 0.0)
        state["sum"] = y_BTD[:, -1]
        return y_BTD


# -------------------------------------------------------------------------------------------------- reporting


def test_figures_losses_and_loads_are_those_of_the_choices() -> None:
    model = build(blueprint(**moe(balance=0.5, z_loss=0.1, capacity_factor=1.0)))
    with model.recording() as record:
        model(ids(0))
    (load_E,) = record.tallies.values()
    assert int(load_E.sum()) == 4 * 64 * 2
    means = record.means()
    assert float(means["expert_load_max_over_mean"]) == pytest.approx(float(load_E.max() / load_E.mean()))
    assert 0 < float(means["router_entropy"]) <= np.log(6) + 1e-6
    assert 0 < float(means["router_overflow"]) < 1
    assert set(record.losses) == {"balance", "router_z", "router_entropy"}
    losses = {name: float(values[0].detach()) for name, values in record.losses.items()}
    total = record.loss({"balance": 2.0, "router_entropy": -0.1})
    assert total is not None
    want = 2 * losses["balance"] + losses["router_z"] - 0.1 * losses["router_entropy"]
    assert float(total.detach()) == pytest.approx(want)
    assert losses["balance"] >= 0.5 * 0.99


def test_nothing_is_recorded_or_kept_without_a_recording() -> None:
    model = build(blueprint(**moe()))
    with model.recording() as record:
        model(ids(0))
        with model.recording() as inner:
            model(ids(0))
        model(ids(0))
    assert [len(r.figures["router_entropy"]) for r in (record, inner)] == [2, 1]
    model(ids(0))
    assert len(record.figures["router_entropy"]) == 2
    assert all(m.record is None for m in model.modules() if isinstance(m, Experts))
    dead = weakref.ref(record.losses["balance"][0])
    del record, inner
    assert dead() is None
    assert build(blueprint(kind="dense", hidden=8)).record is None


def test_a_dense_model_reports_nothing() -> None:
    model = build(blueprint(kind="dense", hidden=8))
    with model.recording() as record:
        model(ids(0))
    assert record.loss({"balance": 1.0}) is None
    assert record.means() == {}


def trained(ffn: dict[str, Any], steps: int = 3, **train: Any) -> tuple[LanguageModel, Trainer]:
    model = build(blueprint(**ffn))
    trainer = Trainer(model, Train(warmup=1, **train), total_steps=20, tokens_per_step=4 * 63, seed=0)
    trainer.run(lambda step: ids(step).numpy(), steps)
    return model, trainer


@pytest.mark.parametrize("bf16", [False, True])
def test_recomputing_activations_counts_nothing_twice(bf16: bool) -> None:
    """Losses, figures, biases and weights are the same with gradient checkpointing."""
    ffn = moe(router_bias="aux_free", z_loss=0.01, balance=0.1, capacity_factor=1.0, drop_policy="greedy", twins=[0])
    (plain, a), (saving, b) = (trained(ffn, grad_ckpt=flag, bf16=bf16, router_entropy_coeff=0.1) for flag in (0, 1))
    assert a.trace.losses == b.trace.losses
    assert a.trace.figures == b.trace.figures
    assert sorted(a.trace.figures) == ["expert_load_max_over_mean", "router_entropy", "router_overflow"]
    assert [len(values) for values in a.trace.figures.values()] == [3, 3, 3]
    for name, tensor in plain.state_dict().items():
        assert torch.equal(tensor, saving.state_dict()[name]), name


def test_coefficients_reach_the_gradient_and_the_loss_on_record_is_that_of_the_text() -> None:
    _, base = trained(moe(balance=0.1), router_lb_coeff=0.0)
    _, more = trained(moe(balance=0.1), router_lb_coeff=5000.0)
    _, spread = trained(moe(balance=0.1), router_lb_coeff=0.0, router_entropy_coeff=50.0)
    assert base.trace.losses[0] == more.trace.losses[0] == spread.trace.losses[0]
    assert more.trace.grad_norms[0] > 1.001 * base.trace.grad_norms[0]
    assert spread.trace.figures["router_entropy"][-1] > base.trace.figures["router_entropy"][-1]


@pytest.mark.parametrize("router_type", ["softmax", "sigmoid"])
def test_the_bias_moves_against_the_load_in_training_only(router_type: Any) -> None:
    model = build(
        blueprint(**moe(router_bias="aux_free", router_type=router_type, experts=[{"kind": "dense", "hidden": 4}]))
    )
    experts = model.blocks[1].get_submodule("ffn")
    assert isinstance(experts, Experts)
    assert experts.router is not None
    assert experts.other_router is not None
    for training in (False, True):
        model.train(training)
        with model.recording() as record:
            model(ids(0))
        (load_E,) = record.tallies.values()
        record.give_back()
        bias_E = torch.cat([experts.router.bias, experts.other_router.bias])  # type: ignore[list-item]
        want_E = BIAS_STEP[router_type] * torch.sign(load_E.mean() - load_E) * training
        torch.testing.assert_close(bias_E, want_E)
        assert bool(want_E.any()) == training


# ------------------------------------------------------------------------------------------------ inheritance


def child_of(parent: Blueprint, operator: str, seed: int = 0) -> tuple[LanguageModel, LanguageModel, Blueprint]:
    state = {n: t.double() for n, t in initial_state(parent, 1).items()}
    child, _ = named_edit(parent, operator, seed)
    child_state, _ = inherit(child, [(parent, state)])
    return assemble(parent, dict(state)), assemble(child, child_state), child


def gradients(model: LanguageModel) -> dict[str, Tensor]:
    logits_BTV = model(ids(5)[:, :-1])
    torch.nn.functional.cross_entropy(logits_BTV.flatten(0, 1), ids(5)[:, 1:].flatten()).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_upcycled_experts_are_copies_that_learn_different_things() -> None:
    parent, child, _ = child_of(blueprint(kind="dense", hidden=24), "dense_to_moe")
    torch.testing.assert_close(child(ids(0)), parent(ids(0)), rtol=0, atol=1e-12)
    prefix = next(n for n in child.state_dict() if n.endswith("router.weight")).removesuffix("router.weight")
    up_EHD = child.state_dict()[f"{prefix}up.weight"]
    assert bool((up_EHD == up_EHD[0]).all())
    assert bool((child.state_dict()[f"{prefix}down.weight"][1] == parent.state_dict()[f"{prefix}down.weight"].T).all())
    grad_EHD = gradients(child)[f"{prefix}up.weight"]
    assert bool(grad_EHD.flatten(1).any(1).all())
    assert all(rel(grad_EHD[0], grad_HD) > 0.1 for grad_HD in grad_EHD[1:])


def test_drop_upcycling_redraws_that_share_of_each_expert_and_not_the_same() -> None:
    parent = blueprint(kind="dense", hidden=24)
    ffn = MoE(hidden=24, n_experts=4, drop_upcycle=0.25)
    child = parent.evolve(blocks=(parent.blocks[0], parent.blocks[1].model_copy(update={"ffn": ffn})))
    assert child is not None
    state = initial_state(parent, 1)
    new, report = inherit(child, [(parent, state)])
    assert not report.exact
    kept_EH = (new["blocks.1.ffn.up.weight"] == state["blocks.1.ffn.up.weight"]).all(-1)
    assert kept_EH.sum(1).tolist() == [18] * 4
    assert len({tuple(row.tolist()) for row in kept_EH}) == 4
    down_EHD = new["blocks.1.ffn.down.weight"]
    assert torch.equal(down_EHD.any(-1), kept_EH)
    assert torch.equal(down_EHD[2][kept_EH[2]], state["blocks.1.ffn.down.weight"].T[kept_EH[2]])


@pytest.mark.parametrize("ffn", [{"k": 2}, {"k": 1}, {"k": 3, "router_type": "sigmoid", "router_bias": "aux_free"}],
                         ids=str)  # fmt: skip
def test_a_split_expert_shares_its_tokens_with_its_clone_and_they_part(ffn: dict[str, Any]) -> None:
    parent, child, made = child_of(blueprint(**moe(**ffn)), "split_expert")
    torch.testing.assert_close(child(ids(0)), parent(ids(0)), rtol=0, atol=1e-12)
    part = made.blocks[1].ffn
    assert isinstance(part, MoE)
    place, twin = part.twins[0], part.n_experts - 1
    with child.recording() as record, parent.recording() as before:
        child(ids(5))
        parent(ids(5))
    ((load_E,), (old_E,)) = (r.tallies.values() for r in (record, before))
    assert load_E[twin] > 0
    assert load_E[place] > 0
    assert load_E[twin] + load_E[place] == old_E[place]
    grads = gradients(child)
    grad_EHD = grads["blocks.1.ffn.up.weight"]
    assert rel(grad_EHD[place], grad_EHD[twin]) > 0.1
    assert bool((grads["blocks.1.ffn.twin.weight"] != 0).all())


def test_segmented_experts_halve_and_their_halves_part() -> None:
    parent, child, made = child_of(blueprint(**moe(shared=1, router_bias="aux_free")), "segment_experts")
    torch.testing.assert_close(child(ids(0)), parent(ids(0)), rtol=0, atol=1e-12)
    part = made.blocks[1].ffn
    assert isinstance(part, MoE)
    assert (part.n_experts, part.k, part.hidden, part.shared_width) == (12, 4, 12, 24)
    grad_ED = gradients(child)["blocks.1.ffn.router.weight"]
    assert rel(grad_ED[0], grad_ED[1]) > 0.1


def test_the_mean_of_equal_experts_is_the_layer_they_came_from() -> None:
    dense = blueprint(kind="dense", hidden=24)
    _, mixture, made = child_of(dense, "dense_to_moe")
    back = made.evolve(blocks=dense.blocks)
    assert back is not None
    state, report = inherit(back, [(made, mixture.state_dict())])
    original = initial_state(dense, 1)
    assert not report.exact
    for name, tensor in state.items():
        torch.testing.assert_close(tensor, original[name].double(), msg=name)


# --------------------------------------------------------------------------------------------- schema and cost


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ("hidden: 8, n_experts: 4, k: 5", "chooses 5 of 4 places"),
        ("hidden: 8, n_experts: 4, twins: [4]", r"twins\[0\] is 4, expected a number below 3"),
        ("hidden: 8, n_experts: 5, twins: [0, 4]", r"twins\[1\] is 4, expected a number below 4"),
        ("hidden: 8, n_experts: 2, experts: [{hidden: 4, kind: dense}, {hidden: 4, kind: dense}, {hidden: 4}]",
         "kind"),
        ("hidden: 8, n_experts: 4, drop_policy: greedy", "there is no capacity_factor"),
        ("hidden: 8, n_experts: 4, experts: [{kind: dense, hiden: 4}]", r"experts\[0\].*did you mean 'hidden'"),
        ("hidden: 8, n_experts: 4, experts: [{kind: moe, hidden: 4}]", r"experts\[0\]"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_with_its_place(fields: str, message: str) -> None:
    text = f"emb: {{dim: 16, vocab: 9}}\nblocks:\n  - ffn: {{kind: moe, {fields}}}\n"
    with pytest.raises(InputError, match=message):
        loads(text).parse(Blueprint)


@pytest.mark.parametrize("kind", ["plain", "one", "rich", "others"])
def test_flops_are_those_of_the_counter(kind: str) -> None:
    """fp64 runs slice by slice, which the counter sees; the load is even only on average, so many tokens."""
    part = KINDS[kind].model_copy(update={"drop_policy": "none"})
    module = layer(part, torch.float64, dim=32)
    x_BTD = hidden(8, 256, torch.float64, dim=32)
    with FlopCounterMode(display=False) as counter:
        module.mix(x_BTD)
    ctx = Context(dim=32, norm="rmsnorm", vocab=VOCAB, init_std=0.02, branches=1)
    tolerance = 0.05 if not part.experts else 0.25
    assert counter.get_total_flops() / (8 * 256) == pytest.approx(part.cost(ctx).flops, rel=tolerance)


def test_a_greedy_state_has_the_size_that_the_cost_says() -> None:
    module, state = layer(KINDS["greedy"]), dict[str, Tensor]()
    module.mix_on(hidden(1, 5), state)
    ctx = Context(dim=DIM, norm="rmsnorm", vocab=VOCAB, init_std=0.02, branches=1)
    assert sum(t.numel() * t.element_size() for t in state.values()) == KINDS["greedy"].cost(ctx).state_bytes
