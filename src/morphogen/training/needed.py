"""The memory that training a candidate is predicted to take, before anything is built."""

from morphogen.candidate import Job
from morphogen.cost import Step, train_memory_bytes
from morphogen.data.prepare import PreparedData
from morphogen.errors import InputError
from morphogen.growth.largest import largest
from morphogen.training.assignment import Assignment


def needed_bytes(job: Job, prepared: PreparedData | None) -> float:
    """Bytes of tensors at the peak of a training step, as `explain` estimates them; of a candidate with rules of growth
    those of what it may become in its steps, where that has an end.

    0 where it cannot be read, and will fail.
    """
    try:
        assignment = Assignment.of(job, prepared)
    except InputError:
        return 0.0
    blueprint, seq_len, per_step = (
        assignment.blueprint,
        assignment.prepared.seq_len,
        assignment.prepared.tokens_per_step,
    )
    step = Step.of(assignment.experiment.train, assignment.experiment.data.batch_size)
    now = train_memory_bytes(blueprint, seq_len, step)
    if not blueprint.growth:
        return now
    tokens = sum(stage.budget_tokens for stage in job.stages) + sum(ancestor.tokens for ancestor in job.ancestors)
    end = largest(blueprint, seq_len, per_step, (tokens + assignment.before.tokens.own) // per_step)
    return max(now, train_memory_bytes(end.blueprint, seq_len, step)) if end.bounded else now
