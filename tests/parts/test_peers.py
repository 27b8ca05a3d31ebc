"""Every kind of part computes what an independent implementation with the same weights computes, in fp32.

The comparisons are those of benchmarks/numerics.py: outputs within 1e-5 and every gradient within 1e-4, relative to the
largest entry.
"""

import importlib

import pytest
import torch

from morphogen.parts.contract.part import REGISTRY
from peers import Case, Weights, errors

FAMILIES = ("peer_attention", "peer_layers", "references")
FORWARD, GRADIENT = 1e-5, 1e-4


def beyond(cases: list[Case], tokens: int) -> list[str]:
    """What is out of bounds, in words."""
    found = [(case.name, errors(case, tokens)) for case in cases]
    return [f"{name}: {e}" for name, e in found if not (e.forward <= FORWARD and e.gradient <= GRADIENT)]


@pytest.mark.parametrize("family", FAMILIES)
def test_outputs_and_every_gradient_are_the_references(family: str) -> None:
    cases = list(importlib.import_module(family).cases())
    assert len(cases) > 10
    assert beyond(cases, 130) == []


@pytest.mark.parametrize("tokens", [7, 63])
def test_at_other_lengths_too(tokens: int) -> None:
    layers = importlib.import_module("peer_layers")
    assert beyond([*layers.cases(), importlib.import_module("peer_attention").delta()], tokens) == []


def test_every_registered_kind_is_compared() -> None:
    compared = {case.name.split()[0] for family in FAMILIES for case in importlib.import_module(family).cases()}
    missing = {kind for _, kind in REGISTRY} - compared - {"foreign"}  # its reference is the model it is from
    assert not missing, f"add a case for {', '.join(sorted(missing))} to cases() of tests/references.py"


def test_a_wrong_output_and_a_wrong_gradient_are_found() -> None:
    weight = torch.full((3, 24), 0.5, requires_grad=True)

    def ours(x: torch.Tensor) -> torch.Tensor:
        return x @ weight.T

    def shifted(x: torch.Tensor, w: Weights) -> torch.Tensor:
        return x @ w["weight"].T * 1.001

    def stopped(x: torch.Tensor, w: Weights) -> torch.Tensor:
        return x @ w["weight"].T + 0.001 * (w["weight"].sum() - w["weight"].sum().detach())

    for theirs in (shifted, stopped):
        assert len(beyond([Case("wrong", "formula", ours, theirs, {"weight": weight})], 9)) == 1
