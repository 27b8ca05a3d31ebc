"""An experiment: model + train + data + evolution in one YAML file. How a candidate is trained stands here; the longer
sections have files of their own (`sections/`).

Every field here is read by something; unknown names are refused. See docs/experiments.md for what each one means.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import (
    Discriminator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Tag,
    model_validator,
)

from morphogen.blueprint.schema import Blueprint
from morphogen.figures import Direction
from morphogen.parts.contract.frozen import Frozen
from morphogen.parts.contract.registry import TAG
from morphogen.sections.anchoring import AnchoringSection
from morphogen.sections.data import BPE, Data, Split
from morphogen.sections.evolution import OBJECTIVES, Crossing, Evolution, Proposer
from morphogen.sections.priors import Priors
from morphogen.sections.shards import Shard
from morphogen.sections.values import Decay, changed

__all__ = [
    "BPE",
    "RATE_FOUND",
    "AnchoringSection",
    "Crossing",
    "Data",
    "Evolution",
    "Experiment",
    "Optimizer",
    "Priors",
    "Proposer",
    "Shard",
    "Split",
    "Train",
]


class Optimizer(Frozen):
    """The update rule and its settings."""

    name: Literal["adamw", "lion", "muon"] = "adamw"
    """The update rule."""
    lr: PositiveFloat | None = None
    """Learning rate; null: `train.lr`."""
    betas: tuple[Decay, Decay] = (0.9, 0.95)
    """Share of the first and of the second moment that stays at each step."""
    eps: PositiveFloat = 1e-8
    """Added to the root of the second moment; lion has none."""
    weight_decay: NonNegativeFloat | None = None
    """Decoupled weight decay; null: `train.weight_decay`."""

    @model_validator(mode="after")
    def _eps_is_read(self) -> Self:
        if self.name == "lion" and "eps" in changed(self):
            raise ValueError(f"eps is {self.eps:g}, but lion has none; leave it out, or use adamw or muon")
        return self


#: The cost that `priors.compute_penalty_weight` is on.
FLOPS = "flops_per_token"
#: The figure of the root that holds what `auto` found.
RATE_FOUND = "lr"
#: `auto` is found by short trainings of the root.
Rate = Annotated[
    Annotated[PositiveFloat, Tag(TAG + "number or auto")] | Annotated[Literal["auto"], Tag(TAG + "auto")],
    Discriminator(lambda value: TAG + ("auto" if value == "auto" else "number or auto")),
]
#: `auto` is settled when a run begins, by the device: see `training.precision`.
Bf16 = Annotated[
    Annotated[bool, Tag(TAG + "truth or auto")] | Annotated[Literal["auto"], Tag(TAG + "auto")],
    Discriminator(lambda value: TAG + ("auto" if value == "auto" else "truth or auto")),
]


class Train(Frozen):
    """How a candidate is trained, and when training is stopped early."""

    lr: Rate = 3e-3
    """Highest learning rate; `auto`: the one that short trainings of the root find best, for the whole run."""
    base_dim: PositiveInt | None = None
    """Residual channels at which `lr` was found: in a model of other width the rate of every matrix is scaled by µP
    (2203.03466), so that it stays right. For adamw and lion; null: one rate for all."""
    schedule: Literal["constant", "cosine", "wsd"] = "constant"
    """`constant`: one warm-up for a whole lineage, then flat; what is measured is an average of the weights. `cosine`:
    every candidate warms up and falls to a tenth. `wsd`: flat, and over the last `decay_share` of its steps towards
    0."""
    warmup: NonNegativeInt = 20
    """Steps until the highest learning rate, at most half of a run. Moments that were inherited need none, and then
    only what is new in a child has one."""
    decay_share: Annotated[float, Field(gt=0.0, le=1.0)] = 0.2
    """Share of a candidate's steps over which the rate falls to 0; for wsd."""
    accumulate: PositiveInt = 1
    """Batches whose gradients make one step, one after another: as one batch so many times as large, but for rounding,
    in the memory of one."""
    clip: PositiveFloat = 1.0
    """Norm that gradients are clipped to."""
    bf16: Bf16 = "auto"
    """Whether to compute in bfloat16 by autocast; weights stay float32. `auto`: where the device multiplies it
    natively; on a CPU only where that is measured to be clearly faster, on mps never."""
    compile: Literal["none", "blocks", "model"] = "none"
    """What goes through torch's compiler in steps of training: nothing, every block, or the model as a whole. On a CPU
    it takes more than a thousand steps to pay."""
    grad_ckpt: bool = False
    """Whether the backward pass computes activations again, to save memory."""
    max_tokens: PositiveInt = 200_000
    """Most tokens that one candidate may train on."""
    weight_decay: NonNegativeFloat = 0.1
    """Decoupled weight decay."""
    seed: NonNegativeInt = 0
    """Of fresh weights and dropout; also the run's seed unless `--seed` is given."""
    init_checkpoint: str | None = None
    """Weights that the root starts from, and with `weight_inheritance: init` every candidate; null: fresh ones."""
    init_tokenizer: Literal["same", "remap"] = "same"
    """Whether the weights of `init_checkpoint` must be those of the same tokenizer, or are mapped token by token."""
    router_lb_coeff: NonNegativeFloat = 1.0
    """Multiplies the load-balance losses that the blueprint's routers ask for."""
    router_entropy_coeff: NonNegativeFloat = 0.0
    """Times the entropy of routing (nats), taken off the loss: spreads the choice."""
    entropy_threshold: NonNegativeFloat = 0.5
    """Mean entropy of predictions (nats) below which training ends: low_entropy."""
    entropy_patience: PositiveInt = 3
    """Checks in a row below `entropy_threshold` until it ends."""
    instability_threshold: PositiveFloat = 5.0
    """Median gradient norm, before clipping, above which training ends: high_grad."""
    no_improve_patience: PositiveInt = 20
    """Checks without a gain of the training loss until it ends: no_improve."""
    improvement_tolerance: NonNegativeFloat = 1e-3
    """The least relative fall of the training loss that is a gain."""
    ppl_stop_threshold: PositiveFloat | None = None
    """Held-out perplexity after rung 1 above which a candidate is gated; null: none is."""
    optimizer: Optimizer = Optimizer()
    """The update rule and its settings."""
    anchoring: AnchoringSection = AnchoringSection()
    """What keeps a model from forgetting while it grows, or learns from other text."""

    @model_validator(mode="after")
    def _remap_of_something(self) -> Self:
        if self.init_tokenizer == "remap" and self.init_checkpoint is None:
            raise ValueError("init_tokenizer is 'remap', but there is no init_checkpoint whose tokens to map")
        return self

    @model_validator(mode="after")
    def _transferable(self) -> Self:
        if self.base_dim is not None and self.optimizer.name == "muon":
            raise ValueError("base_dim is for adamw and lion: what muon does to a matrix has another scale")
        return self

    @property
    def in_bf16(self) -> bool:
        """Whether bfloat16 is computed in; `auto` that is not settled yet counts as float32."""
        return self.bf16 is True

    @property
    def searches_rate(self) -> bool:
        """Whether the learning rate is still to be found."""
        return self.lr == "auto" and self.optimizer.lr is None


class Experiment(Frozen):
    """One experiment file."""

    model: Blueprint
    """The architecture that the search begins with: the root."""
    train: Train = Train()
    """How a candidate is trained."""
    data: Data = Data()
    """Text, tokens and batches."""
    evolution: Evolution = Evolution()
    """The search."""
    priors: Priors = Priors()
    """What is ordinary where nothing better is known."""

    @model_validator(mode="after")
    def _recall(self) -> Self:
        """With a probe in the data, recall is among the objectives that a file leaves to the defaults."""
        if self.data.recall is not None and "objectives" not in self.evolution.model_fields_set:
            objectives: dict[str, Direction] = {**OBJECTIVES, "long_recall": "max"}
            self.__dict__["evolution"] = self.evolution.model_copy(update={"objectives": objectives})
        return self

    @property
    def scored_by(self) -> dict[str, float]:
        """The weights that parent selection goes by, of whatever kind it is, the prior's on cheapness among them."""
        weights, penalty = self.evolution.weights, self.priors.compute_penalty_weight
        if not penalty:
            return weights
        known = weights or dict.fromkeys(self.evolution.objectives, 1.0)
        return {**known, FLOPS: known.get(FLOPS, 0.0) + penalty}

    @property
    def tokens_per_step(self) -> int:
        """Targets that one step of the optimizer trains on."""
        return self.data.seq_len * self.data.batch_size * self.train.accumulate

    def in_precision(self, bf16: bool) -> Self:
        """The same with `train.bf16: auto` settled; where it is asked for outright that stays."""
        if self.train.bf16 != "auto":
            return self
        return self.model_copy(update={"train": self.train.model_copy(update={"bf16": bf16})})

    def with_train(self, fields: Mapping[str, Any]) -> Self:
        """The same, trained with other `fields` of `train`, as a candidate's edits may ask."""
        if not fields:
            return self
        return self.model_copy(update={"train": Train.model_validate({**dict(self.train), **fields})})
