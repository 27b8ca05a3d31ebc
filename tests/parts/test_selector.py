"""The selector: what trains it, what it leaves alone, decoding, cost. B batch, T tokens, D model dim."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from morphogen.blueprint.diff import digest
from morphogen.blueprint.schema import Blueprint
from morphogen.inherit.descent import inherit
from morphogen.network import LanguageModel, assemble, build, initial_state
from morphogen.ops.selection import index_scores
from morphogen.parts.attention.attention import Attention
from morphogen.parts.contract.part import Context
from morphogen.variation.operator import edit as named_edit

DIM, TOKENS = 24, 63
CTX = Context(dim=DIM, norm="rmsnorm", vocab=37, init_std=0.02, branches=2, seq_len=TOKENS)


def blueprint_of(**more: Any) -> Blueprint:
    attn = {"kind": "GQA", "heads": 4, "head_dim": 8, "kv_groups": 2} | more
    return Blueprint.model_validate({"emb": {"dim": DIM, "vocab": 37}, "blocks": [{"id": "b0", "attn": attn}]})


def selecting(topk: int, **more: Any) -> Blueprint:
    return blueprint_of(selector="dsa", selector_topk=topk, selector_heads=2, selector_dim=8, **more)


def stirred(blueprint: Blueprint) -> dict[str, Tensor]:
    """An fp64 state in which everything has moved off its start."""
    draw = torch.Generator().manual_seed(0)
    return {
        name: tensor.double()
        if name.endswith("eps")
        else tensor.double() + 0.1 * torch.randn(tensor.shape, generator=draw)
        for name, tensor in initial_state(blueprint, 0).items()
    }


def ids_of(seed: int = 0, batch: int = 2) -> Tensor:
    return torch.randint(37, (batch, TOKENS), generator=torch.Generator().manual_seed(seed))


def gradients(blueprint: Blueprint, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """The language model's loss alone, and the gradients of that plus the auxiliary loss."""
    model = assemble(blueprint, {name: tensor.clone() for name, tensor in state.items()}).train()
    with model.recording() as record:
        loss = F.cross_entropy(model(ids_of()).flatten(0, 1), ids_of(1).flatten())
    auxiliary = record.loss({})
    (loss if auxiliary is None else loss + auxiliary).backward()
    return loss.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("signal", ["align", "task"])
def test_with_all_tokens_read_everything_but_the_indexer_trains_as_in_dense_attention(signal: str) -> None:
    blueprint = selecting(TOKENS, selector_loss=signal)
    state = stirred(blueprint)
    dense = {name: tensor for name, tensor in state.items() if ".selector." not in name}
    loss, got = gradients(blueprint, state)
    want_loss, want = gradients(blueprint_of(), dense)
    torch.testing.assert_close(loss, want_loss, rtol=1e-12, atol=0)
    for name, gradient in want.items():
        torch.testing.assert_close(got[name], gradient, rtol=1e-9, atol=1e-12)
    assert all(bool(got[name].any()) for name in got.keys() - want.keys())
    assert got.keys() - want.keys() == {name for name in state if ".selector." in name and not name.endswith("eps")}


def test_without_training_no_loss_is_reported_and_reading_all_is_dense_attention_exactly() -> None:
    blueprint = selecting(TOKENS)
    state = stirred(blueprint)
    dense = assemble(blueprint_of(), {name: x for name, x in state.items() if ".selector." not in name}).eval()
    model = assemble(blueprint, state).eval()
    with torch.no_grad(), model.recording() as record:
        assert torch.equal(model(ids_of()), dense(ids_of()))
    assert record.loss({}) is None


def divergence_of(model: LanguageModel, ids_BT: Tensor) -> float:
    with model.train().recording() as record:
        model(ids_BT)
    loss = record.loss({})
    assert loss is not None
    return float(loss.detach())


def test_alignment_teaches_the_indexer_what_attention_attends_to() -> None:
    """Only the indexer is trained: the divergence falls, and its first choices come to carry more of the attention."""
    blueprint = selecting(TOKENS)
    state = {name: tensor.float() for name, tensor in stirred(blueprint).items()}
    for name in ("q", "k"):
        state[f"blocks.0.attn.{name}.weight"] *= 3.0  # attention that prefers some tokens
    model = assemble(blueprint, state).train()
    ids_BT = ids_of(3, batch=4)

    def mass() -> float:
        """The share of attention on the eight tokens that the indexer scores highest, at the last token."""
        branch: Any = model.blocks[0].attn
        with torch.no_grad():
            x_BTD = branch.norm(model.emb(ids_BT))
            q_BHTE, k_BKTE, _ = branch._heads(x_BTD, 0)
            p_BHT = (q_BHTE[:, :, -1:] @ k_BKTE.repeat_interleave(2, 1).mT / 8**0.5).softmax(-1)[:, :, 0]
            index = index_scores(*branch.selector.index(x_BTD, 0))[:, -1].topk(8).indices
            return float(p_BHT.mean(1).gather(-1, index).sum(-1).mean())

    optimizer = torch.optim.Adam([p for n, p in model.named_parameters() if ".selector." in n], lr=1e-2)
    first_loss, first_mass = divergence_of(model, ids_BT), mass()
    for _ in range(150):
        optimizer.zero_grad()
        with model.recording() as record:
            model(ids_BT)
        loss = record.loss({})
        assert loss is not None
        loss.backward()
        optimizer.step()
    assert divergence_of(model, ids_BT) < 0.7 * first_loss
    assert mass() > first_mass + 0.1


def test_checkpointing_counts_the_loss_once() -> None:
    blueprint = selecting(16)
    state = stirred(blueprint)
    _, want = gradients(blueprint, state)
    model = assemble(blueprint, {name: tensor.clone() for name, tensor in state.items()}).train()
    model.recompute = True
    with model.recording() as record:
        loss = F.cross_entropy(model(ids_of()).flatten(0, 1), ids_of(1).flatten())
    auxiliary = record.loss({})
    assert auxiliary is not None
    (loss + auxiliary).backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, want[name], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("policy", [{"kind": "full"}, {"kind": "window", "window": 200}])
def test_decoding_one_by_one_gives_the_logits_of_the_whole(policy: dict[str, Any]) -> None:
    blueprint = selecting(9, alibi=True, softcap=5.0, kv_policy=policy)
    model, cache = assemble(blueprint, stirred(blueprint)).eval(), dict[str, dict[str, Tensor]]()
    with torch.no_grad():
        pieces = [model.extend(ids_BT, cache) for ids_BT in ids_of().split([5, *[1] * 30, 28], 1)]
        assert (torch.cat(pieces, 1) - model(ids_of())).abs().max() <= 1e-10
    assert cache["blocks.0.attn"]["selector_k"].shape == (2, 1, TOKENS, 8)


def test_a_new_selector_starts_with_the_latest_tokens() -> None:
    """Put in, it is a sliding window until it has learned: its weights are zero, and of equal scores the later win."""
    parent = blueprint_of()
    state = stirred(parent)
    child = selecting(16)
    made, report = inherit(child, [(parent, state)])
    assert not report.exact
    window = blueprint_of(sparsity="sliding", sliding_window=15)
    with torch.no_grad():
        got, want = assemble(child, made).eval()(ids_of()), assemble(window, state).eval()(ids_of())
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


def test_its_settings_have_no_effect_without_it() -> None:
    assert digest(blueprint_of(selector_topk=9, selector_loss="task")) == digest(blueprint_of())
    assert digest(selecting(9)) != digest(selecting(10))
    assert not [name for name in initial_state(blueprint_of(), 0) if "selector" in name]


@pytest.mark.parametrize("wrong", [{"sparsity": "sliding"}, {"selector_dim": 5}, {"selector_topk": 1}])
def test_what_it_cannot_do_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="selector"):
        blueprint_of(**{"selector": "dsa"} | wrong)


def test_widening_is_exact_and_toggling_finds_its_way_back() -> None:
    parent = selecting(9)
    child, edit = named_edit(parent, "widen_selector", seed=0)
    made, report = inherit(child, [(parent, state := stirred(parent))])
    assert report.exact
    assert edit.preserves
    with torch.no_grad():
        before, after = assemble(parent, state).eval()(ids_of()), assemble(child, made).eval()(ids_of())
    assert (after - before).abs().max() <= 1e-12 * before.abs().max()
    plain, _ = named_edit(parent, "toggle_selector", seed=0)
    assert digest(plain) == digest(blueprint_of())


def test_flops_count_projections_index_scores_and_the_keys_read() -> None:
    """The counter sees the projections and index scores; attention over picks is counted by hand."""
    part = selecting(9).blocks[0].attn
    assert isinstance(part, Attention)
    model = build(selecting(9), 0).eval()
    branch: Any = model.blocks[0].attn
    x_BTD = torch.randn(1, TOKENS, DIM)
    with FlopCounterMode(display=False) as projections, torch.no_grad():
        branch.q(x_BTD), branch.k(x_BTD), branch.v(x_BTD), branch.o(torch.randn(1, TOKENS, 32))
        q, k, w = branch.selector.index(x_BTD, 0)
    with FlopCounterMode(display=False) as scores, torch.no_grad():
        for t in range(9, TOKENS):  # without the weighting and its sum, which are no matmuls
            index_scores(q[:, :, t : t + 1], k[:, :, : t + 1], w[..., t : t + 1])
    read = sum(min(t + 1, 9) for t in range(TOKENS)) * 4 * 4 * 8
    counted = projections.get_total_flops() + scores.get_total_flops() * 9 / 8 + read
    assert part.cost(CTX).flops * TOKENS == pytest.approx(counted, rel=0.05)
