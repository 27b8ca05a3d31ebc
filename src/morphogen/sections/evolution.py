"""`evolution`: the search; who breeds, what is measured, what survives."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Tag,
    model_validator,
)

from morphogen import plugins
from morphogen.blueprint.templates import Template
from morphogen.candidate import ProposerName
from morphogen.figures import Bounds, Composite, Descriptor, Direction, Noise
from morphogen.offered import Offered
from morphogen.parts.contract.frozen import Frozen, PositiveWeight, Weight
from morphogen.parts.contract.registry import TAG
from morphogen.sections.values import Count, ScoreWeight, Share, list_tag
from morphogen.selection.parents import SELECTORS
from morphogen.selection.survival import SURVIVAL

#: The ways to cross two parents; variation/crossover.py says what they are.
Crossing = Literal[
    "one_point",
    "aligned_span",
    "uniform",
    "merge_linear",
    "merge_slerp",
    "merge_task_arithmetic",
    "merge_ties",
    "merge_dare_ties",
    "merge_della",
    "merge_passthrough",
]


def _one_way(value: Any) -> Any:
    """One name for that one alone."""
    return {value: 1.0} if isinstance(value, str) else value


#: What is searched for unless the file says otherwise; with a recall probe in the data, `long_recall` too.
OBJECTIVES: dict[str, Direction] = {"bpb": "min", "flops_per_token": "min", "train_memory_bytes": "min"}


#: Edits of one child; after so many it has little of its parent.
Edits = Annotated[int, Field(ge=1, le=100)]


def _count(value: Any) -> Any:
    """The older system took the share of its pool that may breed."""
    if isinstance(value, float):
        raise ValueError(f"got {value}: a share, but this is a count: how many survivors of a generation, such as 6")
    return value


def _threshold_tag(value: Any) -> str:
    return TAG + ("bounds" if isinstance(value, Mapping | Bounds) else "number")


#: From above where a number is given.
Threshold = Annotated[
    Annotated[PositiveFloat, Tag(TAG + "number")] | Annotated[Bounds, Tag(TAG + "bounds")],
    Discriminator(_threshold_tag),
]


class Proposer(Frozen):
    """A program that is asked for candidates in every generation. It is code: only `--allow-code` runs it."""

    command: Annotated[tuple[Annotated[str, Field(pattern=r"^[^\x00]+$")], ...], Field(min_length=1)]
    """The program and its arguments; words that are files beside the experiment are meant so. It reads the state of the
    run on standard input and answers on standard output, both JSON; docs/proposers.md says more."""
    name: ProposerName = "proposer"
    """What it is called in the lineage, unless its answer says otherwise."""
    share: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5
    """Its share of a generation's places, one at least."""
    timeout_seconds: Annotated[float, Field(gt=0.0, le=86_400.0)] = 60.0
    """After so long it is ended, which costs one place."""

    def places(self, population: int) -> int:
        """How many of a generation's places it is asked for."""
        return max(1, round(self.share * population))


class Evolution(Frozen):
    """The search: who breeds, what is measured, what survives."""

    generations: Annotated[int, Field(ge=0, le=1_000_000)] = 3
    """Generations after the root's."""
    population: Count = 8
    """Offspring of a generation."""
    topk_keep: Annotated[Count, BeforeValidator(_count)] = 6
    """Survivors of a generation; only they breed."""
    crossover_prob: Share = 0.2
    """Share of children with two parents."""
    crossover: Annotated[dict[Crossing, Weight], BeforeValidator(_one_way)] = {
        "one_point": 1.0,
        "aligned_span": 1.0,
        "uniform": 1.0,
    }
    """Ways to cross two parents, with their weights; one name alone means that one only. `merge_…` gives the first
    parent's architecture the weights of both, `merge_passthrough` the blocks of both."""
    baseline: Literal["none", "random", "control"] = "none"
    """`random`: every candidate is a random walk of edits from the root; `control`: no edits at all."""
    parent_selection: Annotated[str, Offered(plugins.SELECTORS, SELECTORS)] = "epsilon_lexicase"
    """Who breeds among the survivors."""
    lexicase_cases: tuple[str, ...] = ()
    """Figures that the lexicase selections go by; empty: the objectives."""
    downsample: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5
    """Share of the cases drawn for each parent; for downsampled_lexicase."""
    tournament_size: Count = 2
    """Survivors that the best is taken of; for tournament."""
    map_elites: Annotated[dict[str, Descriptor], Field(min_length=1)] = {
        "flops_per_token": Descriptor(scale="log", width=1.5),
        "layers": Descriptor(scale="linear", width=1.0),
    }
    """Axes of the grid of behaviours, by figure; for map_elites."""
    archive_max_elites: Count = 32
    """Cells kept at most; for map_elites."""
    survival: Annotated[str, Offered(plugins.SURVIVAL, SURVIVAL)] = "rank_crowding"
    """Who stays of the last survivors and the offspring."""
    screening: Literal["none", "model"] = "none"
    """`model`: of several children drawn for each place, the one is trained that a cheap model likes best; it is fitted
    to what the run has measured."""
    screening_draws: Annotated[int, Field(ge=2, le=1000)] = 64
    """Children drawn for each place; for screening by a model."""
    screening_share: Share = 0.1
    """Share of places that go to the first child drawn, whatever the model says; for screening by a model."""
    survivors: Literal["train", "rest"] = "train"
    """`train`: survivors train on, unedited, beside their children, so that those who are compared have had the same
    training; `rest`: they stay as they were measured."""
    structural_elite_k: Annotated[int, Field(ge=0, le=10_000)] = 0
    """Survivors besides, the most novel of the others."""
    objectives: Annotated[dict[str, Direction], Field(min_length=1)] = OBJECTIVES
    """Figures that the search is for, and which way; with a recall probe the default has `long_recall` too."""
    rank_by: Literal["scratch", "inherited", "both"] = "inherited"
    """What selection reads of a child that inherited weights. `inherited`: its own figures. `scratch`: those of a twin,
    the same blueprint trained from fresh weights beside it, on as many tokens, from where the root began. `both`: the
    mean of the two."""
    noise: Noise = Noise()
    """Which differences of measured figures count in dominance, lexicase, gates and constraints."""
    composite_metrics: dict[str, Composite] = {}
    """Figures made of others, by name."""
    constraints: dict[str, Bounds] = {}
    """Bounds by figure; a candidate outside of one ranks behind all that are inside."""
    weights: dict[str, ScoreWeight] = {}
    """Figure to weight. For weighted one of w makes the best e^w times as likely as the worst; for the lexicase
    selections it is that of a case (1 for those without), below 0 of the case turned round; the others draw by weighted
    score among those that they find equal."""
    rung0_thresholds: dict[str, Threshold] = {}
    """Costs outside of which nothing is trained; a number bounds from above."""
    rung1_gates: dict[str, Bounds] = {}
    """Bounds on what rung 1 measured, by figure; a candidate outside is gated."""
    rung1_tokens: NonNegativeInt = 40_000
    """Training tokens of rung 1; for fixed rungs."""
    rung2_tokens: NonNegativeInt = 80_000
    """Training tokens of rung 2; for fixed rungs."""
    budget: Literal["tokens", "flops"] = "tokens"
    """`flops`: each candidate trains on as many tokens as cost it the FLOPs that the root spends on those."""
    rungs: Literal["fixed", "asha"] = "fixed"
    """`fixed`: rungs 1 and 2 for all; `asha`: successive halving."""
    eta: Annotated[int, Field(ge=2)] = 3
    """One in so many goes on to so many times the tokens; for asha."""
    min_tokens: PositiveInt = 10_000
    """Training tokens of the first rung; for asha."""
    max_tokens: PositiveInt = 90_000
    """Training tokens of the last rung, at most; for asha."""
    promotion_prob: Share = 0.0
    """Probability of one more rung after the last; what follows is read where it is above 0."""
    promotion_steps_multiplier: PositiveWeight = 1.0
    """The extra rung's budget, as a multiple of the last rung's."""
    promotion_tokens_multiplier: PositiveWeight = 1.0
    """Multiplies the extra rung's budget as well."""
    promotion_min_layers: NonNegativeInt = 0
    """Fewest blocks of a promoted candidate."""
    promotion_min_moe_blocks: NonNegativeInt = 0
    """Fewest blocks with a mixture of experts of a promoted candidate."""
    promotion_min_router_entropy: NonNegativeFloat | None = None
    """Least `router_entropy` (nats) of a promoted candidate; null: any, or none."""
    promotion_min_recurrence_gain: float | None = None
    """Least `recurrence_gain` of a promoted candidate; null: any, or none."""
    promotion_max_instability: NonNegativeFloat | None = None
    """Largest `instability` of a promoted candidate; null: any."""
    min_layers: PositiveInt = 1
    """Structural gate: fewest blocks."""
    min_recurrences: NonNegativeInt = 0
    """Structural gate: fewest recurrences."""
    min_moe_blocks: NonNegativeInt = 0
    """Structural gate: fewest blocks with a mixture of experts."""
    min_selector_blocks: NonNegativeInt = 0
    """Structural gate: fewest blocks whose attention has a selector."""
    min_memory_blocks: NonNegativeInt = 0
    """Structural gate: fewest blocks with a memory."""
    structural_gates: Literal["repair", "reject"] = "repair"
    """`repair`: operators add to a child what it lacks, the root may lack it, and what cannot be mended is turned away;
    `reject`: everything short of the gates is turned away, the root too."""
    mutation_steps: Annotated[
        Annotated[int, Field(ge=0, le=100), Tag(TAG + "count")] | Annotated[tuple[Edits, Edits], Tag(TAG + "range")],
        Discriminator(list_tag("range", "count")),
    ] = 2
    """Edits of a child: 1 to a number, or as many as a range `[least, most]` allows; 0: none."""
    mutation_weights: dict[str, Weight] = {}
    """Operator to weight, 1 unless given (0 for edits of training); 0 switches it off."""
    adaptive_mutation: bool = False
    """Whether a generation multiplies the weight of each operator it used by exp(eta · (the share of its children that
    survive - that of all children))."""
    adaptive_mutation_eta: Annotated[float, Field(gt=0.0, le=100.0)] = 0.5
    """How fast weights adapt."""
    adaptive_mutation_min_weight: PositiveWeight = 0.1
    """The least that an adapted weight falls to."""
    adaptive_mutation_max_weight: PositiveWeight = 5.0
    """The most that an adapted weight rises to."""
    anneal_tokens: NonNegativeInt = 0
    """Tokens over which the learning rate of those on the frontier falls to 0 at the run's end; what is then measured
    stands beside their figures as `bpb_annealed`. 0: they are left as they are."""
    repeat: Annotated[int, Field(ge=0, le=100)] = 0
    """How often finalists are trained again on other seeds at the run's end, each beside the root trained as long: only
    then is it known which of them are better than the root. 0: never; an interval needs 2, and is worth something from
    3 on."""
    donors: tuple[Annotated[str, Field(min_length=1, pattern=r"^[^\x00]+$")], ...] = ()
    """Models of others whose layers operators may put in: folders, or names on the Hugging Face hub; none: no operator
    puts any in."""
    templates: Annotated[
        Annotated[tuple[Template, ...], Tag(TAG + "list")] | Annotated[str, Tag(TAG + "file")],
        Discriminator(list_tag("list", "file")),
    ] = ()
    """Compound edits that `template_mutation` applies, or the YAML file they stand in."""
    template_mutation_prob: Share = 0.25
    """Probability that it tries a new one, made up or varied, which joins the others when its child survives."""
    proposer: Proposer | None = None
    """A program from outside that proposes some of the candidates; null: the run breeds all."""
    weight_inheritance: Literal["parent", "init", "scratch"] = "parent"
    """Where a child's weights come from: its parents, `train.init_checkpoint`, or nowhere."""
    inherit_optimizer: bool = True
    """Whether the optimizer's moments go on with weights: the parents', and a candidate's own from rung to rung."""

    @model_validator(mode="after")
    def _nobody_proposes_to_a_baseline(self) -> Self:
        if self.proposer is not None and (self.baseline != "none" or not self.edits):
            raise ValueError("proposer: a baseline, and a run without edits, has only candidates of its own kind")
        return self

    @model_validator(mode="after")
    def _some_crossover(self) -> Self:
        if self.crossover_prob and not any(self.crossover.values()):
            raise ValueError("crossover: no weight is above 0; for a run without crossover set crossover_prob to 0")
        return self

    @model_validator(mode="after")
    def _weights_to_merge(self) -> Self:
        merges = [name for name, weight in self.crossover.items() if weight and name.startswith("merge_")]
        if merges and self.crossover_prob and self.weight_inheritance != "parent":
            raise ValueError(
                f"crossover: {merges[0]} has no weights to merge with weight_inheritance {self.weight_inheritance!r}, "
                "expected 'parent'"
            )
        return self

    @model_validator(mode="after")
    def _budget(self) -> Self:
        if self.rungs == "fixed" and self.rung1_tokens + self.rung2_tokens == 0:
            raise ValueError("rung1_tokens and rung2_tokens are both 0, so nothing would be trained")
        if self.rungs == "asha" and self.min_tokens > self.max_tokens:
            raise ValueError(f"min_tokens {self.min_tokens} is above max_tokens {self.max_tokens}")
        return self

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        least, most = self.steps
        if least > most:
            raise ValueError(f"mutation_steps: got the range {least} to {most}, expected [least, most]")
        low, high = self.adaptive_mutation_min_weight, self.adaptive_mutation_max_weight
        if low > high:
            raise ValueError(f"adaptive_mutation_min_weight is {low:g}, above adaptive_mutation_max_weight {high:g}")
        return self

    @property
    def trains_on(self) -> bool:
        """Whether survivors train on. Those without weights of the run have nothing to go on from, and random walks
        all begin at the founders."""
        return self.survivors == "train" and self.weight_inheritance == "parent" and self.baseline != "random"

    @property
    def most_survivors(self) -> int:
        """Survivors of a generation at most."""
        kept = self.archive_max_elites if self.parent_selection == "map_elites" else self.topk_keep
        return kept + self.structural_elite_k

    @property
    def sizes(self) -> tuple[int, ...]:
        """Candidates of each generation at most: the root, then the offspring, and the survivors that train on."""
        sizes = [1]
        for _ in range(self.generations):
            sizes.append(self.population + (min(self.most_survivors, sizes[-1]) if self.trains_on else 0))
        return tuple(sizes)

    @property
    def keeps_moments(self) -> bool:
        """Whether the optimizer's moments lie beside a checkpoint: where somebody may go on with them."""
        return self.inherit_optimizer and self.goes_on

    @property
    def goes_on(self) -> bool:
        """Whether anybody may go on from weights of the run: children, or candidates from rung to rung."""
        later = self.rungs == "asha" or self.promotion_prob > 0.0 or self.anneal_tokens > 0
        return later or self.weight_inheritance == "parent"

    @property
    def twin_share(self) -> float:
        """How much of what a child is compared by is its twin's figure; the rest is its own. 0 where there are no
        twins, as of weights that nobody handed down."""
        share = {"scratch": 1.0, "both": 0.5, "inherited": 0.0}[self.rank_by]
        return share if self.weight_inheritance == "parent" else 0.0

    @property
    def edits(self) -> bool:
        """Whether children differ from their parents; not so in the control."""
        return self.baseline != "control" and self.steps[1] > 0

    @property
    def steps(self) -> tuple[int, int]:
        """The fewest and the most edits of a child; (0, 0) in the control without edits."""
        if isinstance(self.mutation_steps, int):
            return min(1, self.mutation_steps), self.mutation_steps
        return self.mutation_steps

    @property
    def directions(self) -> dict[str, Direction | None]:
        """Which way figures are better where this file says so, as objectives or in composites; None for a composite
        that leaves it open."""
        return {**{name: made.better for name, made in self.composite_metrics.items()}, **self.objectives}

    @property
    def gates(self) -> dict[str, int]:
        """The structural gates: name of the count (see `cost.structure`) -> the fewest allowed."""
        return {
            "layers": self.min_layers,
            "recurrences": self.min_recurrences,
            "moe_blocks": self.min_moe_blocks,
            "selector_blocks": self.min_selector_blocks,
            "memory_blocks": self.min_memory_blocks,
        }
