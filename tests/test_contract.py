"""The part contract (DESIGN section 4): the shipped suite over every registered kind and operator."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from examples import up_to
from grounds import EVERY_PART, first
from morphogen.blueprint.schema import Blueprint
from morphogen.parts.contract.branch import State
from morphogen.parts.contract.operator import OPERATORS
from morphogen.parts.contract.part import REGISTRY, Context, Cost
from morphogen.parts.memory.memory_tokens import MemoryTokens
from morphogen.parts.mixing.short_conv import ShortConv
from morphogen.parts.mixing.short_conv_layer import ShortConvBranch
from morphogen.testing import contract_tests, models
from morphogen.testing.contract import (
    TOLERATED,
    Check,
    a_sequence_fed_in_pieces_gives_the_same_output,
    caches_hold_the_bytes_that_cost_says,
    decoding_in_chunks_gives_the_logits_of_the_whole,
    flops_are_those_counted,
    output_shape_no_future_and_no_neighbour,
    without_dead_units,
)
from morphogen.testing.fields import parts_of
from morphogen.testing.operators import changes_and_is_exact_as_declared, jump, new_weights_train
from morphogen.variation.foreign import NAMES
from morphogen.variation.operator import apply_operator
from plugins import installed
from strategies import VOCAB, blueprints

#: Layers of other models need those: tests/parts/test_foreign.py and tests/variation/test_foreign_operators.py.
KINDS = [key for key in sorted(REGISTRY) if key[0] not in ("stem", "recurrence") and key != ("extra", "foreign")]
#: Operators that others do not work through.
SIMPLE = [name for name, op in OPERATORS.items() if op.level in ("part", "block", "model")]


@pytest.fixture(scope="module", autouse=True)
def _plugin() -> Iterator[None]:
    """A plug-in is installed, so that it can be put in."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("morphogen.plugins.entry_points", installed)
        yield


test_contract = contract_tests(*KINDS, examples=up_to(12, fast=2))


@pytest.mark.parametrize(
    ("check", "wrong", "message"),
    [
        (flops_are_those_counted, {"flops": 0.9}, "short_conv: cost says .* FLOPs per token"),
        (flops_are_those_counted, {"flops": 1.1}, "short_conv: cost says .* FLOPs per token"),
        (flops_are_those_counted, {"elementwise": 0.0}, "short_conv: cost says .* 0 of them elementwise"),
        (caches_hold_the_bytes_that_cost_says, {"state_bytes": 0.5}, "short_conv: cost says -192 bytes of cache"),
        (caches_hold_the_bytes_that_cost_says, {"state_bytes": 2.0}, r"short_conv: cost says \+384 bytes of cache"),
    ],
)
def test_a_cost_that_is_not_what_is_counted_fails(
    check: Check, wrong: dict[str, float], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = ShortConv.cost

    def costed(part: ShortConv, ctx: Context) -> Cost:
        cost = real(part, ctx)
        return replace(cost, **{name: factor * vars(cost)[name] for name, factor in wrong.items()})

    block = {"extras": [{"kind": "short_conv", "kernel": 13, "width": 16}]}
    blueprint = Blueprint.model_validate({"emb": {"dim": 8, "vocab": VOCAB}, "blocks": [block]})
    assert_holds(check, blueprint)
    monkeypatch.setattr(ShortConv, "cost", costed)
    with pytest.raises(AssertionError, match=message):
        assert_holds(check, blueprint)


def future(branch: ShortConvBranch, x_BTD: torch.Tensor, state: State) -> torch.Tensor:
    return x_BTD.flip(1)


def forgetful(branch: ShortConvBranch, x_BTD: torch.Tensor, state: State) -> torch.Tensor:
    return CONVOLVED(branch, x_BTD, {})


def rounding(branch: ShortConvBranch, x_BTD: torch.Tensor, state: State) -> torch.Tensor:
    y_BTD = CONVOLVED(branch, x_BTD, state)
    state["past"] = state["past"].float()
    return y_BTD


CONVOLVED = ShortConvBranch.mix_on


@pytest.mark.parametrize(
    ("check", "wrong", "message"),
    [
        (output_shape_no_future_and_no_neighbour, future, r"moves the logits of those before it by .*: a branch sees"),
        (decoding_in_chunks_gives_the_logits_of_the_whole, forgetful, "logits are .* from the whole's; does `state`"),
        (
            a_sequence_fed_in_pieces_gives_the_same_output,
            forgetful,
            r"extras.0, fed in pieces of \[.*\] tokens",
        ),
        (a_sequence_fed_in_pieces_gives_the_same_output, rounding, "in no narrower a type than they are computed in"),
    ],
)
def test_a_branch_that_breaks_the_contract_is_told_what_is_wrong(
    check: Check, wrong: object, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    block = {"extras": [{"kind": "short_conv", "kernel": 13, "width": 16}]}
    monkeypatch.setattr(ShortConvBranch, "mix_on", wrong)
    monkeypatch.setattr(models, "_known", models._known.__wrapped__)  # what is computed so is not kept
    with pytest.raises(AssertionError, match=message):
        assert_holds(
            check, Blueprint.model_validate({"emb": {"dim": 8, "vocab": VOCAB}, "blocks": [block]}), examples=9
        )


def test_memory_tokens_serve_as_an_expert_that_no_token_chooses() -> None:
    part, ctx = MemoryTokens(heads=1, head_dim=3, tokens=2), Context(8, "rmsnorm", VOCAB, 0.02, 1)
    assert part.build(ctx)(torch.zeros(1, 0, 8)).shape == (1, 0, 8)


def test_no_unit_is_left_that_may_be_dead_by_nature() -> None:
    linear = {"kind": "LINEAR", "heads": 1, "head_dim": 4, "feature_map": "relu"}
    memories = [{"kind": "assoc_memory", "heads": 1, "head_dim": 4, "feature_map": name} for name in ("relu", "dpfp")]
    experts = {"kind": "moe", "n_experts": 3, "k": 1, "hidden": 4, "activation": "relu2"}
    blocks = [{"attn": linear, "extras": memories, "ffn": experts}]
    alive = without_dead_units(Blueprint.model_validate({"emb": {"dim": 8, "vocab": VOCAB}, "blocks": blocks}))
    written = alive.model_dump_json()
    assert "relu" not in written
    assert "dpfp" not in written
    assert written.count('"feature_map":"elu"') == 3


def assert_holds(check: Check, blueprint: Blueprint, examples: int = 1) -> None:
    """One check of one blueprint."""

    @settings(max_examples=examples, deadline=None)
    @given(data=st.data())
    def run(data: st.DataObject) -> None:
        check(blueprint, data)

    run()


@pytest.mark.parametrize(("slot", "kind"), [key for key in KINDS if key != ("extra", "custom")])
@settings(max_examples=up_to(16, fast=2), suppress_health_check=TOLERATED)
@given(data=st.data())
def test_every_kind_can_be_drawn_from_its_fields(slot: str, kind: str, data: st.DataObject) -> None:
    assert data.draw(parts_of(REGISTRY[slot, kind], kind)).label == kind


@pytest.mark.parametrize("name", sorted(OPERATORS.keys() - NAMES))
def test_an_operator_changes_something_and_is_exact_as_declared(name: str) -> None:
    blueprint, seed = first(name)
    changes_and_is_exact_as_declared(name, blueprint, seed)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(OPERATORS.keys() - NAMES))
@settings(max_examples=16)
@given(blueprint=blueprints(), seed=st.integers(0, 2**31))
def test_an_operator_is_as_declared_on_any_blueprint(name: str, blueprint: Blueprint, seed: int) -> None:
    changes_and_is_exact_as_declared(name, blueprint, seed)


@pytest.mark.parametrize("name", sorted(n for n in SIMPLE if OPERATORS[n].preserves is not False and n not in NAMES))
def test_new_weights_train(name: str) -> None:
    blueprint, seed = first(name)
    new_weights_train(name, blueprint, seed)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(n for n in SIMPLE if OPERATORS[n].preserves is not False))
@settings(max_examples=8)
@given(blueprint=blueprints(), seed=st.integers(0, 2**31))
def test_new_weights_train_in_any_blueprint(name: str, blueprint: Blueprint, seed: int) -> None:
    new_weights_train(name, blueprint, seed)


@pytest.mark.parametrize("name", sorted(n for n, op in OPERATORS.items() if op.preserves is False and n not in NAMES))
def test_a_lossy_operator_is_lossy_somewhere(name: str) -> None:
    for blueprint, seed in [first(name), *((EVERY_PART[seed % len(EVERY_PART)], seed) for seed in range(40))]:
        made = apply_operator(blueprint, name, np.random.default_rng(seed))
        if made is not None and jump(blueprint, made[1], torch.float64, seed % 1000)[0] > 1e-6:
            return
    pytest.fail("no draw moved the logits")
