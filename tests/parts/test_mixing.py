"""Gates and the branch router. B batch, T tokens, D model dim, n targets."""

import numpy as np
import pytest
import torch
from torch import Tensor

from morphogen.blueprint.schema import Blueprint
from morphogen.inherit.descent import inherit
from morphogen.network import LanguageModel, assemble, build, initial_state
from morphogen.variation.operator import apply_operator, edit

VOCAB = 19


def blueprint(*extras: dict[str, object], parallel: bool = False) -> Blueprint:
    block = {
        "attn": {"kind": "MHA", "heads": 2, "head_dim": 4},
        "ffn": {"kind": "dense", "hidden": 16},
        "extras": list(extras),
        "parallel": parallel,
    }
    return Blueprint.model_validate({"emb": {"dim": 16, "vocab": VOCAB}, "blocks": [block]})


def ids(tokens: int = 12) -> Tensor:
    return torch.randint(VOCAB, (2, tokens), generator=torch.Generator().manual_seed(tokens))


def stirred(model: Blueprint) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    return {
        name: tensor.double() + (0 if name.endswith("eps") else 0.2 * torch.randn(tensor.shape, generator=generator))
        for name, tensor in initial_state(model, 0).items()
    }


def streams(model: LanguageModel) -> tuple[Tensor, Tensor, Tensor]:
    """The block's input, its attention's and its feed-forward layer's output, with what modifiers do left out."""
    block = model.blocks[0]
    x_BTD = model.emb(ids())
    attn_BTD = block.attn(x_BTD)
    return x_BTD, attn_BTD, block.ffn(x_BTD)


@pytest.mark.parametrize("kind", ["gated", "branch_router"])
def test_a_new_modifier_changes_nothing(kind: str) -> None:
    plain, with_it = blueprint(), blueprint({"kind": kind})
    state = stirred(plain)
    child, report = inherit(with_it, [(plain, state)])
    assert report.exact
    assert torch.equal(assemble(plain, state)(ids()), assemble(with_it, child)(ids()))


@pytest.mark.parametrize("router_type", ["token", "static"])
def test_shares_sum_to_the_number_of_targets_and_follow_the_blocks_input(router_type: str) -> None:
    made = blueprint({"kind": "branch_router", "router_type": router_type, "temperature": 0.5}, parallel=True)
    model = assemble(made, stirred(made))
    router = model.blocks[0].extras[0]
    x_BTD, attn_BTD, ffn_BTD = streams(model)
    share = router.look(x_BTD)
    assert share.shape == ((2, 12, 2) if router_type == "token" else (2,))
    assert torch.allclose(share.sum(-1), torch.full_like(share[..., 0], 2.0))
    if router_type == "token":
        weights = router.out(torch.nn.functional.silu(router.up(router.norm(x_BTD)))) + router.bias
        assert torch.allclose(share, 2 * (weights / 0.5).softmax(-1))
    want = x_BTD + share[..., 0, None] * attn_BTD + share[..., 1, None] * ffn_BTD
    assert torch.allclose(model.blocks[0](x_BTD), want, atol=1e-12)


def test_in_sequence_the_router_looks_at_the_blocks_input_not_at_each_branchs() -> None:
    made = blueprint({"kind": "branch_router"})
    model = assemble(made, stirred(made))
    block = model.blocks[0]
    x_BTD, attn_BTD, _ = streams(model)
    share = block.extras[0].look(x_BTD)
    middle = x_BTD + share[..., 0, None] * attn_BTD
    assert torch.allclose(block(x_BTD), middle + share[..., 1, None] * block.ffn(middle), atol=1e-12)


def test_a_frozen_gate_is_no_parameter_and_keeps_its_value() -> None:
    frozen = blueprint({"kind": "gated", "targets": ["ffn"], "init_weight": 0.25, "learnable": False})
    model = build(frozen)
    assert "blocks.0.extras.0.ffn" not in dict(model.named_parameters())
    assert float(model.state_dict()["blocks.0.extras.0.ffn"]) == 0.25
    learning, done = edit(frozen, "toggle_gate_learning", 0)
    assert done.preserves
    state, report = inherit(learning, [(frozen, model.state_dict())])
    assert report.exact
    assert float(state["blocks.0.extras.0.ffn"]) == 0.25
    assert "blocks.0.extras.0.ffn" in dict(assemble(learning, state).named_parameters())


def test_another_init_weight_starts_the_gates_anew_and_says_so() -> None:
    before, after = (blueprint({"kind": "gated", "init_weight": weight}) for weight in (1.0, 0.5))
    state, report = inherit(after, [(before, stirred(before))])
    assert not report.exact
    assert float(state["blocks.0.extras.0.attn"]) == 0.5


def test_logits_follow_their_targets_by_name() -> None:
    memory = {"kind": "retro", "memory_tokens": 4, "stride": 2}
    before = blueprint(memory, {"kind": "branch_router", "targets": ["attn", "extra", "ffn"]})
    after = blueprint(memory, {"kind": "branch_router", "targets": ["attn", "ffn"]})
    old = stirred(before)
    new, report = inherit(after, [(before, old)])
    assert not report.exact
    assert torch.equal(new["blocks.0.extras.1.bias"], old["blocks.0.extras.1.bias"][[0, 2]])
    assert torch.equal(new["blocks.0.extras.1.out.weight"], old["blocks.0.extras.1.out.weight"][[0, 2]])


def test_a_target_may_stand_once_and_a_router_needs_two() -> None:
    for kind in ("gated", "layer_scale", "branch_router"):
        with pytest.raises(ValueError, match="targets name a branch twice"):
            blueprint({"kind": kind, "targets": ["ffn", "ffn"]})
    with pytest.raises(ValueError, match="at least 2"):
        blueprint({"kind": "branch_router", "targets": ["ffn"]})


def test_removing_an_extra_takes_along_what_acted_on_it_alone() -> None:
    made = blueprint({"kind": "short_conv"}, {"kind": "gated", "targets": ["extra"]})
    for seed in range(20):
        child, done = apply_operator(made, "remove_extra", np.random.default_rng(seed))
        assert not done.preserves
        kinds = [extra.label for extra in child.blocks[0].extras]
        assert kinds in ([], ["short_conv"])


def test_a_combination_puts_in_two_extras_and_changes_nothing() -> None:
    plain = blueprint()
    state = stirred(plain)
    for seed in range(6):
        child, done = edit(plain, "add_extra_combo", seed)
        assert done.preserves
        assert len({extra.label for extra in child.blocks[0].extras}) == 2
        weights, report = inherit(child, [(plain, state)])
        assert report.exact
        assert torch.allclose(assemble(child, weights)(ids(40)), assemble(plain, state)(ids(40)), atol=1e-12)
