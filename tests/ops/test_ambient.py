"""What a notebook has set in torch gets into nothing that is made."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

import morphogen as mg
from morphogen.blueprint.schema import Blueprint
from morphogen.ops.ambient import as_usual
from morphogen.testing.models import ids_of, loss_of

PARENT = Blueprint.model_validate(
    {
        "emb": {"dim": 16, "vocab": 37},
        "blocks": [{"attn": {"kind": "MHA", "heads": 2, "head_dim": 8}, "ffn": {"kind": "dense", "hidden": 16}}],
    }
)
CHILD = mg.mutate(PARENT, "dense_to_moe", seed=0)[0]


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def all_at_once() -> Iterator[None]:
    with AROUND["inference"](), AROUND["autocast"](), AROUND["float64"](), AROUND["meta"]():
        yield


AROUND: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "no_grad": torch.no_grad,
    "inference": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "float64": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "meta": lambda: torch.device("meta"),
    "all at once": all_at_once,
}


def standing() -> tuple[object, ...]:
    """What can be set around a computation."""
    depth = torch.autocast_increment_nesting() - 1
    torch.autocast_decrement_nesting()
    return (
        torch.get_default_dtype(),
        torch.get_default_device(),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        depth,
    )


def trained() -> dict[str, Tensor]:
    """A model after two steps in bf16."""
    model = mg.build(PARENT, seed=1)
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(model, ids_of(2))
        loss.backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 0.1 * parameter.grad
        model.zero_grad()
    return dict(model.state_dict())


MADE: dict[str, Callable[[], dict[str, Tensor]]] = {
    "inherit": lambda: mg.inherit(CHILD, [(PARENT, STATE)], seed=3)[0],
    "grow": lambda: MODEL.grow_layers(1, how="fresh").widen("dim", 1.5).state_dict(),
    "train": as_usual()(trained),
}
MODEL = mg.build(PARENT, seed=0)
STATE = dict(MODEL.state_dict())


@pytest.mark.parametrize("around", AROUND)
@pytest.mark.parametrize("made", MADE)
def test_what_is_set_around_changes_nothing(made: str, around: str) -> None:
    wanted = MADE[made]()
    before = standing()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with AROUND[around]():
            within = standing()
            found = MADE[made]()
            assert standing() == within
    assert standing() == before
    assert {name: tensor.dtype for name, tensor in found.items()} == {name: x.dtype for name, x in wanted.items()}
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())
    assert not any(tensor.is_inference() for tensor in found.values())


@pytest.mark.parametrize("around", AROUND)
def test_a_built_model_has_the_same_weights_in_the_default_precision(around: str) -> None:
    with AROUND[around]():
        model = mg.build(PARENT, seed=0)
        dtype, device = torch.get_default_dtype(), torch.get_default_device()
    assert {(x.dtype, x.device.type) for x in model.state_dict().values()} == {(dtype, device.type)}
    assert all(parameter.requires_grad for parameter in model.parameters())
    if device.type != "meta":
        assert all(torch.equal(tensor, STATE[name].to(dtype)) for name, tensor in model.state_dict().items())
        loss_of(model, ids_of(1)).backward()


def test_what_was_set_around_is_set_again_after_an_error() -> None:
    with AROUND["all at once"]():
        before = standing()
        with pytest.raises(ZeroDivisionError), as_usual():
            1 / (standing() != (torch.float32, torch.device("cpu"), True, False, False, 0))
        assert standing() == before
