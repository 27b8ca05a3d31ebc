"""Twins: a candidate's blueprint trained from fresh weights, by which lossy edits are judged. Called by `trial`.

Weights that were trained for another blueprint judge an edit wrongly where it does not keep their function: what is
better from scratch can be worse inherited. A twin is the candidate as though it were the root: it reads the text that
the root began with, in the same order, and every tensor that both have (gene, name and shape) begins with the same
weights, so that it is compared with the root and all other twins in pairs. The root is its own twin.
"""

from morphogen.candidate import Job, Report, Stage

#: Of the experiment, so that the twin has no weights to inherit, no gates to pass, and no twin of its own.
ALONE = {
    "rank_by": "inherited",
    "weight_inheritance": "scratch",
    "inherit_optimizer": False,
    "rung1_gates": {},
}


def twin_job(job: Job, report: Report) -> Job:
    """The job of the twin of a trained candidate: what that has become, on as many tokens as it has for itself, those
    of its earlier rungs too."""
    experiment = dict(job.experiment)
    experiment["train"] = {**experiment["train"], "init_checkpoint": None, "ppl_stop_threshold": None}
    experiment["train"] |= {"init_tokenizer": "same"}
    experiment["evolution"] = {**experiment["evolution"], **ALONE}
    earlier = job.before.tokens.own if job.before is not None else 0
    budget_tokens = earlier + sum(stage.budget_tokens for stage in job.stages)
    return job.replace(
        with_twin=False,
        experiment=experiment,
        candidate=job.candidate.as_trained(report).replace(index=0, generation=0, parents=(), edits=()),
        parents=(),
        ancestors=(),
        before=None,
        first_token=0,
        stages=(Stage(rung=job.stages[-1].rung, budget_tokens=budget_tokens),),
    )
