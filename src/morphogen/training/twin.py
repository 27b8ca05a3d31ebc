"""Twins: a candidate's blueprint trained from fresh weights, by which lossy edits are judged. Called by `trial`.

Weights that were trained for another blueprint judge an edit wrongly where it does not keep their function: what is
better from scratch can be worse inherited. A twin is the candidate as though it were the root: it reads the text that
the root began with, in the same order, and every tensor that both have (gene, name and shape) begins with the same
weights, so that it is compared with the root and all other twins in pairs. The root is its own twin.

A candidate that grew has the twin of what it grew into, which does not grow: it judges an architecture.
"""

import math
from pathlib import Path

from morphogen.blueprint.schema import Blueprint
from morphogen.candidate import Job, Measured, Report, Stage, Status, Twin, moments_path
from morphogen.cost import train_flops
from morphogen.experiment import Evolution
from morphogen.metrics.throughput import SHARE

#: Of the experiment, so that the twin has no weights to inherit or merge, no gates to pass, and no twin of its own.
ALONE = {
    "rank_by": "inherited",
    "weight_inheritance": "scratch",
    "inherit_optimizer": False,
    "crossover_prob": 0.0,
    "rung1_gates": {},
}


def twin_job(job: Job, report: Report) -> Job:
    """The job of the twin of a trained candidate: what that has become, on as many tokens as it has for itself, those
    of its earlier rungs too."""
    experiment = dict(job.experiment)
    experiment["train"] = {**experiment["train"], "init_checkpoint": None, "ppl_stop_threshold": None}
    experiment["train"] |= {"init_tokenizer": "same"}
    experiment["evolution"] = {**experiment["evolution"], **ALONE}
    trained = job.candidate.as_trained(report)
    return job.replace(
        with_twin=False,
        experiment=experiment,
        candidate=trained.replace(
            index=0,
            generation=0,
            parents=(),
            edits=(),
            blueprint={name: value for name, value in trained.blueprint.items() if name != "growth"},
        ),
        parents=(),
        ancestors=(),
        before=None,
        first_token=0,
        stages=(Stage(rung=job.stages[-1].rung, budget_tokens=_tokens(job, report)),),
    )


def with_twin(job: Job, report: Report, found: Report) -> Report:
    """The report of a trained candidate with what its twin found; without a sound twin it has failed."""
    timed = {**report.timed, "seconds": report.timed["seconds"] + found.timed.get("seconds", 0.0)}
    beside = report.tokens_beside + found.tokens_spent
    report = report.replace(timed=timed, flops=report.flops + found.flops, tokens_beside=beside)
    if found.status is not Status.TRAINED:
        assert report.checkpoint is not None
        weights = Path(job.run_dir) / report.checkpoint
        for path in (weights, moments_path(weights)):
            path.unlink(missing_ok=True)
        return report.replace(
            status=Status.FAILED,
            reason=f"its twin from fresh weights: {found.reason}",
            stop_reason=found.stop_reason,
            nan_seen=report.nan_seen or found.nan_seen,
            checkpoint=None,
        )
    twin = Twin(
        **{name: dict(found)[name] for name in Measured.model_fields},
        share=Evolution.model_validate(job.experiment["evolution"]).twin_share,
        tokens=found.tokens.own,
        steps=found.steps,
        flops=found.flops,
    )
    return report.replace(twin=twin)


def _tokens(job: Job, report: Report) -> int:
    """Those that the candidate has for itself; under `budget: flops`, where it grew, as many as cost what it costs."""
    planned = sum(stage.budget_tokens for stage in job.stages)
    if job.experiment["evolution"]["budget"] == "tokens" or not report.growth:
        return planned + (job.before.tokens.own if job.before is not None else 0)
    seq_len, before = job.experiment["data"]["seq_len"], job.before
    grown = Blueprint.model_validate(job.candidate.as_trained(report).blueprint)
    begun = Blueprint.model_validate(job.candidate.as_trained(before).blueprint)
    if begun.emb.vocab is None:
        begun = begun.with_vocab(grown.context().vocab)
    each, grown_each = (train_flops(blueprint, seq_len, 1) for blueprint in (begun, grown))
    spent = 0.0 if before is None else before.metrics.get(SHARE, 0.0) * job.budget_tokens  # of its own training alone
    return math.floor((spent + planned) * each / grown_each)
