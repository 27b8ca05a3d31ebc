"""Finalists with their rate brought down to zero at the run's end: the jobs for it, which `session` carries out.

At a constant rate a lineage can always go on, but its weights never come to rest. Those on the frontier train on over
`anneal_tokens` while the rate falls to 0; what is then measured is told beside what they were selected by, and their
annealed weights lie beside their own.
"""

from morphogen.candidate import ANNEALED, Job, Stage
from morphogen.search.engine import Engine


def due(engine: Engine) -> list[Job]:
    """The jobs to carry out now; empty before the run's end, and when all on the frontier are annealed. What has failed
    is not tried again."""
    if not engine.done or not engine.evolution.anneal_tokens:
        return []
    return [anneal(engine, id) for id in engine.frontier_ids if f"{id}{ANNEALED}" not in engine.again]


def anneal(engine: Engine, id: str) -> Job:
    """A finalist goes on from its checkpoint, as it is: its rate falls from the first step to the last, and it grows no
    more."""
    report, tokens = engine.reports[id], engine.evolution.anneal_tokens
    stage = Stage(rung=max(2, report.rung + 1), budget_tokens=tokens)
    blueprint = engine.candidates[id].as_trained(report).blueprint
    report = report.replace(blueprint={**blueprint, "growth": []})
    job = engine.job_of(engine.candidates[id].replace(id=f"{id}{ANNEALED}"), (stage,), before=report)
    falling = {"schedule": "wsd", "decay_share": 1.0, "max_tokens": report.tokens.own + tokens}
    plain = job.experiment
    evolution = {**plain["evolution"], "rank_by": "inherited"}  # nobody is selected any more
    return job.replace(experiment={**plain, "train": {**plain["train"], **falling}, "evolution": evolution})


def done(engine: Engine) -> list[str]:
    """Under which names those that are annealed are known."""
    return [id for id in engine.again if id.endswith(ANNEALED)]
