"""What other numbers of steps are worth, on a model whose loss at each number is known."""

import math
from collections.abc import Mapping

import pytest

from morphogen.blueprint.schema import Blueprint
from morphogen.metrics.perplexity import Score
from morphogen.metrics.recurrence import recurrence_metrics
from morphogen.network import LanguageModel, build

WEIGHTS = {"a": 1.0, "b": 1.0}


def model_with(*tests: tuple[int, ...]) -> LanguageModel:
    loops = [{"start": i, "end": i + 1, "max_train_recurrence": 2, "test_recurrences": t} for i, t in enumerate(tests)]
    block = {"ffn": {"kind": "dense", "hidden": 8}}
    return build(
        Blueprint.model_validate({"emb": {"dim": 8, "vocab": 5}, "blocks": [block, block], "recurrences": loops})
    )


def known(ppl: float) -> dict[str, list[Score]]:
    """Two shards, the second twice as hard."""
    return {"a": [Score(10 * math.log(ppl), 10, 10)], "b": [Score(10 * math.log(2 * ppl), 10, 10)]}


def test_every_count_is_measured_once_and_the_gain_is_that_of_the_best() -> None:
    model, seen = model_with((1, 4)), list[int | None]()
    ppl = {1: 8.0, 4: 6.0, 2: 5.0}

    def measure() -> Mapping[str, list[Score]]:
        seen.append(model.eval_steps)
        return known(ppl[model.eval_steps or 0])

    found = recurrence_metrics(model, known(5.0), WEIGHTS, measure)
    assert seen == [1, 4]
    assert model.eval_steps is None
    assert found["recurrence_gain"] == pytest.approx(1 - 6 / 8)
    assert {name for name in found if name != "recurrence_gain"} == {
        f"ppl{shard}_rec_{n}" for shard in ("", "_a", "_b") for n in (1, 4)
    }
    assert (found["ppl_a_rec_4"], found["ppl_b_rec_4"], found["ppl_rec_1"]) == pytest.approx((6.0, 12.0, 12.0))


def test_the_count_it_runs_at_anyway_is_not_measured_again() -> None:
    model, seen = model_with((2,), (3,)), list[int | None]()
    alone = model_with((2,))

    def measure() -> Mapping[str, list[Score]]:
        seen.append(model.eval_steps or alone.eval_steps)
        return known(9.0)

    recurrence_metrics(alone, known(5.0), WEIGHTS, measure)
    assert seen == [1]
    recurrence_metrics(model, known(5.0), WEIGHTS, measure)
    assert seen == [1, 1, 3]


def test_a_count_without_a_finite_loss_has_no_figure() -> None:
    model = model_with((1, 4))

    def measure() -> Mapping[str, list[Score]]:
        return known(8.0) if model.eval_steps == 1 else {"a": [Score(math.nan, 10, 10)]}

    found = recurrence_metrics(model, known(5.0), WEIGHTS, measure)
    assert found["recurrence_gain"] == 0.0
    assert not any(name.endswith("rec_4") for name in found)
    assert model.eval_steps is None


def test_there_is_no_gain_over_a_single_step_that_has_no_loss() -> None:
    model = model_with((1, 4))

    def measure() -> Mapping[str, list[Score]]:
        return {"a": [Score(math.nan, 10, 10)]} if model.eval_steps == 1 else known(8.0)

    found = recurrence_metrics(model, known(5.0), WEIGHTS, measure)
    assert "ppl_rec_4" in found
    assert "ppl_rec_1" not in found
    assert "recurrence_gain" not in found


def test_without_recurrence_there_is_no_gain() -> None:
    assert recurrence_metrics(model_with(), known(5.0), WEIGHTS, lambda: pytest.fail("measured")) == {
        "recurrence_gain": 0.0
    }
