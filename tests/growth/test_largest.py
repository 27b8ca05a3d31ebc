"""How large a model may grow, told beforehand."""

import time
from typing import Any

import pytest
from pydantic import ValidationError
from test_rules_possible import ATTN, DENSE, MIXED, USAGE, blueprint, rule

from morphogen.blueprint.schema import Blueprint
from morphogen.blueprint.tensors import parameter_count
from morphogen.experiment import Experiment
from morphogen.foresight import foreseen, grown, nominal
from morphogen.growth.largest import MOST_GROWTHS, largest, most_times
from morphogen.parts.ffn.moe import MoE

EVERY = {"trigger": "step", "every": 10}
PLATEAU = {"trigger": "plateau", "window": 20}


def sizes(model: Blueprint, steps: int) -> tuple[int, int, int, bool]:
    end = largest(model, 64, 128, steps)
    return len(end.blueprint.blocks), end.blueprint.emb.dim, end.growths, end.bounded


@pytest.mark.parametrize(
    ("when", "limits", "times"),
    [
        ({"trigger": "step", "at": 8}, {}, 1),
        ({"trigger": "step", "at": 100}, {}, 0),  # nothing grows after the last step
        ({"trigger": "tokens", "every": 1280}, {}, 9),
        (EVERY, {}, 9),
        (EVERY, {"max_times": 3}, 3),
        (EVERY, {"cooldown_steps": 30}, 3),
        (PLATEAU, {}, 4),
        ({"trigger": "any", "of": [PLATEAU, EVERY]}, {"cooldown_steps": 45}, 2),
        ({"trigger": "manual"}, {}, 1),
        ({**USAGE, "interval": 25, "window": 10}, {}, 3),
    ],
)
def test_a_rule_acts_as_often_as_its_trigger_and_limits_let_it(when: Any, limits: Any, times: int) -> None:
    model = blueprint(rule("widen", when, **limits), blocks=(ATTN | DENSE, MIXED))
    assert most_times(model, model.growth[0], 128, 100) == times


def test_rules_are_followed_to_their_limits() -> None:
    deepen = rule({"action": "deepen", "layers": 2}, EVERY, max_layers=7)
    assert sizes(blueprint(deepen), 100) == (6, 16, 2, True)
    assert sizes(blueprint(deepen), 15) == (4, 16, 1, True)
    assert sizes(blueprint(rule({"action": "widen", "target": "dim"}, EVERY, max_dim=40)), 100) == (2, 36, 2, True)
    after = blueprint(rule("split_experts", PLATEAU, max_times=1), rule({"action": "to_moe", "n_experts": 4}))
    made = largest(after, 64, 128, 100).blueprint
    assert {block.ffn.n_experts for block in made.blocks if isinstance(block.ffn, MoE)} == {5}
    assert sizes(blueprint(rule("drop_layer", EVERY)), 100) == (2, 16, 0, True)


def test_what_no_limit_ends_is_followed_for_a_while() -> None:
    began = time.process_time()
    assert sizes(blueprint(rule("deepen", EVERY)), 10**6)[2:] == (MOST_GROWTHS, False)
    layers, dim, growths, bounded = sizes(blueprint(rule({"action": "widen", "factor": 16.0}, EVERY)), 10**6)
    assert (layers, dim, bounded) == (2, 16, False)
    assert growths < MOST_GROWTHS
    assert time.process_time() - began < 5.0


def test_one_step_that_goes_too_far_is_seen() -> None:
    layers, _, growths, bounded = sizes(blueprint(rule({"action": "deepen", "layers": 256}, EVERY)), 10**6)
    assert not bounded
    assert layers == 2 + growths * 256 > 2048
    grows = rule({"action": "to_moe", "n_experts": 10**12}, EVERY)
    found = largest(blueprint(grows), 32, 64, 100)
    assert not found.bounded
    assert parameter_count(found.blueprint) > 10**12
    with pytest.raises(ValidationError, match="less than or equal to 256"):
        blueprint(rule({"action": "deepen", "layers": 10**9}, EVERY))


def test_the_largest_is_held_against_the_thresholds_of_rung_0() -> None:
    model = {"emb": {"dim": 16}, "blocks": [ATTN | DENSE], "growth": [rule({"action": "deepen"}, EVERY, max_layers=4)]}
    start = parameter_count(Blueprint.model_validate(model).with_vocab(257))
    made = Experiment.model_validate(
        {
            "model": model,
            "data": {"seq_len": 64, "batch_size": 2, "shards": [{"source": "stdlib-code"}]},
            "evolution": {"rung0_thresholds": {"params": start + 100}},
        }
    )
    whole = nominal(made)[0]
    assert len(grown(made, whole).blueprint.blocks) == 4
    (said,) = [it for it in foreseen(made, whole) if it.loc == ("evolution", "rung0_thresholds")]
    assert (said.refused, "by growth it may come to more: params is" in said.said) == (False, True)
