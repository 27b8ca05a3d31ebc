"""Growth rules as data: when a model changes while it trains, and how. Part of a blueprint; `growth/` carries them out.

A rule is a trigger (`when`), an action (`do`) and limits. Rules are genes: edits change them, children inherit them.
"""

from collections.abc import Iterable, Set
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from morphogen.blueprint.oneof import OneOf
from morphogen.parts.contract.frozen import Frozen
from morphogen.parts.contract.part import GeneId

Share = Annotated[float, Field(ge=0.0, le=1.0)]
OpenShare = Annotated[float, Field(gt=0.0, lt=1.0)]
#: More steps than this are no window any more: what lies so far back tells nothing of the model as it is.
Window = Annotated[int, Field(ge=2, le=100_000)]


# ---------------------------------------------------------------------------------------------------- triggers


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


class GradientNormTrigger(Frozen):
    """The mean norm of the gradient over the last `window` steps is beyond a bound."""

    trigger: Literal["gradient_norm"] = "gradient_norm"
    above: PositiveFloat | None = None
    """Fires when the mean is above this."""
    below: PositiveFloat | None = None
    """Fires when the mean is below this."""
    window: Window = 20
    """Steps of the mean."""

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        if self.above is None and self.below is None:
            raise ValueError("got neither 'above' nor 'below', expected at least one of the two")
        return self


class LossSpikeTrigger(Frozen):
    """The loss of a step is more than `factor` times the median of the `window` steps before it."""

    trigger: Literal["loss_spike"] = "loss_spike"
    factor: Annotated[float, Field(gt=1.0)] = 1.5
    """How many times the median."""
    window: Window = 50
    """Steps of the median."""


class PerplexityTrigger(Frozen):
    """The training perplexity, exp of the mean loss of the last `window` steps, is beyond a bound."""

    trigger: Literal["perplexity"] = "perplexity"
    above: PositiveFloat | None = None
    """Fires when it is above this."""
    below: PositiveFloat | None = None
    """Fires when it is below this."""
    window: Window = 20
    """Steps of the mean."""

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        if self.above is None and self.below is None:
            raise ValueError("got neither 'above' nor 'below', expected at least one of the two")
        return self


class UtilizationTrigger(Frozen):
    """So many layers are well used: a share of at least `share` of them has a utilization above `threshold`."""

    trigger: Literal["utilization"] = "utilization"
    measure: Literal["gradient", "removal", "activation"] = "gradient"
    """How a layer's use is told. gradient: from the gradient at its output, how far the loss would move without it.
    removal: by the loss without it, a forward pass for each. activation: norm of the output times its share of
    non-zero entries, which says little of its use."""
    threshold: Share = 0.5
    """Utilization, in [0, 1] with 1 that of the most used layer, above which a layer counts as used."""
    share: Share = 0.8
    """Share of the layers that has to be."""
    window: Window = 20
    """Steps of the mean."""


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


class AnyTrigger(_Several):
    """One of several triggers fires."""

    trigger: Literal["any"] = "any"


class AllTrigger(_Several):
    """All of several triggers fire at once."""

    trigger: Literal["all"] = "all"


class MajorityTrigger(_Several):
    """More than half of several triggers fire at once."""

    trigger: Literal["majority"] = "majority"


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


# ----------------------------------------------------------------------------------------------------- actions


class Action(Frozen):
    """What every action may say of the parameters that it adds."""

    new_param_lr_multiplier: PositiveFloat = 1.0
    """Learning rate of new parameters, as a multiple of the others'."""
    warmup: NonNegativeInt | None = None
    """Steps over which new parameters warm up, by the square; null: 50, or as many as a training's own warm-up where
    that is longer."""

    adds: ClassVar[bool] = True

    def inert(self) -> frozenset[str]:
        """Fields that have no effect as the rest stands: an action that adds no parameters has none to train apart."""
        return frozenset() if self.adds else frozenset({"new_param_lr_multiplier", "warmup"})


class _InBlocks(Action):
    blocks: tuple[GeneId, ...] = ()
    """Ids of the blocks that it acts in; none given: all that it can act in."""


class Widen(_InBlocks):
    """More units: hidden ones, heads, channels of a head, or residual channels. Exact but for `head_dim` under RoPE."""

    action: Literal["widen"] = "widen"
    target: Literal["ffn", "heads", "head_dim", "dim"] = "ffn"
    """What grows; `dim`, the residual stream, in all blocks."""
    factor: Annotated[float, Field(gt=1.0, le=16.0)] = 1.5
    """How many times as many, rounded to what the model allows and at least one more."""


class Deepen(Action):
    """More blocks, copies of those before them. Exact unless `how` is stack."""

    action: Literal["deepen"] = "deepen"
    layers: PositiveInt = 1
    """How many."""
    where: Literal["middle", "end", "alternate"] = "middle"
    """In the middle, after the last, or one after every so-many-th."""
    how: Literal["copy", "fresh", "stack"] = "copy"
    """copy: outputs at zero, else as the block before; exact. fresh: new weights, outputs at zero; exact. stack: the
    outputs copied too, the older way, which jumps in loss."""


class ToMoE(_InBlocks):
    """Dense feed-forward layers become mixtures of copies of themselves; exact. Ref: arXiv 2212.05055."""

    action: Literal["to_moe"] = "to_moe"
    n_experts: Annotated[int, Field(ge=2)] = 4
    """Experts of each."""
    k: PositiveInt = 2
    """Experts that each token runs."""

    @model_validator(mode="after")
    def _enough(self) -> Self:
        if self.k > self.n_experts:
            raise ValueError(f"k is {self.k}, expected at most the {self.n_experts} experts")
        return self


class AddExperts(_InBlocks):
    """More experts in every mixture, which write zero at first; lossy, as they take tokens from others."""

    action: Literal["add_experts"] = "add_experts"
    count: PositiveInt = 1
    """How many more in each."""
    max_experts: PositiveInt | None = None
    """Experts that a mixture has at most; null: no limit."""


class SplitExperts(_InBlocks):
    """Experts become two that share their place: with `when: expert_usage` those used too much, else the most used of
    each mixture. Exact; either of the two may split again."""

    action: Literal["split_experts"] = "split_experts"
    max_experts: PositiveInt | None = None
    """Experts that a mixture has at most; null: no limit."""


class PruneExperts(_InBlocks):
    """Experts go: with `when: expert_usage` those used too little, else one of each mixture. Lossy."""

    adds: ClassVar = False
    action: Literal["prune_experts"] = "prune_experts"
    chooser: Literal["usage", "gate_norm", "merge"] = "usage"
    """Which goes first: the least used; that of the smallest gate weight times output norm; or the least used, merged
    into the one whose weights are nearest."""
    min_experts: Annotated[int, Field(ge=2)] = 2
    """Experts that a mixture keeps."""


class MergeExperts(_InBlocks):
    """The two experts of each mixture whose weights are nearest become one, weighed by their usage. Lossy."""

    adds: ClassVar = False
    action: Literal["merge_experts"] = "merge_experts"
    min_experts: Annotated[int, Field(ge=2)] = 2
    """Experts that a mixture keeps."""


class CrossExperts(_InBlocks):
    """The least fit expert of each mixture becomes a blend of itself and the fittest; taken back where that costs more
    than `loss_budget`. Lossy."""

    adds: ClassVar = False
    action: Literal["cross_experts"] = "cross_experts"
    blend: OpenShare = 0.5
    """Share of the fittest in the blend."""
    loss_budget: Annotated[float, Field(ge=0.0)] = 0.01
    """Loss on a held batch, in nats, that it may cost."""


class GrowVocabulary(Action):
    """More tokens in the embedding and the head. The old tokens' logits stay as they were."""

    action: Literal["grow_vocabulary"] = "grow_vocabulary"
    tokens: PositiveInt
    """Tokens in all, after it."""


class DropLayer(Action):
    """Blocks go: those least used. Lossy."""

    adds: ClassVar = False
    action: Literal["drop_layer"] = "drop_layer"
    layers: PositiveInt = 1
    """How many."""


class Narrow(_InBlocks):
    """Fewer hidden units, heads or residual channels; those of largest norm stay. Lossy."""

    adds: ClassVar = False
    action: Literal["narrow"] = "narrow"
    target: Literal["ffn", "heads", "dim"] = "ffn"
    """What shrinks."""
    factor: OpenShare = 0.75
    """Share that stays, rounded to what the model allows and at least one fewer."""


GrowthAction = Annotated[
    Widen
    | Deepen
    | ToMoE
    | AddExperts
    | SplitExperts
    | PruneExperts
    | MergeExperts
    | CrossExperts
    | GrowVocabulary
    | DropLayer
    | Narrow,
    OneOf("action"),
]


class GrowthLimits(Frozen):
    """Where growth ends: an action that would go beyond one of these is not taken."""

    max_layers: PositiveInt | None = None
    """Blocks at most."""
    max_dim: PositiveInt | None = None
    """Residual channels at most."""
    max_params: PositiveInt | None = None
    """Parameters at most."""
    max_flops_per_token: PositiveFloat | None = None
    """FLOPs of a token's forward pass at most."""
    max_times: PositiveInt | None = None
    """How often the rule acts at most, along a lineage."""
    cooldown_steps: NonNegativeInt = 0
    """Steps after any growth before this rule may act."""


class GrowthRule(Frozen):
    """A change of architecture during training: when, what, and how far."""

    id: GeneId = ""
    """The rule's stable name in a lineage; assigned when absent."""
    when: Trigger
    """What has to be so."""
    do: GrowthAction
    """What is done then."""
    limits: GrowthLimits = GrowthLimits()
    """How far it goes."""

    def blocks(self) -> tuple[str, ...]:
        """The blocks that it names; none where it acts wherever it can."""
        return self.do.blocks if isinstance(self.do, _InBlocks) else ()


def of_blocks(rules: Iterable[GrowthRule], present: Set[str]) -> tuple[GrowthRule, ...]:
    """The rules of a model that has the blocks `present`: those that it lacks are named no more, and a rule for blocks
    all of which it lacks is gone."""
    kept = list[GrowthRule]()
    for rule in rules:
        named = rule.blocks()
        left = tuple(block for block in named if block in present)
        if left == named:
            kept.append(rule)
        elif left:
            kept.append(rule.model_copy(update={"do": rule.do.model_copy(update={"blocks": left})}))
    return tuple(kept)
