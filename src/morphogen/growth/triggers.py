"""When a rule of growth fires: pure functions of what is known of a training. No torch.

Every kind of trigger has two: `fired`, whether it fires now and why, and `ahead`, in how many steps it has to be asked
again. What a window holds is of the model as it is: windows begin anew whenever the architecture changes.
"""

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from morphogen.blueprint.triggers import (
    AllTrigger,
    AnyTrigger,
    ExpertUsageTrigger,
    GradientNormTrigger,
    LossSpikeTrigger,
    MajorityTrigger,
    ManualTrigger,
    PerplexityTrigger,
    PlateauTrigger,
    ResourcesTrigger,
    StepTrigger,
    TokensTrigger,
    Trigger,
    UtilizationTrigger,
    singles,
)
from morphogen.growth.monitor import Ceilings, Snapshot, Verdict

#: A trigger with a window is asked at every so-many-th part of it.
LOOKS_PER_WINDOW = 10
#: Measured steps in a window of utilization at most. What is averaged over them is heavy-tailed: between layers that
#: are used alike noise decides where they are few.
SAMPLES = 100
#: Steps between two looks at the machine.
RESOURCES_EVERY = 10
#: A fall of the loss counts where it is this many standard errors away from none: one flat window in 100 shows one.
SURE = 2.326
#: A plateau's slope is checked over up to so many windows, where the present model has trained for as long.
WINDOWS_BACK = 4


class Since(NamedTuple):
    """What lay behind the weights when a rule last acted, or was first watched."""

    steps: int
    tokens: int


class Fired(NamedTuple):
    """A trigger that fires. reason: in words. chosen: block id -> the experts that it is about; usage: their usage, in
    that order; threshold: what was passed."""

    reason: str
    chosen: Mapping[str, tuple[int, ...]] = {}
    usage: Mapping[str, tuple[float, ...]] = {}
    threshold: float | None = None


#: What a mixture trigger finds: experts that the rule's action would act on, their usage, and the threshold.
Experts = Callable[[ExpertUsageTrigger], Fired | None]


@dataclass(frozen=True)
class Signals:
    """What is known of a training between two of its steps.

    steps, tokens: behind the weights, their ancestors' among them. losses, grad_norms: of the steps since the
    architecture last changed, oldest first. uses: utilization of every block, in [0, 1], as a trigger measures it; None
    while there are too few samples. snapshot: of the machine. asked: ids of rules that were asked for by
    hand.
    """

    steps: int
    tokens: int
    losses: Sequence[float] = ()
    grad_norms: Sequence[float] = ()
    uses: Callable[[UtilizationTrigger], Mapping[str, float] | None] = lambda trigger: None
    snapshot: Callable[[], Snapshot] = Snapshot
    asked: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Watched:
    """The rule whose trigger is asked: its id, since when it waits, whether there is room for what it does, and which
    experts it would act on."""

    rule: str
    since: Since
    room: Callable[[Snapshot, Ceilings], Verdict] = lambda snapshot, ceilings: Verdict.WAIT
    experts: Experts = field(default=lambda trigger: None)


Check = Callable[[Any, Signals, Watched], Fired | None]
Ahead = Callable[[Any, Since, int], int]


class _Kind(NamedTuple):
    """How a kind of trigger is asked. ahead: steps until it has to be asked again: of the trigger, what lies behind
    the weights, and the tokens of a step. back: windows of losses that it reads."""

    fired: Check
    ahead: Ahead
    back: int = 0


_KINDS: dict[type, _Kind] = {}


def _kind(*triggers: type, ahead: Ahead, back: int = 0) -> Callable[[Check], Check]:
    def register(check: Check) -> Check:
        for trigger in triggers:
            _KINDS[trigger] = _Kind(check, ahead, back)
        return check

    return register


def parts(trigger: Trigger) -> Iterator[Trigger]:
    """The trigger, or those that it combines."""
    return (one for _, one in singles(trigger))


def samples(measure: str, window: int) -> int:
    """Measured steps in a window of an `utilization` trigger: all, or every so-many-th of a long one. Removal takes a
    forward pass for each layer, and is measured once."""
    return 1 if measure == "removal" else window // math.ceil(window / SAMPLES)


def reach(trigger: Trigger) -> int:
    """How many steps back a trigger reads losses and gradient norms."""
    needs = ((one, _KINDS[type(one)].back) for one in parts(trigger))
    return max((back * one.model_dump()["window"] for one, back in needs if back), default=0)


def fired(trigger: Trigger, signals: Signals, watched: Watched) -> Fired | None:
    """Whether a trigger fires, and why; None where it does not."""
    return _KINDS[type(trigger)].fired(trigger, signals, watched)


def ahead(trigger: Trigger, now: Since, tokens_per_step: int) -> int:
    """In how many steps a trigger has to be asked again, at least one. It depends on nothing but what lies behind the
    weights, so that a training that was interrupted asks at the same steps."""
    return _KINDS[type(trigger)].ahead(trigger, now, tokens_per_step)


def _stride(stride: int, steps: int) -> int:
    """Steps to the next multiple of `stride`."""
    return stride - steps % stride


def _window_stride(trigger: Any, now: Since, tokens_per_step: int) -> int:
    return _stride(_between(trigger.window), now.steps)


def _between(window: int) -> int:
    """Steps between two looks at a window."""
    return max(1, window // LOOKS_PER_WINDOW)


# -------------------------------------------------------------------------------------------------- counted


def _passed(at: int | None, every: int | None, since: int, now: int) -> int | None:
    """The last count on the way from `since` to `now` at which to fire; None where there was none."""
    if at is not None:
        return at if since < at <= now else None
    assert every is not None
    return now // every * every if now // every > since // every else None


def _left(trigger: Any, now: int) -> int | None:
    """What is left to the next count at which to fire; None where there is none."""
    if trigger.at is not None:
        return trigger.at - now if trigger.at > now else None
    left: int = trigger.every - now % trigger.every
    return left


def _steps_ahead(trigger: StepTrigger, now: Since, tokens_per_step: int) -> int:
    left = _left(trigger, now.steps)
    return LATER if left is None else left


def _tokens_ahead(trigger: TokensTrigger, now: Since, tokens_per_step: int) -> int:
    left = _left(trigger, now.tokens)
    return LATER if left is None else math.ceil(left / tokens_per_step)


#: More steps than any training has.
LATER = 2**62


@_kind(StepTrigger, ahead=_steps_ahead)
def _step(trigger: StepTrigger, signals: Signals, watched: Watched) -> Fired | None:
    passed = _passed(trigger.at, trigger.every, watched.since.steps, signals.steps)
    return None if passed is None else Fired(f"{passed:,} steps", threshold=float(passed))


@_kind(TokensTrigger, ahead=_tokens_ahead)
def _tokens(trigger: TokensTrigger, signals: Signals, watched: Watched) -> Fired | None:
    passed = _passed(trigger.at, trigger.every, watched.since.tokens, signals.tokens)
    return None if passed is None else Fired(f"{passed:,} tokens", threshold=float(passed))


# -------------------------------------------------------------------------------------------------- windows


@_kind(PlateauTrigger, ahead=_window_stride, back=WINDOWS_BACK)
def _plateau(trigger: PlateauTrigger, signals: Signals, watched: Watched) -> Fired | None:
    if not flat(signals.losses, trigger.window, trigger.tolerance):
        return None
    mean = statistics.fmean(signals.losses[-trigger.window :])
    return Fired(f"the loss is flat at {mean:.4f} over {trigger.window} steps", threshold=trigger.tolerance)


def flat(losses: Sequence[float], window: int, tolerance: float) -> bool:
    """Whether a loss has stopped falling: over the last `window` steps it did not fall by `tolerance` of itself.

    A line is fitted to the window; it falls by F with a standard error of s. The loss counts as flat unless
    F ≥ tolerance·loss + t·s, t the 99 % point of Student's distribution: what noise alone can look like is no fall. A
    fall that is real but small against the noise does not show in one window. Where up to `WINDOWS_BACK` windows lie
    behind, the slope at the present one is also taken from these: from a line where they show no bend, which tells
    falls 8 times as small, else from a parabola. The loss is flat only where neither shows a fall.
    """
    if len(losses) < window or not np.isfinite(losses[-window:]).all():
        return False
    recent = np.asarray(losses[-window:], dtype=np.float64)
    allowed = tolerance * abs(float(recent.mean()))
    fits = [_slope(recent, 1, window)]
    longer = np.asarray(losses[-WINDOWS_BACK * window :], dtype=np.float64)
    if len(longer) >= 2 * window and np.isfinite(longer).all():
        line, bend = _slope(longer, 1, window), _slope(longer, 2, window)
        fits.append(bend if bend.bends else line)
    return all(fit.fall < allowed + fit.uncertain for fit in fits)


class _Fit(NamedTuple):
    """How far a curve falls over the last window; how much of that noise can be; and whether its bend is none of it."""

    fall: float
    uncertain: float
    bends: bool = False


def _slope(values: np.ndarray[Any, np.dtype[np.float64]], degree: int, window: int) -> _Fit:
    """A polynomial fitted to values at equal distances, and its slope in the middle of the last window."""
    n = len(values)
    t = np.linspace(-1.0, 1.0, n)
    design = np.stack([t**k for k in range(degree + 1)], axis=1)
    inverse = np.linalg.pinv(design.T @ design)
    weights = inverse @ design.T @ values
    free = n - degree - 1
    rest = values - design @ weights
    variance = float(rest @ rest) / free if free > 0 else 0.0
    middle = float(t[n - window : n].mean())
    steps = np.array([0.0, 1.0, 2.0 * middle][: degree + 1]) * (window - 1) * 2.0 / max(1, n - 1)
    sure = _student(free)
    bend = sure * math.sqrt(variance * float(inverse[-1, -1]))
    uncertain = sure * math.sqrt(variance * float(steps @ inverse @ steps))
    return _Fit(-float(steps @ weights), uncertain, degree > 1 and abs(float(weights[-1])) > bend)


def _student(free: int) -> float:
    """The point of Student's distribution that the normal one has at `SURE`, expanded in 1/ν."""
    if free < 1:
        return 0.0
    z, v = SURE, float(free)
    first = (z**3 + z) / 4.0
    second = (5.0 * z**5 + 16.0 * z**3 + 3.0 * z) / 96.0
    third = (3.0 * z**7 + 19.0 * z**5 + 17.0 * z**3 - 15.0 * z) / 384.0
    return z + first / v + second / v**2 + third / v**3


@_kind(GradientNormTrigger, ahead=_window_stride, back=1)
def _gradient_norm(trigger: GradientNormTrigger, signals: Signals, watched: Watched) -> Fired | None:
    if len(signals.grad_norms) < trigger.window:
        return None
    mean = statistics.fmean(signals.grad_norms[-trigger.window :])
    return _outside(f"the mean gradient norm over {trigger.window} steps", mean, trigger.below, trigger.above)


@_kind(PerplexityTrigger, ahead=_window_stride, back=1)
def _perplexity(trigger: PerplexityTrigger, signals: Signals, watched: Watched) -> Fired | None:
    if len(signals.losses) < trigger.window:
        return None
    mean = statistics.fmean(signals.losses[-trigger.window :])
    value = math.exp(mean) if mean < 700.0 else math.inf
    return _outside(f"the perplexity over {trigger.window} steps", value, trigger.below, trigger.above)


def _outside(what: str, value: float, below: float | None, above: float | None) -> Fired | None:
    """Fires where a value is beyond one of its bounds."""
    if below is not None and value < below:
        return Fired(f"{what} is {value:.4g}, below {below:g}", threshold=below)
    if above is not None and value > above:
        return Fired(f"{what} is {value:.4g}, above {above:g}", threshold=above)
    return None


@_kind(LossSpikeTrigger, ahead=_window_stride, back=2)
def _loss_spike(trigger: LossSpikeTrigger, signals: Signals, watched: Watched) -> Fired | None:
    """Any of the steps since the last look."""
    losses, window = signals.losses, trigger.window
    for end in range(max(window, len(losses) - _between(window)), len(losses)):
        median = statistics.median(losses[end - window : end])
        if losses[end] > trigger.factor * median:
            why = f"a loss of {losses[end]:.4f} after a median of {median:.4f} over {window} steps"
            return Fired(why, threshold=trigger.factor)
    return None


# ------------------------------------------------------------------------------------- layers, experts, the machine


@_kind(UtilizationTrigger, ahead=_window_stride)
def _utilization(trigger: UtilizationTrigger, signals: Signals, watched: Watched) -> Fired | None:
    uses = signals.uses(trigger)
    if not uses:
        return None
    used = sum(value > trigger.threshold for value in uses.values())
    if used < trigger.share * len(uses):
        return None
    return Fired(f"{used} of {len(uses)} layers are used above {trigger.threshold:g}", threshold=trigger.threshold)


def _interval(trigger: ExpertUsageTrigger, now: Since, tokens_per_step: int) -> int:
    return _stride(trigger.interval, now.steps)


@_kind(ExpertUsageTrigger, ahead=_interval)
def _expert_usage(trigger: ExpertUsageTrigger, signals: Signals, watched: Watched) -> Fired | None:
    return watched.experts(trigger) if signals.steps % trigger.interval == 0 else None


def _resources_ahead(trigger: ResourcesTrigger, now: Since, tokens_per_step: int) -> int:
    return _stride(RESOURCES_EVERY, now.steps)


@_kind(ResourcesTrigger, ahead=_resources_ahead)
def _resources(trigger: ResourcesTrigger, signals: Signals, watched: Watched) -> Fired | None:
    """The only trigger that depends on the machine: a training with it is not held to repeat, but what it did is on
    record."""
    snapshot = signals.snapshot()
    ceilings = Ceilings(trigger.vram, trigger.ram, trigger.compute)
    if watched.room(snapshot, ceilings) in (Verdict.WAIT, Verdict.NO_BUDGET):
        return None
    return Fired(str(snapshot))


def _manual_ahead(trigger: ManualTrigger, now: Since, tokens_per_step: int) -> int:
    return LATER  # whoever asks for it makes the controller look


@_kind(ManualTrigger, ahead=_manual_ahead)
def _manual(trigger: ManualTrigger, signals: Signals, watched: Watched) -> Fired | None:
    return Fired("asked for by hand") if watched.rule in signals.asked else None


# -------------------------------------------------------------------------------------------------- combined


def _soonest(trigger: Any, now: Since, tokens_per_step: int) -> int:
    return min(ahead(one, now, tokens_per_step) for one in trigger.of)


@_kind(AnyTrigger, AllTrigger, MajorityTrigger, ahead=_soonest)
def _several(trigger: AnyTrigger | AllTrigger | MajorityTrigger, signals: Signals, watched: Watched) -> Fired | None:
    """A count that was passed stays so until the rule acts."""
    found = [result for one in trigger.of if (result := fired(one, signals, watched)) is not None]
    if len(found) < trigger.needed:
        return None
    chosen = next((result for result in found if result.chosen), found[0])
    return chosen._replace(reason="; ".join(result.reason for result in found))
