"""`priors`: off by default, and each of them read by something."""

import pytest

from morphogen.experiment import Experiment
from morphogen.knobs import knobs
from morphogen.selection.parents import SELECTORS

MODEL = {"emb": {"dim": 16, "vocab": 64}, "blocks": [{"ffn": {"kind": "dense", "hidden": 32}}]}


def experiment(**more: object) -> Experiment:
    return Experiment.model_validate({"model": MODEL, **more})


def test_no_prior_changes_a_search_by_default() -> None:
    plain = experiment(evolution={"weights": {"ppl": 2.0}})
    assert plain.scored_by == {"ppl": 2.0}
    assert experiment().scored_by == {}


def test_a_penalty_on_compute_is_a_score_beside_the_others() -> None:
    priors = {"compute_penalty_weight": 0.5}
    assert experiment(priors=priors, evolution={"weights": {"ppl": 2.0}}).scored_by == {
        "ppl": 2.0,
        "flops_per_token": 0.5,
    }
    # without weights every objective weighs 1, and so it goes on to be
    alone = experiment(priors=priors, evolution={"objectives": {"bpb": "min", "flops_per_token": "min"}})
    assert alone.scored_by == {"bpb": 1.0, "flops_per_token": 1.5}


@pytest.mark.parametrize("selection", SELECTORS)
def test_every_selection_reads_the_penalty(selection: str) -> None:
    told = knobs(experiment(priors={"compute_penalty_weight": 0.5}, evolution={"parent_selection": selection}))
    assert "priors" not in [remark.loc[0] for remark in told]


def test_a_budget_beyond_what_a_parameter_is_worth_is_told() -> None:
    from morphogen.foresight import _budgets

    text = {"seq_len": 16, "batch_size": 1}
    evolution = {"rung1_tokens": 16, "rung2_tokens": 32_000}
    told = list(_budgets(experiment(priors={"tokens_per_param": 2}, data=text, evolution=evolution)))
    assert [remark.loc for remark in told if not remark.refused] == [("priors", "tokens_per_param")]
    assert not list(_budgets(experiment(data=text, evolution=evolution)))
