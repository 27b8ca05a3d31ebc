"""Rung 0's static gates and the budgets of the rungs that train."""

import pytest

from morphogen.errors import InputError
from morphogen.experiment import Evolution
from morphogen.search.rungs import check_thresholds, rejection, stages

COSTS = {"params": 1000.0, "flops_per_token": 50.0, "layers": 2.0, "recurrences": 1.0}


def test_a_cost_at_its_limit_passes_and_one_above_does_not():
    assert rejection(COSTS, Evolution(rung0_thresholds={"params": 1000})) == ""
    assert rejection(COSTS, Evolution(rung0_thresholds={"params": 999})) == (
        "params is 1000, above rung0_thresholds.params 999"
    )


def test_every_reason_is_given():
    limits = {"params": 1, "flops_per_token": 2}
    reason = rejection(COSTS, Evolution(rung0_thresholds=limits, min_layers=3, min_recurrences=2))
    assert reason.split("; ") == [
        "params is 1000, above rung0_thresholds.params 1",
        "flops_per_token is 50, above rung0_thresholds.flops_per_token 2",
        "layers is 2, below min_layers 3",
        "recurrences is 1, below min_recurrences 2",
    ]


def test_unknown_costs_are_refused_with_the_nearest_name():
    with pytest.raises(InputError, match=r"rung0_thresholds.parms: got 'parms'.*did you mean 'params'"):
        check_thresholds(Evolution(rung0_thresholds={"parms": 1}), COSTS)


@pytest.mark.parametrize(
    ("one", "two", "expected"), [(10, 20, [(1, 10), (2, 20)]), (0, 20, [(2, 20)]), (10, 0, [(1, 10)])]
)
def test_a_rung_without_a_budget_is_left_out(one, two, expected):
    found = stages(Evolution(rung1_tokens=one, rung2_tokens=two))
    assert [(stage.rung, stage.budget_tokens) for stage in found] == expected
