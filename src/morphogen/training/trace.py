"""What a training tells of its steps: to whoever watches, one by one, and to what is measured, all together."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

#: Of a curve that is kept.
POINTS = 200


@dataclass(frozen=True)
class StepInfo:
    """One finished step. step: counted from 1, of `steps`. loss: nats per token of text. grad_norm: before
    clipping. tokens: trained on so far. seconds: that this step took. entropy: of the predictions, in nats, where it
    was sampled. balance: what load balancing adds to the loss, before its coefficient; 0 without mixtures."""

    step: int
    steps: int
    loss: float
    grad_norm: float
    lr_scale: float
    tokens: int
    seconds: float
    entropy: float | None
    balance: float = 0.0


Progress = Callable[[StepInfo], None]


@dataclass
class Trace:
    """Step by step: loss (nats per token of text, without auxiliary losses), gradient norm before clipping, seconds,
    and the figures that branches report, by name."""

    losses: list[float] = field(default_factory=list)
    grad_norms: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    figures: dict[str, list[float]] = field(default_factory=dict)


def thinned(losses: Sequence[float], before: Sequence[tuple[int, float]] = ()) -> tuple[tuple[int, float], ...]:
    """A curve of at most `POINTS` points.

    Args:
        losses: Of every step.
        before: The curve that these steps go on from.

    Returns:
        (step, mean loss of the steps since the point before it), to five digits; steps whose loss is not finite are
        left out.
    """
    first = before[-1][0] if before else 0
    points = [*before, *((step, loss) for step, loss in enumerate(losses, first + 1) if math.isfinite(loss))]
    while len(points) > POINTS:
        points = [_merged(points[k - 1][0] if k else 0, points[k : k + 2]) for k in range(0, len(points), 2)]
    return tuple((step, float(f"{loss:.5g}")) for step, loss in points)


def _merged(start: int, points: Sequence[tuple[int, float]]) -> tuple[int, float]:
    """Of neighbouring points after step `start` the one that stands for all their steps."""
    total, last = 0.0, start
    for step, loss in points:
        total, last = total + (step - last) * loss, step
    return last, total / (last - start)
