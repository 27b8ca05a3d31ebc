"""Growth rules as data: when a model changes while it trains, and how. Part of a blueprint; `growth/` carries them out.

A rule is a trigger (`when`, one of `triggers`), an action (`do`) and limits. Rules are genes: edits change them,
children inherit them.
"""

from collections.abc import Iterable, Mapping, Set
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from morphogen.blueprint.oneof import OneOf
from morphogen.blueprint.triggers import ExpertUsageTrigger, Trigger, singles
from morphogen.parts.contract.frozen import Frozen
from morphogen.parts.contract.part import GeneId

OpenShare = Annotated[float, Field(gt=0.0, lt=1.0)]


class Action(Frozen):
    """What every action may say of the parameters that it adds."""

    new_param_lr_multiplier: PositiveFloat = 1.0
    """Learning rate of new parameters, as a multiple of the others'."""
    warmup: NonNegativeInt | None = None
    """Steps over which new parameters warm up, by the square; null: 50, or as many as a training's own warm-up where
    that is longer."""

    adds: ClassVar[bool] = True

    def inert(self) -> Mapping[str, str]:
        """Fields that have no effect as the rest stands, and why."""
        why = f"{dict(self)['action']} adds no parameters"  # so that there are none to train apart
        return {} if self.adds else {"new_param_lr_multiplier": why, "warmup": why}

    def limited(self) -> Set[str]:
        """The limits of size that it can come to."""
        return {"max_params", "max_flops_per_token"} if self.adds else set()


class _InBlocks(Action):
    blocks: tuple[GeneId, ...] = ()
    """Ids of the blocks that it acts in; none given: all that it can act in."""


class _Resizing(_InBlocks):
    def inert(self) -> Mapping[str, str]:
        """The residual stream is one of all blocks."""
        whole = {"blocks": "target dim is the width of all blocks"} if dict(self)["target"] == "dim" else {}
        return {**super().inert(), **whole}


class Widen(_Resizing):
    """More units: hidden ones, heads, channels of a head, or residual channels. Exact but for `head_dim` under RoPE."""

    action: Literal["widen"] = "widen"
    target: Literal["ffn", "heads", "head_dim", "dim"] = "ffn"
    """What grows; `dim`, the residual stream, in all blocks."""
    factor: Annotated[float, Field(gt=1.0, le=16.0)] = 1.5
    """How many times as many, rounded to what the model allows and at least one more."""

    def limited(self) -> Set[str]:
        """Channels too, where they are what grows."""
        return {*super().limited(), "max_dim"} if self.target == "dim" else super().limited()


class Deepen(Action):
    """More blocks, copies of those before them. Exact unless `how` is stack."""

    action: Literal["deepen"] = "deepen"
    layers: Annotated[int, Field(ge=1, le=256)] = 1
    """How many."""
    where: Literal["middle", "end", "alternate"] = "middle"
    """In the middle, after the last, or one after every so-many-th."""
    how: Literal["copy", "fresh", "stack"] = "copy"
    """copy: outputs at zero, else as the block before; exact. fresh: new weights, outputs at zero; exact. stack: the
    outputs copied too, the older way, which jumps in loss."""

    def limited(self) -> Set[str]:
        """Blocks too."""
        return {*super().limited(), "max_layers"}


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


class Narrow(_Resizing):
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


#: The limits of a model's size.
SIZES = frozenset({"max_layers", "max_dim", "max_params", "max_flops_per_token"})


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

    def unread(self) -> Mapping[tuple[str | int, ...], str]:
        """What has no effect as the rest of the rule stands, by the fields and numbers that lead to it, and why."""
        action = self.do.action
        found: dict[tuple[str | int, ...], str] = {("do", name): why for name, why in self.do.inert().items()}
        for name in sorted(SIZES - self.do.limited()):
            found["limits", name] = f"{action} changes nothing that it limits"
        little = isinstance(self.do, PruneExperts | MergeExperts | CrossExperts)
        for at, trigger in singles(self.when, ("when",)):
            if isinstance(trigger, ExpertUsageTrigger):
                for name in ("split_above",) if little else ("prune_below", "probation"):
                    found[*at, name] = f"{action} is about experts that are used too {'little' if little else 'much'}"
        return found


def of_blocks(rules: Iterable[GrowthRule], present: Set[str]) -> tuple[GrowthRule, ...]:
    """The rules of a model that has the blocks `present`: those that it lacks are named no more, and a rule for blocks
    all of which it lacks is gone, unless it acts on the whole model."""
    kept = list[GrowthRule]()
    for rule in rules:
        named = rule.blocks()
        left = tuple(block for block in named if block in present)
        if left == named:
            kept.append(rule)
        elif left or "blocks" in rule.do.inert():
            kept.append(rule.model_copy(update={"do": rule.do.model_copy(update={"blocks": left})}))
    return tuple(kept)
