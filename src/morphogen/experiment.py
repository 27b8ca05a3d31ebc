"""An experiment: model + train + data + evolution in one YAML file.

Every field here is read by something; unknown names are refused. See docs/experiments.md for what each one means.
"""

import hashlib
import re
import unicodedata
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SerializerFunctionWrapHandler,
    Tag,
    model_serializer,
    model_validator,
)

from morphogen import plugins
from morphogen.blueprint.schema import Blueprint
from morphogen.blueprint.templates import Template
from morphogen.figures import Bounds, Composite, Descriptor, Direction
from morphogen.offered import Offered
from morphogen.parts.contract.frozen import Frozen, PositiveWeight, Weight
from morphogen.parts.contract.registry import TAG
from morphogen.selection.parents import SELECTORS
from morphogen.selection.survival import SURVIVAL

Share = Annotated[float, Field(ge=0.0, le=1.0)]
#: How much of a moment stays at each step; 1 would never learn.
Decay = Annotated[float, Field(ge=0.0, lt=1.0)]
#: A weight of w makes the best e^w times as likely as the worst, so that this is as good as always, or never.
ScoreWeight = Annotated[float, Field(ge=-1e6, le=1e6)]


def _changed(settings: Frozen) -> set[str]:
    """Fields that differ from their default. A resolved experiment names every field, so that being named says nothing
    of what a user asked for."""
    return {name for name, field in type(settings).model_fields.items() if dict(settings)[name] != field.default}


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
        if self.name == "lion" and "eps" in _changed(self):
            raise ValueError(f"eps is {self.eps:g}, but lion has none; leave it out, or use adamw or muon")
        return self


class Train(Frozen):
    """How a candidate is trained, and when training is stopped early."""

    lr: PositiveFloat = 3e-3
    """Highest learning rate; after the warm-up a cosine leads to a tenth of it."""
    warmup: NonNegativeInt = 20
    """Steps until the highest learning rate, at most half of a run."""
    clip: PositiveFloat = 1.0
    """Norm that gradients are clipped to."""
    bf16: bool = False
    """Whether to compute in bfloat16 by autocast; weights stay float32."""
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

    @model_validator(mode="after")
    def _remap_of_something(self) -> Self:
        if self.init_tokenizer == "remap" and self.init_checkpoint is None:
            raise ValueError("init_tokenizer is 'remap', but there is no init_checkpoint whose tokens to map")
        return self


class BPE(Frozen):
    """A byte-level BPE trained on the training split and cached by content."""

    kind: Literal["bpe"] = "bpe"
    """A byte-level BPE."""
    vocab: Annotated[int, Field(ge=257, le=1_000_000)] = 4096
    """Tokens, the 256 bytes included."""


class Split(Frozen):
    """Shares of documents by hash. What is left of 1 is the test split, which nothing here trains on or selects by."""

    train: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.9
    """Share of documents to train on."""
    eval: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.05
    """Share of documents to measure candidates by."""

    @model_validator(mode="after")
    def _sum(self) -> Self:
        if self.train + self.eval > 1.0:
            raise ValueError(f"train + eval is {self.train + self.eval}, expected at most 1")
        return self


#: Sources that every Python carries.
BUILT_IN = ("stdlib-code", "stdlib-docs")
#: A recall probe; data/probes.py says what it is.
_PROBE = re.compile(r"probe:mqar(?::([1-9][0-9]*))?")
_PAIRS = 8


def _metric_name(source: str) -> str:
    """The source as it stands in metric names: letters, marks and digits of any script in lower case, `_` between them.

    Where something that is not ASCII is lost by that (an emoji), or nothing is left, a hash keeps the name distinct.
    """
    text = unicodedata.normalize("NFC", source.rstrip("/").removeprefix("hf:"))
    kept = "".join(sign if _in_a_name(sign) else "_" for sign in text)
    name = re.sub("_+", "_", kept).strip("_").lower()
    if name and not any(before != after and not before.isascii() for before, after in zip(text, kept, strict=True)):
        return name
    digest = hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=3).hexdigest()
    return f"{name or 'source'}_{digest}"


#: Names that no shard may have: `bpb_<name>` is something else.
_TAKEN = frozenset({"sample", "inherited"})


def _in_a_name(sign: str) -> bool:
    return sign.isalnum() or unicodedata.category(sign)[0] == "M"


def _given_name(name: str) -> str:
    if not name.strip("_") or not all(sign == "_" or _in_a_name(sign) for sign in name):
        raise ValueError(f"got {name!r}, expected letters, digits and _, such as {_metric_name(name)!r}")
    return name


def _source(source: str) -> str:
    if not source.strip():
        raise ValueError(
            "empty, expected stdlib-code, stdlib-docs, a file or folder, hf:NAME[:CONFIG], or probe:mqar[:PAIRS]"
        )
    if source.startswith("probe:") and not _PROBE.fullmatch(source):
        raise ValueError(f"got {source!r}, expected probe:mqar or probe:mqar:PAIRS, such as probe:mqar:{_PAIRS}")
    return source


def _list_tag(a_list: str, other: str) -> Callable[[Any], str]:
    """Which of two forms a field has, as pydantic's discriminators tell them apart."""
    return lambda value: TAG + (a_list if isinstance(value, list | tuple) else other)


def _tokenizer_tag(value: Any) -> str:
    return TAG + ("bpe" if isinstance(value, Mapping | BPE) else "name")


class Shard(Frozen):
    """One text source: `stdlib-code`, `stdlib-docs`, a file or folder (text, jsonl, parquet), `hf:NAME[:CONFIG]`, or
    `NAME[:ARGUMENTS]` of a corpus that an installed package offers; or `probe:mqar[:PAIRS]`, multi-query associative
    recall over 8 pairs unless it says how many.

    A probe has none of the fields below but a name and a weight.
    """

    source: Annotated[str, AfterValidator(_source)]
    """`stdlib-code`, `stdlib-docs`, a file or folder, `hf:NAME[:CONFIG]`, `probe:mqar[:PAIRS]`, or a plug-in's
    corpus."""
    name: Annotated[str, AfterValidator(_given_name)] = ""
    """What its figures are called after (`ppl_<name>`); empty: the source as it is written, in small letters."""
    weight: PositiveWeight = 1.0
    """Share of training sequences, or of the means over held-out shards, relative to the other shards'."""
    split: str = "train"
    """Of a Hugging Face data set."""
    revision: str | None = None
    """Of a Hugging Face data set; null stays at the version first fetched."""
    cache_path: str | None = None
    """Folder of its tokens; null: the common cache."""
    max_documents: PositiveInt | None = None
    """Documents taken from the head of the source, so that a large data set need not be fetched whole; null: all."""
    text_field: Annotated[str, Field(min_length=1)] | None = None
    """The column of records that holds the text; null: `text`, or the only one that may be it."""
    on_error: Literal["fail", "skip"] = "fail"
    """`skip` leaves out records, texts and files that cannot be read, and counts them."""

    @model_validator(mode="after")
    def _all_is_read(self) -> Self:
        unread = set() if self.source.startswith("hf:") else {"split", "revision"}
        if not self.source.startswith("hf:") and not self.is_local:
            unread |= {"text_field", "on_error"}
        if self.pairs is not None:
            unread |= {"cache_path", "max_documents"}
        for name in sorted(unread & _changed(self)):
            only = "hf: sources have one" if name in ("split", "revision") else "text has one"
            only = "files and data sets have one" if name in ("text_field", "on_error") else only
            raise ValueError(f"{name} is {dict(self)[name]!r}, but the source is {self.source!r} and only {only}")
        return self

    @model_validator(mode="after")
    def _named(self) -> Self:
        if not self.name:
            self.__dict__["name"] = self._name_of_source
        return self

    @model_serializer(mode="wrap")
    def _name_where_it_says_more(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        found: dict[str, Any] = dump(self)
        return {key: value for key, value in found.items() if key != "name" or value != self._name_of_source}

    @property
    def _name_of_source(self) -> str:
        return _metric_name(self.source)

    @property
    def is_local(self) -> bool:
        """Whether the source is a file or folder of this machine."""
        return self.corpus is None and self.pairs is None and not self._is_ours

    @property
    def _is_ours(self) -> bool:
        return self.source.startswith(("hf:", "probe:")) or self.source in BUILT_IN

    @property
    def corpus(self) -> tuple[str, str] | None:
        """The name of a corpus that an installed package offers, and what follows its colon; None for other sources."""
        name, _, arguments = self.source.partition(":")
        return None if self._is_ours or name not in plugins.names(plugins.CORPORA) else (name, arguments)

    @property
    def pairs(self) -> int | None:
        """How many pairs a recall probe has; None for text."""
        found = _PROBE.fullmatch(self.source)
        return int(found[1] or _PAIRS) if found else None


def _measured(shard: Shard) -> Shard:
    if shard.pairs is not None and "weight" in _changed(shard):
        raise ValueError(f"weight is {shard.weight:g}, but a probe that is only measured has no part in any mean")
    return shard


class Data(Frozen):
    """Text, tokens and batches."""

    tokenizer: Annotated[
        Annotated[BPE, Tag(TAG + "bpe")] | Annotated[str, Tag(TAG + "name")], Discriminator(_tokenizer_tag)
    ] = "bytes"
    """`bytes`, a tokenizer by name, file or folder, or a BPE to train on the training split."""
    allow_loss: Share = 0.0
    """Share of a source's characters that the tokenizer may fail to spell."""
    seq_len: Annotated[int, Field(ge=8, le=2**24)] = 256
    """Tokens of a sequence."""
    batch_size: PositiveInt = 8
    """Sequences of a training step."""
    seed: NonNegativeInt = 0
    """Of the order of sequences."""
    split: Split = Split()
    """Shares of documents."""
    shards: Annotated[tuple[Shard, ...], Field(min_length=1)] = (Shard(source="stdlib-code"),)
    """Text to train on. A probe among it is trained on at its weight and measured apart from the text."""
    eval_shards: tuple[Annotated[Shard, AfterValidator(_measured)], ...] = ()
    """Text whose eval split is measured; empty: that of `shards`. A probe among it is only measured."""
    healing_shards: tuple[Shard, ...] = ()
    """Text that a child begins with where the splice of its weights was not exact, for `healing_tokens`."""
    healing_tokens: NonNegativeInt = 0
    """Tokens of `healing_shards` at the start of such a child's training."""
    eval_tokens: PositiveInt = 65_536
    """Held-out tokens of every shard, at most."""

    @model_validator(mode="after")
    def _names(self) -> Self:
        for field in ("shards", "eval_shards"):
            sources: dict[str, str] = {}
            for shard in dict(self)[field]:
                if shard.name in sources:
                    raise ValueError(
                        f"{field}: {sources[shard.name]!r} and {shard.source!r} share the name {shard.name!r}, which "
                        f"figures are named after; give one of them another, such as name: {shard.name}_2"
                    )
                if shard.name in _TAKEN:
                    raise ValueError(
                        f"{field}: {shard.source!r} has the name {shard.name!r}, but bpb_{shard.name} is another "
                        f"figure; give it a name, such as name: {shard.name}_text"
                    )
                sources[shard.name] = shard.source
        if self.healing_tokens and not self.healing_shards:
            raise ValueError("healing_tokens is set, but there are no healing_shards")
        return self

    @model_validator(mode="after")
    def _probes(self) -> Self:
        if not self.text_shards:
            raise ValueError("shards: there are only probes, expected at least one source of text")
        if any(shard.pairs for shard in self.healing_shards):
            raise ValueError("healing_shards: a probe does not heal, expected sources of text")
        pairs = [shard.pairs for shard in self.shards + self.eval_shards if shard.pairs]
        if len(set(pairs)) > 1 or sum(shard.pairs is not None for shard in self.shards) > 1:
            raise ValueError(f"shards, eval_shards: got probes of {pairs} pairs, expected one probe at most")
        return self

    @property
    def text_shards(self) -> tuple[Shard, ...]:
        """The training shards that are text."""
        return tuple(shard for shard in self.shards if shard.pairs is None)

    @property
    def probe(self) -> Shard | None:
        """The recall probe, from `shards` where it is among them; None when there is none."""
        return next((shard for shard in self.shards + self.eval_shards if shard.pairs is not None), None)

    @property
    def measured_shards(self) -> tuple[Shard, ...]:
        """The text that metrics are reported on, each shard with its weight in their means."""
        given = tuple(shard for shard in self.eval_shards if shard.pairs is None)
        return given or tuple(shard.model_copy(update={"weight": 1.0}) for shard in self.text_shards)


#: The ways to cross two parents; variation/crossover.py says what they are.
Crossing = Literal["one_point", "aligned_span", "uniform"]


def _one_way(value: Any) -> Any:
    """One name for that one alone."""
    return {value: 1.0} if isinstance(value, str) else value


#: What is searched for unless the file says otherwise; with a recall probe in the data, `long_recall` too.
OBJECTIVES: dict[str, Direction] = {"bpb": "min", "flops_per_token": "min", "train_memory_bytes": "min"}


#: Candidates of one kind or another: more would not end, or not fit into memory.
Count = Annotated[int, Field(ge=1, le=10_000)]
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
    """Ways to cross two parents, with their weights; one name alone means that one only."""
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
    structural_elite_k: Annotated[int, Field(ge=0, le=10_000)] = 0
    """Survivors besides, the most novel of the others."""
    objectives: Annotated[dict[str, Direction], Field(min_length=1)] = OBJECTIVES
    """Figures that the search is for, and which way; with a recall probe the default has `long_recall` too."""
    composite_metrics: dict[str, Composite] = {}
    """Figures made of others, by name."""
    constraints: dict[str, Bounds] = {}
    """Bounds by figure; a candidate outside of one ranks behind all that are inside."""
    weights: dict[str, ScoreWeight] = {}
    """Figure to weight; for weighted. A weight of w makes the best e^w times as likely as the worst."""
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
        Discriminator(_list_tag("range", "count")),
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
    templates: Annotated[
        Annotated[tuple[Template, ...], Tag(TAG + "list")] | Annotated[str, Tag(TAG + "file")],
        Discriminator(_list_tag("list", "file")),
    ] = ()
    """Compound edits that `template_mutation` applies, or the YAML file they stand in."""
    template_mutation_prob: Share = 0.25
    """Probability that it tries a new one, made up or varied, which joins the others when its child survives."""
    weight_inheritance: Literal["parent", "init", "scratch"] = "parent"
    """Where a child's weights come from: its parents, `train.init_checkpoint`, or nowhere."""
    inherit_optimizer: bool = False
    """Whether the optimizer's moments go on with the parents' weights."""

    @model_validator(mode="after")
    def _moments_of_parents(self) -> Self:
        if self.inherit_optimizer and self.weight_inheritance != "parent":
            raise ValueError(
                f"inherit_optimizer: moments go with a parent's weights, but weight_inheritance is "
                f"{self.weight_inheritance!r}, expected 'parent'"
            )
        return self

    @model_validator(mode="after")
    def _some_crossover(self) -> Self:
        if self.crossover_prob and not any(self.crossover.values()):
            raise ValueError("crossover: no weight is above 0; for a run without crossover set crossover_prob to 0")
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

    @model_validator(mode="after")
    def _recall(self) -> Self:
        """With a probe in the data, recall is among the objectives that a file leaves to the defaults."""
        if self.data.probe is not None and "objectives" not in self.evolution.model_fields_set:
            objectives: dict[str, Direction] = {**OBJECTIVES, "long_recall": "max"}
            self.__dict__["evolution"] = self.evolution.model_copy(update={"objectives": objectives})
        return self

    def with_train(self, fields: Mapping[str, Any]) -> Self:
        """The same, trained with other `fields` of `train`, as a candidate's edits may ask."""
        if not fields:
            return self
        return self.model_copy(update={"train": Train.model_validate({**dict(self.train), **fields})})
