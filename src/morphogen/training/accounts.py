"""What a candidate's training has taken: tokens, steps and FLOPs, over all architectures that it had meanwhile."""

from collections.abc import Sequence
from typing import NamedTuple

from morphogen.blueprint.schema import Blueprint
from morphogen.candidate import Ancestor, Tokens
from morphogen.cost import train_flops
from morphogen.data.mixture import Trained, unique_tokens
from morphogen.training.assignment import Assignment


class Segment(NamedTuple):
    """Training of one architecture: which, and the step of the job that it begins with."""

    blueprint: Blueprint
    first_step: int


def flops(assignment: Assignment, segments: Sequence[Segment], steps: int, tests: int) -> float:
    """FLOPs of a candidate's training so far: earlier jobs', and `steps` of this one, each by its own architecture.

    tests: steps that were taken to find a learning rate.
    """
    prepared = assignment.prepared
    tested = train_flops(assignment.blueprint, prepared.seq_len, tests * prepared.tokens_per_step)
    ends = [*(segment.first_step for segment in segments[1:]), steps]
    return (
        assignment.before.flops
        + tested
        + sum(
            train_flops(segment.blueprint, prepared.seq_len, (end - segment.first_step) * prepared.tokens_per_step)
            for segment, end in zip(segments, ends, strict=True)
        )
    )


def behind(assignment: Assignment, begun: Tokens) -> int:
    """Tokens that the weights have behind them when a job begins: the candidate's own, its ancestors' where their
    weights were inherited, and those behind an `init_checkpoint` (`begun`)."""
    ancestors = sum(ancestor.tokens for ancestor in _ancestors(assignment))
    return assignment.before.tokens.own + ancestors + begun.lineage


def _ancestors(assignment: Assignment) -> tuple[Ancestor, ...]:
    return assignment.job.ancestors if assignment.experiment.evolution.weight_inheritance == "parent" else ()


def tokens(assignment: Assignment, steps: int, healing: int, begun: Tokens) -> Tokens:
    """Own, lineage's and unique tokens after `steps` of this job, the first `healing` of them on healing text.

    Which text lies behind an `init_checkpoint` (`begun`) nobody can tell, so that none of it counts as seen twice.
    """
    earlier, *ancestors = runs(assignment)
    now = earlier._replace(steps=earlier.steps + steps - healing, healing_steps=earlier.healing_steps + healing)
    taken = steps * assignment.prepared.tokens_per_step
    own, lineage = assignment.before.tokens.own + taken, behind(assignment, begun) + taken
    unique = unique_tokens(assignment.prepared, [now, *ancestors])
    return Tokens(own=own, lineage=lineage, unique=unique + begun.unique)


def runs(assignment: Assignment) -> list[Trained]:
    """What the weights were trained on before this job: the candidate's own earlier jobs, then each of its ancestors
    whose weights were inherited."""
    before, per_step, seed = assignment.before, assignment.prepared.tokens_per_step, assignment.data_seed
    healed = before.tokens.own // per_step - before.steps
    # an ancestor's `steps` are those on the training shards; what else its tokens tell of was healing
    return [
        Trained(assignment.own_data_seed, before.steps, healed, assignment.first_step),
        *(
            Trained(seed, a.steps, a.tokens // per_step - a.steps, a.first_token // per_step)
            for a in _ancestors(assignment)
        ),
    ]
