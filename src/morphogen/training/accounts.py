"""What a candidate's training has taken: tokens, steps and FLOPs, over all architectures that it had meanwhile."""

from collections.abc import Sequence
from typing import NamedTuple

from morphogen.blueprint.schema import Blueprint
from morphogen.candidate import Ancestor, Tokens
from morphogen.cost import train_flops
from morphogen.data.mixture import Trained, unique_tokens
from morphogen.data.prepare import PreparedData
from morphogen.metrics.throughput import SHARE
from morphogen.training.assignment import Assignment


class Segment(NamedTuple):
    """Training of one architecture: which, and the step of the job that it begins with."""

    blueprint: Blueprint
    first_step: int


def flops(prepared: PreparedData, segments: Sequence[Segment], totals: Sequence[int], steps: int) -> float:
    """FLOPs of a job's training when `steps` are done, each by the architecture that it had, and with the steps that
    recurrences took in it. totals: steps that the job was to have in all, while it had each architecture."""
    ends = [*(segment.first_step for segment in segments[1:]), steps]
    spent = 0.0
    for (blueprint, first), total, end in zip(segments, totals, ends, strict=True):
        progress = [step / total for step in range(first, end)]
        spent += train_flops(blueprint, prepared.seq_len, len(progress) * prepared.tokens_per_step, progress)
    return spent


def equal_step(segments: Sequence[Segment], seq_len: int, planned_step: int) -> int:
    """The step by which as many FLOPs are spent on these architectures as `planned_step` steps of the first take."""
    costs = [train_flops(segment.blueprint, seq_len, 1) for segment in segments]
    left = float(planned_step - segments[0].first_step)
    for k, segment in enumerate(segments[1:]):
        left -= (segment.first_step - segments[k].first_step) * costs[k] / costs[0]
    # a hair more than none, as sums of shares may fall a rounding short of a whole step
    return segments[-1].first_step + int(max(0.0, left * costs[0] / costs[-1]) + 1e-9)


def share(assignment: Assignment, segments: Sequence[Segment], own_tokens: int, steps: int) -> float:
    """How much of the budget that is equal for all a candidate has had. With `budget: flops` what it has grown into
    takes more of it: FLOPs are counted as they were planned, with the mean steps of recurrences."""
    prepared, before, budget = assignment.prepared, assignment.before, assignment.job.budget_tokens
    grew = len(segments) > 1 or len(before.growth) > 0
    if not grew or assignment.experiment.evolution.budget == "tokens":
        return own_tokens / budget
    ends = [*(segment.first_step for segment in segments[1:]), steps]
    spent = sum(
        (end - segment.first_step) * prepared.tokens_per_step * train_flops(segment.blueprint, prepared.seq_len, 1)
        for segment, end in zip(segments, ends, strict=True)
    )
    each = train_flops(assignment.blueprint, prepared.seq_len, 1)
    return before.metrics.get(SHARE, 0.0) + spent / (budget * each)


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
