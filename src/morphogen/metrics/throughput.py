"""What training took: time on this machine, memory, and its share of the budget."""

import statistics
from collections.abc import Sequence

from morphogen.figures import Figure, declare

#: The figure that says how much of the budget a candidate has had.
SHARE = "budget_share"

declare(
    Figure(
        "throughput",
        unit="tokens/s",
        better="max",
        sort="timed",
        summary="Training: tokens through whole steps (forward, backward, update), at the median step. "
        "`decode_throughput` is that of decoding.",
    ),
    Figure(
        "train_seconds", unit="s", better="min", sort="timed", summary="The training steps alone, all rungs of a job."
    ),
    Figure("eval_seconds", unit="s", better="min", sort="timed", summary="All measuring, before and after training."),
    Figure("seconds", unit="s", better="min", sort="timed", summary="The candidate's whole job, from start to report."),
    Figure(
        "peak_memory_bytes",
        unit="bytes",
        better="min",
        sort="timed",
        score="ram",
        summary="The most bytes of tensors alive at once during one training step, weights and moments included.",
    ),
    Figure(
        "gpu",
        unit="number",
        better="none",
        sort="timed",
        summary="The GPU of its machine that it was placed on.",
        needs=("gpus",),
    ),
    Figure(
        "placed_memory_bytes",
        unit="bytes",
        better="none",
        sort="timed",
        summary="Memory of its GPU that it was placed by: `train_memory_bytes`, corrected by what others before it "
        "took, and what a process takes besides.",
        needs=("gpus",),
    ),
    Figure(
        SHARE,
        unit="share",
        better="none",
        sort="search",
        summary="Own training tokens (with `budget: flops`, of what grew, their FLOPs) over what every candidate may "
        "spend: less than 1 where training stopped early, "
        "more after a promotion.",
    ),
)


def tokens_per_second(tokens_per_step: int, step_seconds: Sequence[float]) -> float:
    """Training tokens per second at the median step; the first step, which warms up, counts only where it is alone."""
    if not step_seconds:
        raise ValueError("no step was timed, expected at least one")
    return tokens_per_step / statistics.median(step_seconds[1:] or step_seconds)
