"""What a training tells of its steps: to whoever watches, one by one, and to what is measured, all together."""

from collections.abc import Callable
from dataclasses import dataclass, field


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
