"""Actions of growth on blueprints, and their exactness on weights."""

import functools
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter

from morphogen.blueprint.diff import apply
from morphogen.blueprint.growth import GrowthAction, GrowthLimits
from morphogen.blueprint.schema import Blueprint
from morphogen.blueprint.tensors import parameter_count
from morphogen.growth.actions import Grown, act
from morphogen.growth.surgery import max_delta, operate
from morphogen.network import assemble
from morphogen.parts.ffn.moe import MoE
from morphogen.testing.models import ids_of, stirred
from morphogen.variation.making import within

ACTION: TypeAdapter[GrowthAction] = TypeAdapter(GrowthAction)
MIXED = Blueprint.model_validate(
    {
        "emb": {"dim": 16, "vocab": 37},
        "blocks": [
            {
                "attn": {"kind": "GQA", "heads": 4, "head_dim": 8, "kv_groups": 2},
                "ffn": {"kind": "dense", "hidden": 24},
            },
            {
                "attn": {"kind": "MQA", "heads": 4, "head_dim": 8, "alibi": True, "rope": "none"},
                "ffn": {"kind": "moe", "hidden": 24, "n_experts": 4, "shared": 1, "router_bias": "aux_free"},
            },
            {
                "ssm": {"kind": "mamba2", "head_dim": 8},
                "extras": [{"kind": "retro", "heads": 2, "head_dim": 8, "memory_tokens": 4, "stride": 8}],
                "ffn": {"kind": "moe", "hidden": 8, "n_experts": 3, "experts": [{"kind": "dense", "hidden": 12}]},
            },
            {"attn": {"kind": "LINEAR", "heads": 2, "head_dim": 8}, "ffn": {"kind": "dense", "hidden": 24}},
            {"attn": {"kind": "MLA", "heads": 2, "head_dim": 8, "kv_latent_dim": 16, "rope_head_dim": 4}},
        ],
    }
)
LOOPED = Blueprint.model_validate({**MIXED.to_json(), "recurrences": [{"start": 1, "end": 3}]})


def grow(blueprint: Blueprint, seed: int = 0, chosen: Any = None, used: Any = None, **action: Any) -> Grown | None:
    read = ACTION.validate_python(action)
    return act(blueprint, read, np.random.default_rng(seed), chosen or {}, used or {})


state_of = functools.cache(stirred)


def jump(blueprint: Blueprint, grown: Grown) -> float:
    """max |Δlogit| over max |logit|, in fp64."""
    state = state_of(blueprint)
    done = operate(grown, blueprint, state, {}, 1)
    assert done.exact == grown.edit.preserves
    delta, size = max_delta(assemble(blueprint, state), assemble(grown.blueprint, done.state), ids_of(1))
    return delta / size


EXACT = [
    *({"action": "widen", "target": target, "factor": f} for target in ("ffn", "heads", "dim") for f in (1.01, 1.5, 3)),
    *({"action": "deepen", "layers": n, "where": where, "how": how}
      for n in (1, 3, 8) for where in ("middle", "end", "alternate") for how in ("copy", "fresh")),
    *({"action": "to_moe", "k": k} for k in (1, 2)),
    {"action": "split_experts"},
]  # fmt: skip
LOSSY = [
    {"action": "widen", "target": "head_dim"},
    {"action": "deepen", "how": "stack"},
    {"action": "add_experts"},
    {"action": "prune_experts"},
    {"action": "drop_layer"},
    *({"action": "narrow", "target": target} for target in ("ffn", "heads", "dim")),
]


@pytest.mark.parametrize("action", EXACT, ids=lambda a: "-".join(map(str, a.values())))
def test_exact_actions_leave_the_logits(action: dict[str, Any]) -> None:
    for blueprint in {1: [MIXED], 3: [MIXED, LOOPED], 8: [LOOPED]}[action.get("layers", 1)]:
        grown = grow(blueprint, **action)
        assert grown is not None
        assert grown.edit.preserves
        assert apply(blueprint, grown.edit.changes) == grown.blueprint
        assert parameter_count(grown.blueprint) > parameter_count(blueprint)
        assert jump(blueprint, grown) <= (0.0 if action["action"] == "deepen" else 1e-12)


@pytest.mark.parametrize("action", LOSSY, ids=lambda a: "-".join(map(str, a.values())))
def test_lossy_actions_say_so(action: dict[str, Any]) -> None:
    grown = grow(MIXED, **action)
    assert grown is not None
    assert not grown.edit.preserves
    assert apply(MIXED, grown.edit.changes) == grown.blueprint
    assert jump(MIXED, grown) > 1e-3


def test_widths_are_what_the_factor_says() -> None:
    for factor, dim in ((1.5, 24), (1.5625, 25), (1.0001, 17), (4.0, 64)):
        grown = grow(MIXED, action="widen", target="dim", factor=factor)
        assert grown is not None
        assert grown.blueprint.emb.dim == dim
    grown = grow(MIXED, action="widen", target="heads", factor=1.5, blocks=["b0", "b3"])
    assert grown is not None
    shapes = [block.attn and block.attn.model_dump() for block in grown.blueprint.blocks]
    assert [(s["heads"], s.get("kv_groups")) for s in shapes if s] == [(6, 2), (4, 4), (3, 1), (2, None)]
    assert grown.edit.target == "blocks[b0], blocks[b3]"


def test_new_blocks_come_where_they_are_wanted_and_recurrences_follow() -> None:
    def origins(**action: Any) -> list[str | None]:
        grown = grow(LOOPED, action="deepen", **action)
        assert grown is not None
        assert len(grown.blueprint.recurrences) == 1
        old = [block.id for block in LOOPED.blocks]
        return [None if block.id in old else block.origin or "?" for block in grown.blueprint.blocks]

    assert origins(layers=2) == [None, None, None, "b1", "b2", None, None]
    assert origins(layers=2, where="end") == [None, None, None, None, None, "b3", "b4"]
    assert origins(layers=2, where="alternate") == [None, None, "b1", None, None, None, "b4"]
    assert origins(layers=2, where="end", how="fresh") == [None] * 5 + ["?", "?"]
    assert origins(layers=7, where="end") == [None] * 5 + ["b0", "b1", "b2", "b3", "b4", "b0", "b1"]


def mixture(blueprint: Blueprint, block: int = 1) -> MoE:
    part = blueprint.blocks[block].ffn
    assert isinstance(part, MoE)
    return part


def test_an_expert_and_its_twins_split_again_and_again() -> None:
    here = MIXED
    for expert in (0, 0, 4, 4, 1, 6, 0):
        grown = grow(here, action="split_experts", chosen={"b1": (expert,)})
        assert grown is not None
        assert grown.edit.preserves
        assert jump(here, grown) <= 1e-12
        here = grown.blueprint
    assert mixture(here).twins == (0, 0, 4, 4, 1, 6, 0)
    wider = grow(here, action="add_experts")
    assert wider is not None
    assert mixture(wider.blueprint).twins == (0, 0, 5, 5, 1, 7, 0)


def test_several_experts_split_at_once_and_no_more_than_allowed() -> None:
    grown = grow(MIXED, action="split_experts", chosen={"b1": (2, 0)}, max_experts=6)
    assert grown is not None
    assert mixture(grown.blueprint).twins == (2, 0)
    assert grown.takes["b1.ffn/expert"].index == (0, 1, 2, 3, 2, 0)
    grown = grow(MIXED, action="split_experts", chosen={"b1": (2, 0)}, max_experts=5)
    assert grown is not None
    assert mixture(grown.blueprint).twins == (2,)
    assert grow(MIXED, action="split_experts", chosen={"b1": (2, 0)}, max_experts=4) is None


@pytest.mark.parametrize("gone", range(8))
def test_of_equal_twins_any_may_go(gone: int) -> None:
    """Right after they split, twins are alike, so that whoever takes over changes nothing."""
    here, state = MIXED, state_of(MIXED)
    for expert in (0, 0, 4, 4):
        grown = grow(here, action="split_experts", chosen={"b1": (expert,)})
        assert grown is not None
        state, here = operate(grown, here, state, {}, 1).state, grown.blueprint
    grown = grow(here, action="prune_experts", chosen={"b1": (gone,)})
    assert grown is not None
    assert not grown.edit.preserves
    after = operate(grown, here, state, {}, 1).state
    delta, size = max_delta(assemble(here, state), assemble(grown.blueprint, after), ids_of(1))
    assert (delta <= 1e-12 * size) == (gone in (0, 4, 5, 6, 7))


def test_pruned_experts_are_those_chosen() -> None:
    grown = grow(MIXED, action="prune_experts", chosen={"b1": (1, 3)})
    assert grown is not None
    state = stirred(MIXED)
    after = operate(grown, MIXED, state, {}, 0).state
    for name in ("up", "down", "gate", "router"):
        full = f"blocks.1.ffn.{name}.weight"
        assert torch.equal(after[full], state[full][[0, 2]])
    assert grow(MIXED, action="prune_experts", chosen={"b1": (1, 3)}, min_experts=4) is None
    kept = grow(MIXED, action="merge_experts", chosen={"b1": (3, 1)})
    assert kept is not None
    assert kept.takes["b1.ffn/expert"].index == (0, 2, 3)


def test_a_larger_vocabulary_leaves_the_old_logits_and_starts_as_the_mean() -> None:
    for tie in (True, False):
        blueprint = MIXED.evolve(head={"tie_embeddings": tie}) or MIXED
        grown = grow(blueprint, action="grow_vocabulary", tokens=50)
        assert grown is not None
        assert grown.blueprint.emb.vocab == 50
        assert jump(blueprint, grown) <= 1e-15
        state = stirred(blueprint)
        after = operate(grown, blueprint, state, {}, 1).state
        for name in ("emb.weight", "head.weight") if not tie else ("emb.weight",):
            torch.testing.assert_close(after[name][37:], state[name].mean(0).expand(13, -1))
    assert grow(MIXED, action="grow_vocabulary", tokens=37) is None


def test_the_blocks_least_used_are_dropped() -> None:
    used = {"b0": 0.9, "b1": 0.1, "b2": 0.5, "b3": 0.05, "b4": 0.3}
    grown = grow(LOOPED, action="drop_layer", layers=2, used=used)
    assert grown is not None
    assert [block.id for block in grown.blueprint.blocks] == ["b0", "b2", "b4"]
    grown = grow(LOOPED, action="drop_layer", layers=9, used=used)
    assert grown is not None
    assert [block.id for block in grown.blueprint.blocks] == ["b0"]
    assert grow(grown.blueprint, action="drop_layer") is None


def test_limits_forbid_growth_beyond_them_and_nothing_else() -> None:
    deeper = grow(MIXED, action="deepen", layers=2)
    assert deeper is not None
    more = deeper.blueprint
    assert within(GrowthLimits(), MIXED, more, 64) == ""
    assert within(GrowthLimits(max_layers=7), MIXED, more, 64) == ""
    assert within(GrowthLimits(max_layers=6), MIXED, more, 64) == "max_layers is 6, it would have 7"
    assert within(GrowthLimits(max_layers=3), more, MIXED, 64) == ""
    params = parameter_count(more)
    assert within(GrowthLimits(max_params=params), MIXED, more, 64) == ""
    assert within(GrowthLimits(max_params=params - 1), MIXED, more, 64).startswith("max_params is")
    assert within(GrowthLimits(max_flops_per_token=1.0), MIXED, more, 64).startswith("max_flops_per_token is 1,")
    assert within(GrowthLimits(max_dim=8), MIXED, more, 64) == ""


def test_the_same_generator_gives_the_same() -> None:
    for action in ({"action": "deepen", "layers": 3}, {"action": "prune_experts"}, {"action": "split_experts"}):
        assert grow(MIXED, seed=5, **action) == grow(MIXED, seed=5, **action)
