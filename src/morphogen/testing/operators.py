"""What operators promise, as checks of one blueprint, and as a test over any of them."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from morphogen.blueprint.diff import apply, digest
from morphogen.blueprint.schema import Blueprint
from morphogen.blueprint.tensors import specs
from morphogen.candidate import Edit
from morphogen.inherit.descent import inherit
from morphogen.inherit.plan import plan
from morphogen.network import assemble, initial_state
from morphogen.parts.contract.part import Part, kinds_of
from morphogen.testing.contract import EXAMPLES, TOLERATED, without_dead_units
from morphogen.testing.models import ids_of, known, logits, loss_of, stirred
from morphogen.testing.strategies import blueprints_with
from morphogen.variation.operator import apply_operator

FP32_BOUND, FP64_BOUND = 2e-6, 1e-12


def operator_tests(*names: str, on: type[Part], examples: int = EXAMPLES) -> Callable[..., None]:
    """Makes a test of what operators promise: they change something, are exact as declared, and new weights train.
    Assign it to a name `test_...`.

    Args:
        names: Of the operators.
        on: The class of part that every drawn blueprint has.
        examples: Drawn blueprints for each check of an operator.

    Returns:
        A test for pytest.
    """

    @pytest.mark.parametrize("check", [changes_and_is_exact_as_declared, new_weights_train])
    @pytest.mark.parametrize("name", names)
    @settings(max_examples=examples, deadline=None, suppress_health_check=TOLERATED)
    @given(blueprint=blueprints_with(on.slot, kinds_of(on)[0]), seed=st.integers(0, 2**31))
    def test_operators(name: str, check: Check, blueprint: Blueprint, seed: int) -> None:
        check(name, blueprint, seed)

    test: Callable[..., None] = test_operators
    return test


Check = Callable[[str, Blueprint, int], None]


def jump(parent: Blueprint, edit: Edit, dtype: torch.dtype, seed: int = 0) -> tuple[float, bool]:
    """max |Δlogit| over max |logit|, and whether the splice, step by step, called itself exact."""
    state, before = known(parent, seed, dtype)
    child = apply(parent, edit.changes)
    child_state, report = inherit(child, [(parent, state)], edits=[edit], seed=seed)
    after = logits(child, child_state, ids_of(seed))
    return float((before - after).abs().max() / before.abs().max()), report.exact


def rounding(blueprint: Blueprint, seed: int) -> float:
    """How far the same weights' logits in fp32 and fp64 lie apart."""
    single, double = (known(blueprint, seed, dtype).logits_BTV for dtype in (torch.float32, torch.float64))
    return float((single - double).abs().max() / double.abs().max())


def changes_and_is_exact_as_declared(name: str, blueprint: Blueprint, seed: int) -> None:
    """The operator gives None, or another blueprint that inherits as it says it does."""
    made = apply_operator(blueprint, name, np.random.default_rng(seed))
    if made is None:
        return
    child, edit = made
    assert apply(blueprint, edit.changes) == child
    assert (digest(child) != digest(blueprint)) == (edit.target != "train"), f"{name} changed nothing that is computed"
    drawn = plan(child, [blueprint])
    assert sorted(t.tensor for t in drawn.tensors) == sorted(specs(child))
    distance, called_exact = jump(blueprint, edit, torch.float64, seed % 1000)
    said = "; ".join(drawn.notes) or "nothing"
    assert called_exact == edit.preserves, (
        f"{name} at {edit.target} says preserves={edit.preserves}, the splice exact={called_exact} (notes: {said}); "
        "which fields only set sizes is in the part's `neutral_fields`"
    )
    if edit.preserves:
        moved = f"{name} at {edit.target} says that it preserves the function, but logits move by {distance:.1g}"
        assert distance <= FP64_BOUND, f"{moved}; do new units write zero, by `fresh_zero`?"
        # Rounding alone passes the bound now and then at 8 channels or 1 hidden unit, in the parent as in the child;
        # fp64 above tells rounding from a jump.
        single = jump(blueprint, edit, torch.float32, seed % 1000)[0]
        assert single <= FP32_BOUND or single <= 8 * rounding(blueprint, seed % 1000)


def fresh_entries(child: Blueprint, parent: Blueprint) -> dict[str, torch.Tensor]:
    """Masks of the entries that a splice initialises, found by splicing a parent of NaNs."""
    nans = {name: torch.full_like(t, torch.nan, dtype=torch.float64) for name, t in initial_state(parent, 0).items()}
    state, _ = inherit(child, [(parent, nans)])
    return {name: ~t.isnan() for name, t in state.items() if bool((~t.isnan()).any())}


def new_weights_train(name: str, blueprint: Blueprint, seed: int) -> None:
    """Where it is exact, at least 99 % of the fresh entries have a gradient that is not zero after two steps."""
    blueprint = without_dead_units(blueprint)
    made = apply_operator(blueprint, name, np.random.default_rng(seed))
    if made is None or not made[1].preserves:
        return
    child = without_dead_units(made[0], split=True)
    parent_state = stirred(blueprint, 0)
    child_state, report = inherit(child, [(blueprint, parent_state)], seed=seed % 1000)
    if report.fresh == 0:
        return
    model = assemble(child, child_state).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    ids_BT = ids_of(4, batch=4)
    for _ in range(2):
        optimizer.zero_grad()
        torch.autograd.backward(loss_of(model, ids_BT))
        optimizer.step()
    optimizer.zero_grad()
    torch.autograd.backward(loss_of(model, ids_BT))
    fresh, parameters = fresh_entries(child, blueprint), dict(model.named_parameters())
    total = sum(int(mask.sum()) for each, mask in fresh.items() if each in parameters)
    gradients = [(p.grad, fresh[each]) for each, p in parameters.items() if each in fresh and p.grad is not None]
    alive = sum(int((gradient[mask] != 0).sum()) for gradient, mask in gradients)
    assert alive >= 0.99 * total, f"{name}: of {total} new entries only {alive} have a gradient after two steps"
