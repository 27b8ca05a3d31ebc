"""Triggers of growth rules as data: when a model changes. `growth/triggers.py` says when each of them fires."""

from collections.abc import Iterator
from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from morphogen.blueprint.oneof import OneOf
from morphogen.parts.contract.frozen import Frozen

Share = Annotated[float, Field(ge=0.0, le=1.0)]
#: More steps than this are no window any more: what lies so far back tells nothing of the model as it is.
Window = Annotated[int, Field(ge=2, le=100_000)]


class _Counted(Frozen):
    """What steps and tokens have in common: once, or again and again."""

    at: PositiveInt | None = None
    """Once, as soon as so many lie behind the weights."""
    every: PositiveInt | None = None
    """Again whenever so many more lie behind them."""

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.at is None) == (self.every is None):
            found = "neither 'at' nor 'every'" if self.at is None else "both 'at' and 'every'"
            raise ValueError(f"got {found}, expected one of the two")
        return self


class StepTrigger(_Counted):
    """Optimizer steps behind the weights, those of ancestors whose weights were inherited among them."""

    trigger: Literal["step"] = "step"


class TokensTrigger(_Counted):
    """Tokens behind the weights, likewise."""

    trigger: Literal["tokens"] = "tokens"


class PlateauTrigger(Frozen):
    """The training loss is flat: over the last `window` steps it fell by less than `tolerance` of itself."""

    trigger: Literal["plateau"] = "plateau"
    window: Window = 50
    """Steps that the slope is fitted to."""
    tolerance: PositiveFloat = 1e-3
    """Fall over the whole window, as a share of the loss, below which it counts as flat."""


class _Bounded(Frozen):
    """A mean over the last steps that is beyond a bound."""

    above: PositiveFloat | None = None
    """Fires when the figure is above this."""
    below: PositiveFloat | None = None
    """Fires when the figure is below this."""
    window: Window = 20
    """Steps of the mean."""

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        if self.above is None and self.below is None:
            raise ValueError("got neither 'above' nor 'below', expected at least one of the two")
        return self


class GradientNormTrigger(_Bounded):
    """The mean norm of the gradient over the last `window` steps is beyond a bound."""

    trigger: Literal["gradient_norm"] = "gradient_norm"


class LossSpikeTrigger(Frozen):
    """The loss of a step is more than `factor` times the median of the `window` steps before it."""

    trigger: Literal["loss_spike"] = "loss_spike"
    factor: Annotated[float, Field(gt=1.0)] = 1.5
    """How many times the median."""
    window: Window = 50
    """Steps of the median."""


class PerplexityTrigger(_Bounded):
    """The training perplexity, exp of the mean loss of the last `window` steps, is beyond a bound."""

    trigger: Literal["perplexity"] = "perplexity"
    below: Annotated[float, Field(gt=1.0)] | None = None
    """Fires when the figure is below this; no perplexity is below 1."""


class UtilizationTrigger(Frozen):
    """So many layers are well used: a share of at least `share` of them has a utilization above `threshold`."""

    trigger: Literal["utilization"] = "utilization"
    measure: Literal["removal", "gradient", "activation"] = "removal"
    """How a layer's use is told. removal: by the loss on held text without it, once a window, on as much text as a
    small share of the window affords. gradient: from the gradient at its output, how far the loss would move without
    it; free, and less to be trusted. activation: norm of the output times its share of non-zero entries, which says
    little."""
    threshold: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.5
    """Utilization, in [0, 1] with 1 that of the most used layer, above which a layer counts as used."""
    share: Share = 0.8
    """Share of the layers that has to be."""
    window: Window = 100
    """Steps of the mean, or between two measurements by removal."""


class ResourcesTrigger(Frozen):
    """There is room: what the machine holds, with the bytes that the action would take, is under every ceiling; for an
    action that shrinks the model: there is none. A training with it depends on the machine, and may not repeat."""

    trigger: Literal["resources"] = "resources"
    vram: Annotated[float, Field(gt=0.0, le=1.0)] = 0.85
    """Ceiling of the accelerator's memory, as a share; nothing on a CPU."""
    ram: Annotated[float, Field(gt=0.0, le=1.0)] = 0.80
    """Ceiling of the machine's memory, as a share."""
    compute: Annotated[float, Field(gt=0.0, le=1.0)] = 0.60
    """Ceiling of the load that others put on the processors, as a share."""


class ExpertUsageTrigger(Frozen):
    """An expert of a mixture is used more, or less, than it should be. Its usage is the share of a mixture's
    assignments that go to it, as an exponential average over `window` steps."""

    trigger: Literal["expert_usage"] = "expert_usage"
    relative: bool = True
    """Whether thresholds are in units of 1/N, the usage of each of N experts where all are used alike; absolute ones
    always split at N = 2."""
    split_above: PositiveFloat | None = None
    """Usage above which an expert is to split; null: 1.5 relative, 0.35 absolute."""
    prune_below: PositiveFloat | None = None
    """Usage below which it is to go; null: 0.25 relative, 0.02 absolute."""
    window: Window = 100
    """Steps over which usage is averaged."""
    interval: PositiveInt = 100
    """Steps between two looks (the older `morph_interval`)."""
    min_age: NonNegativeInt = 100
    """Steps that an expert is left alone after it came to be."""
    probation: NonNegativeInt = 0
    """Steps that a usage below the threshold has to last before the expert may go."""

    @model_validator(mode="after")
    def _apart(self) -> Self:
        if self.prune_at(1) >= self.split_at(1):
            raise ValueError(f"prune_below {self.prune_at(1):g} is not below split_above {self.split_at(1):g}")
        return self

    def split_at(self, experts: int) -> float:
        """The usage above which one of so many experts splits."""
        value = self.split_above if self.split_above is not None else 1.5 if self.relative else 0.35
        return value / experts if self.relative else value

    def prune_at(self, experts: int) -> float:
        """The usage below which one of so many experts goes."""
        value = self.prune_below if self.prune_below is not None else 0.25 if self.relative else 0.02
        return value / experts if self.relative else value


class ManualTrigger(Frozen):
    """Fires when it is asked for: from Python, or by `morphogen train --grow RULE`."""

    trigger: Literal["manual"] = "manual"


class _Several(Frozen):
    of: Annotated[tuple["Trigger", ...], Field(min_length=2)]
    """The triggers that are combined."""

    @property
    def needed(self) -> int:
        """How many of them have to fire."""
        return len(self.of)


class AnyTrigger(_Several):
    """One of several triggers fires."""

    trigger: Literal["any"] = "any"

    @property
    def needed(self) -> int:
        """One."""
        return 1


class AllTrigger(_Several):
    """All of several triggers fire at once."""

    trigger: Literal["all"] = "all"


class MajorityTrigger(_Several):
    """More than half of several triggers fire at once."""

    trigger: Literal["majority"] = "majority"

    @property
    def needed(self) -> int:
        """More than half."""
        return len(self.of) // 2 + 1


Trigger = Annotated[
    StepTrigger
    | TokensTrigger
    | PlateauTrigger
    | GradientNormTrigger
    | LossSpikeTrigger
    | PerplexityTrigger
    | UtilizationTrigger
    | ResourcesTrigger
    | ExpertUsageTrigger
    | ManualTrigger
    | AnyTrigger
    | AllTrigger
    | MajorityTrigger,
    OneOf("trigger"),
]
for _several in (AnyTrigger, AllTrigger, MajorityTrigger):
    _several.model_rebuild()


def singles(trigger: Trigger, at: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], Trigger]]:
    """The trigger, or all that it combines, each with the fields and numbers that lead to it."""
    if isinstance(trigger, AnyTrigger | AllTrigger | MajorityTrigger):
        for i, one in enumerate(trigger.of):
            yield from singles(one, (*at, "of", i))
    else:
        yield at, trigger
