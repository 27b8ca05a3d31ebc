"""What a training is said to have taken is what its models did: counted pass by pass, however it ends."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from torch import Tensor

from morphogen import cost
from morphogen.blueprint.schema import Blueprint
from morphogen.candidate import Candidate, Job, Report, Stage
from morphogen.cli.status import standing
from morphogen.errors import DivergedError
from morphogen.experiment import Experiment
from morphogen.metrics.throughput import SHARE
from morphogen.network import LanguageModel
from morphogen.pages import read
from morphogen.run import evolve, load
from morphogen.training.trainer import Trainer
from morphogen.training.trial import run_surrogate
from tiny import write_config, write_corpus

pytestmark = [pytest.mark.usefixtures("own_cache"), pytest.mark.trained_before]

SEQ, BATCH = 32, 4
STEP = SEQ * BATCH
LOOP = {"start": 0, "end": 1, "max_train_recurrence": 6, "test_recurrences": [1], "curriculum_fraction": 1.0}
WIDENS = {"when": {"trigger": "step", "at": 7}, "do": {"action": "widen", "target": "ffn", "factor": 4}}


class Passes:
    """Counts what goes through models in training: tokens, and FLOPs by the steps that each recurrence takes then."""

    def __init__(self) -> None:
        self.tokens, self.flops = 0, 0.0

    def add(self, model: LanguageModel, ids_BT1: Tensor) -> None:
        """One pass of a batch, forward and backward."""
        tokens = ids_BT1[:, 1:].numel()
        self.tokens += tokens
        for gene in model.blueprint.genes(SEQ):
            times = gene.loop.steps(model.progress) if gene.loop else 1
            self.flops += 3.0 * tokens * times * gene.part.cost(gene.ctx).flops


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> Passes:
    counted, passed = Passes(), Trainer._passed

    def counting(self: Trainer, ids_BT1: Tensor, *rest: Any) -> Any:
        counted.add(self.model, ids_BT1)
        return passed(self, ids_BT1, *rest)

    monkeypatch.setattr(Trainer, "_passed", counting)
    return counted


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Job]:
    corpus = write_corpus(tmp_path / "corpus")

    def job(model: dict[str, Any], train: dict[str, Any], evolution: dict[str, Any], *budgets: int) -> Job:
        experiment = {
            "model": {"emb": {"dim": 16}, "blocks": [{"ffn": {"kind": "dense", "hidden": 16}}] * 2, **model},
            "train": {"lr": 1e-2, "warmup": 1, "bf16": False, "instability_threshold": 1e3, **train},
            "data": {"seq_len": SEQ, "batch_size": BATCH, "eval_tokens": STEP, "shards": [{"source": str(corpus)}]},
            "evolution": evolution,
        }
        return Job(
            experiment=experiment,
            candidate=Candidate(
                id="c-0",
                index=0,
                generation=0,
                blueprint=Experiment.model_validate(experiment).model.with_vocab(257).to_json(),
            ),
            parents=(),
            ancestors=(),
            stages=tuple(Stage(rung=rung, budget_tokens=steps * STEP) for rung, steps in enumerate(budgets, start=1)),
            seed=0,
            run_dir=str(tmp_path),
            device="cpu",
        )

    return job


#: model, train, evolution, steps of the rungs.
ENDS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any], tuple[int, ...]]] = {
    "to its end": ({"recurrences": [LOOP]}, {}, {}, (3, 9)),
    "at a gate": ({"recurrences": [LOOP]}, {}, {"rung1_gates": {"bpb": {"max": 0.1}}}, (3, 9)),
    "by a guard": ({"recurrences": [LOOP]}, {"instability_threshold": 1e-3}, {}, (3, 40)),
    "grown": ({"recurrences": [LOOP], "growth": [WIDENS]}, {}, {}, (3, 9)),
    "grown, equal FLOPs": ({"recurrences": [LOOP], "growth": [WIDENS]}, {}, {"budget": "flops"}, (3, 9)),
    "in micro-batches": ({"recurrences": [LOOP]}, {"grad_ckpt": True}, {}, (3, 9)),
    "a rate is sought": ({"recurrences": [LOOP]}, {"lr": "auto"}, {}, (3, 9)),
}


@pytest.mark.parametrize("ends", ENDS)
def test_tokens_and_flops_are_those_that_went_through_the_model(
    ends: str, make: Callable[..., Job], passes: Passes
) -> None:
    model, train, evolution, budgets = ENDS[ends]
    job = make(model, train, evolution, *budgets)
    report = run_surrogate(job.replace(micro_batches=2) if "micro" in ends else job)
    assert report.reason == "" or report.status == "gated"
    assert report.tokens_spent == passes.tokens
    assert report.flops == pytest.approx(passes.flops, rel=1e-9)


def test_tests_of_rates_that_end_early_count_as_far_as_they_came(
    make: Callable[..., Job], passes: Passes, monkeypatch: pytest.MonkeyPatch
) -> None:
    from morphogen.training import range_test

    high, run = max(range_test.RATES), Trainer.run

    def ended(self: Trainer, batches: Callable[[int], NDArray[np.int64]], until_step: int, *rest: Any) -> Any:
        too_high = self.train.lr == high
        stop = run(self, batches, 3 if too_high else until_step, *rest)
        return "ended" if too_high else stop

    monkeypatch.setattr(Trainer, "run", ended)
    report = run_surrogate(make({"recurrences": [LOOP]}, {"lr": "auto"}, {}, 12))
    assert report.metrics["lr"] < high
    assert report.tokens_beside == STEP * (8 * (len(range_test.RATES) - 1) + 3)
    assert report.tokens_spent == passes.tokens
    assert report.flops == pytest.approx(passes.flops, rel=1e-9)


def test_a_candidate_that_grew_in_an_earlier_round_has_its_share_of_the_budget_and_a_twin_of_equal_flops(
    make: Callable[..., Job],
) -> None:
    evolution = {"budget": "flops", "rank_by": "both"}
    train = {"anchoring": {"self_distillation": {}}}  # a teacher's passes are FLOPs, but none of the budget's
    job = make({"growth": [WIDENS]}, train, evolution, 12).replace(budget_tokens=36 * STEP, with_twin=True)
    before: Report | None = None
    spent = 0.0
    began = Blueprint.model_validate(job.candidate.blueprint)
    each = cost.train_flops(began, SEQ, STEP)
    for round in range(1, 4):
        now = began if before is None else Blueprint.model_validate(job.candidate.as_trained(before).blueprint)
        tokens = int(12 * STEP * each / cost.train_flops(now, SEQ, STEP))  # as the search scales it
        whole = int(36 * STEP * each / cost.train_flops(now, SEQ, STEP))
        stages = (Stage(rung=round, budget_tokens=tokens),)
        before = run_surrogate(job.replace(before=before, stages=stages, budget_tokens=whole))
        assert before.twin is not None
        spent += 12.0
        grown_each = cost.train_flops(Blueprint.model_validate(job.candidate.as_trained(before).blueprint), SEQ, STEP)
        within = grown_each / each  # whole steps
        assert before.metrics[SHARE] == pytest.approx(spent / 36.0, abs=round * within / 36.0)
        assert before.metrics[SHARE] <= spent / 36.0 + 0.01
        assert before.twin.steps == pytest.approx(spent * each / grown_each, abs=round + 1.0)
    assert len(before.growth) == 1


def test_totals_count_twins_rates_and_annealing_in_every_place(tmp_path: Path, passes: Passes) -> None:
    rounds = "rungs: asha, eta: 2, min_tokens: 128, max_tokens: 384, rank_by: both, anneal_tokens: 128"
    path = write_config(
        tmp_path,
        **{
            "rung1_tokens: 128, rung2_tokens: 256": rounds,
            "generations: 2, population: 3": "generations: 1, population: 2",
            "survivors: rest": "survivors: train",
            "lr: 0.01": "lr: auto",
        },
    )
    evolve(load(path), tmp_path / "run")
    run = read(tmp_path / "run")
    reports = run.reports.values()
    assert any(report.twin is not None for report in reports)
    assert sum(report.tokens_spent for report in reports) == passes.tokens
    assert sum(report.flops for report in reports) == pytest.approx(passes.flops, rel=1e-9)
    assert standing(tmp_path / "run")["training_tokens"] == passes.tokens
    with (tmp_path / "run" / "events.csv").open() as file:
        table = list(csv.DictReader(file))
    assert sum(int(row["tokens_own"]) + int(row["tokens_beside"]) for row in table) == passes.tokens
    for row in table:
        twin = run.reports[row["id"]].twin
        told = {name.removeprefix("twin_"): value for name, value in row.items() if name.startswith("twin_") and value}
        assert told.keys() == (set() if twin is None else {*twin.metrics, "tokens", "steps", "flops"})
        assert twin is None or float(told["bpb"]) == twin.metrics["bpb"]


def test_a_later_round_that_fails_has_been_paid_for(
    tmp_path: Path, passes: Passes, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds = "promotion_prob: 1.0, promotion_steps_multiplier: 1.0, promotion_tokens_multiplier: 2.0, topk_keep: 2"
    path, run = write_config(tmp_path, **{"topk_keep: 2": rounds}), Trainer.run

    def failing(self: Trainer, *rest: Any) -> Any:
        stop = run(self, *rest)
        if self.total_steps == 4:  # of the promoted
            raise DivergedError("by design")
        return stop

    monkeypatch.setattr(Trainer, "run", failing)
    evolve(load(path), tmp_path / "run", generations=0)
    (report,) = read(tmp_path / "run").reports.values()
    assert "by design" in report.reason
    assert (report.tokens.own, report.tokens_beside) == (3 * STEP, 4 * STEP)
    assert report.tokens_spent == passes.tokens
    assert report.flops == pytest.approx(passes.flops, rel=1e-9)
    assert standing(tmp_path / "run")["training_tokens"] == passes.tokens
