"""How smoothly a candidate trained, from its trace."""

import statistics
from collections.abc import Sequence

from morphogen.figures import Figure
from morphogen.metrics.measuring import Subject, measures

WINDOW = 16
#: A gradient norm this many times its running median is a jump.
JUMP = 2.0


def instability(losses: Sequence[float], grad_norms: Sequence[float]) -> float:
    """Mean relative rise of the loss, plus the share of steps whose gradient norm jumped. No unit; 0 is smooth.

    With m_t the median over the up to 16 steps before t:

        mean over t ≥ 1 of  max(0, loss_t / m_t(loss) − 1) + [norm_t > 2 · m_t(norm)]

    losses: nats per token, positive. grad_norms: before clipping, as many. A loss that never rises above its running
    median, under gradients that do not jump, gives exactly 0; so does a trace of fewer than two steps.
    """
    if len(losses) != len(grad_norms):
        raise ValueError(f"{len(losses)} losses and {len(grad_norms)} gradient norms, expected as many of each")
    if len(losses) < 2:
        return 0.0
    total = 0.0
    for t in range(1, len(losses)):
        before = slice(max(0, t - WINDOW), t)
        total += max(0.0, losses[t] / statistics.median(losses[before]) - 1.0)
        total += grad_norms[t] > JUMP * statistics.median(grad_norms[before])
    return total / (len(losses) - 1)


@measures(
    Figure(
        "instability",
        unit="1",
        better="min",
        sort="metric",
        summary="How unsteadily it trained: the mean relative rise of the loss above its running median, plus the "
        f"share of steps whose gradient norm was more than {JUMP:g} times its own; 0 is smooth.",
    )
)
def steadiness(subject: Subject) -> dict[str, float]:
    """Over the training on the candidate's own text."""
    return {"instability": instability(subject.losses, subject.grad_norms)}
