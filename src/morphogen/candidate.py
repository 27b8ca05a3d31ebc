"""The records that a search passes around: plain, frozen, picklable data. No torch here.

A blueprint stands in these as validated JSON, so that ledgers, frontiers and lineages can be read on any machine.
"""

import zlib
from collections.abc import Mapping
from enum import IntEnum, StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field

from morphogen.edits import Change as Change
from morphogen.edits import Edit as Edit
from morphogen.edits import Merging as Merging
from morphogen.plain import ANNEALED as ANNEALED
from morphogen.plain import MOMENTS_SUFFIX as MOMENTS_SUFFIX
from morphogen.plain import CandidateId as CandidateId
from morphogen.plain import CheckpointPath as CheckpointPath
from morphogen.plain import Influence
from morphogen.plain import ProposerName as ProposerName
from morphogen.plain import Record as Record
from morphogen.plain import Whole as Whole
from morphogen.plain import Words as Words
from morphogen.plain import moments_path as moments_path

if TYPE_CHECKING:  # numpy takes its time, and whoever looks where a run stands need not wait for it
    import numpy as np

    from morphogen.estimates import Floats
    from morphogen.figures import Composite

#: A blueprint where there is one to tell of; files leave out one that says nothing.
OtherBlueprint = Annotated[dict[str, Any] | None, Field(exclude_if=lambda blueprint: blueprint is None)]


class Status(StrEnum):
    """What became of a candidate."""

    PROPOSED = "proposed"  # asked for, nothing known yet
    REJECTED = "rejected"  # rung 0 turned it away; nothing was trained
    FAILED = "failed"  # training did not finish: out of memory, not finite, dead worker
    GATED = "gated"  # stopped early, by a rung's gate or because others went on; its metrics are those of that rung
    TRAINED = "trained"  # measured at the highest rung


class StopReason(IntEnum):
    """Why training ended."""

    FULL_RUN = 0
    HIGH_GRAD = 1
    LOW_ENTROPY = 2
    NO_IMPROVE = 3
    NOT_FINITE = 4
    PPL_GATE = 5  # stopped after rung 1 by `train.ppl_stop_threshold`
    METRIC_GATE = 6  # stopped after rung 1 by `evolution.rung1_gates`


def stream(seed: int, index: int, purpose: str) -> "np.random.Generator":
    """The random stream of one candidate for one purpose; equal everywhere, whatever ran before."""
    import numpy as np

    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(index, zlib.crc32(purpose.encode()))))


class Tokens(Record):
    """Training tokens behind a measurement.

    own: this candidate's. lineage: the sum over the candidate and its distinct ancestors.
    unique: distinct training tokens among the lineage's (a token seen twice counts once); with rehearsal at most so
    many, as text that gave way to it counts.
    """

    own: Whole
    lineage: Whole
    unique: Whole


class Origin(Record):
    """Where the weights of one block, of the stem, or of one recurrence came from.

    gene: its id, `stem` for what is outside the blocks. parent: the id of the candidate, `init_checkpoint`, or the
    position among the parents given to `inherit`; None when nothing was carried. how: whole (every entry, in its
    shape), resized (some tensor has another shape), partly (some tensors are new beside whole ones), merged (with
    another parent's), fresh. carried, fresh: entries.
    """

    gene: str
    parent: str | None
    how: Literal["whole", "resized", "partly", "merged", "fresh"]
    carried: Whole
    fresh: Whole


class Inheritance(Record):
    """Parameter counts of a splice: carried in tensors of unchanged shape, carried in others, initialised afresh.

    dropped: entries of the parents' tensors of which the child has none. exact: the child computes its parent's
    function. notes: why it does not. genes: what came from whom.
    """

    inherited: Whole
    resized: Whole
    fresh: Whole
    exact: bool
    dropped: Whole = 0
    notes: tuple[Words, ...] = ()
    genes: tuple[Origin, ...] = ()


class Candidate(Record):
    """A blueprint, where it came from, and the edits that made it.

    train: fields of the experiment's `train` that edits have changed for this candidate, with their values.
    proposer: the program from outside that proposed it; empty where the run bred it.
    """

    id: CandidateId
    index: Whole
    generation: Whole
    blueprint: dict[str, Any]
    parents: tuple[CandidateId, ...] = ()
    edits: tuple[Edit, ...] = ()
    train: dict[str, Any] = {}
    proposer: str = ""

    @property
    def continues(self) -> bool:
        """Whether it is its parent, unedited, trained further."""
        return len(self.parents) == 1 and not self.edits

    def as_trained(self, report: "Report | None") -> Self:
        """Itself with the blueprint that its weights belong to, which is another than was asked for where it changed
        in training. Whoever reads a trained candidate's blueprint reads this one."""
        return self if report is None or report.blueprint is None else self.replace(blueprint=report.blueprint)


def origin(candidates: Mapping[str, Candidate], candidate: Candidate) -> Candidate:
    """The one that a candidate continues, which edits made; itself where it continues none of `candidates`."""
    while candidate.continues and candidate.parents[0] in candidates:
        candidate = candidates[candidate.parents[0]]
    return candidate


class ParentRef(Record):
    """A trained parent as a job needs it: its blueprint as trained, and where its weights lie (relative to the run
    folder)."""

    id: CandidateId
    blueprint: dict[str, Any]
    checkpoint: CheckpointPath


class Stage(Record):
    """One rung to train: its number and its own token budget."""

    rung: Whole
    budget_tokens: Whole


class Ancestor(Record):
    """One distinct ancestor's training: where in the run's text it began, and how many steps and tokens it took."""

    first_token: Whole
    steps: Whole
    tokens: Whole


class Measured(Record):
    """Metrics of a model. errors: standard errors of metrics, among texts like the measured one. influence: how far
    every part of that text pushes such a metric (see `estimates`), for errors of differences."""

    metrics: dict[str, float] = {}
    errors: dict[str, float] = {}
    influence: dict[str, Influence] = {}

    @property
    def estimates(self) -> dict[str, float]:
        """The metrics, those with errors as `Estimate`."""
        from morphogen.estimates import Estimate, unpacked

        known = {name: Estimate(self.metrics[name], unpacked(text)) for name, text in self.influence.items()}
        return {**self.metrics, **known}


class Twin(Measured):
    """A candidate's blueprint trained from fresh weights, on so many tokens from where the root began.

    share: how much of what the candidate is compared by is the twin's metric; the rest is the candidate's own.
    """

    share: Annotated[float, Field(gt=0.0, le=1.0)]
    tokens: Whole
    steps: Whole
    flops: float


class Size(Record):
    """How large a model is: parameters, blocks, residual channels, forward FLOPs of a token, and of every block with a
    mixture its experts."""

    params: Whole
    layers: Whole
    dim: Whole
    flops_per_token: float
    experts: dict[str, Whole] = {}


class GrowthEvent(Record):
    """One change of architecture in training: when, by which rule, why, what it did, and what it cost.

    steps, tokens: behind the weights when it happened, their ancestors' among them. own_steps: those of this training.
    blocks: ids of those it acted in, new ones among them. experts: block id -> the experts that were chosen; usage:
    their usage, in that order; threshold: of the trigger, where it has one. loss, loss_after: of a held batch, in nats
    per token, right before and after; max_delta: the most that any logit of it moved by, of logits up to max_logit in
    size. exact: whether the action claims to keep the function. bytes: that it was predicted to take beside what was
    held. taken_back: it cost more than its rule allows, and was undone.
    """

    steps: Whole
    tokens: Whole
    own_steps: Whole
    rule: str
    trigger: str
    action: str
    reason: Words
    blocks: tuple[str, ...] = ()
    experts: dict[str, tuple[Whole, ...]] = {}
    usage: dict[str, tuple[float, ...]] = {}
    threshold: float | None = None
    before: Size
    after: Size
    loss: float
    loss_after: float
    max_delta: float
    max_logit: float
    exact: bool
    bytes: Whole = 0
    taken_back: bool = False
    edit: Edit


class DonorLayer(Record):
    """A layer of another model: the model's folder or name on the hub, which layer, and the SHA-256 of its tensors as
    they were when they were taken. became: of what training has made of them since, SHA-256 as well; None where they
    are frozen."""

    model: str
    layer: Whole
    sha256: str
    became: Annotated[str | None, Field(exclude_if=lambda became: became is None)] = None


#: Of a training: (step, mean loss of the steps since the point before it, in nats per token of text), thinned out.
Losses = Annotated[
    tuple[tuple[Whole, Annotated[float, Field(allow_inf_nan=False)]], ...], Field(exclude_if=lambda points: not points)
]
#: Tokens that were trained on beside a candidate's own; files leave it out where there are none.
Beside = Annotated[Whole, Field(exclude_if=lambda tokens: tokens == 0)]
#: Layers of other models; files leave it out where there are none.
Donors = Annotated[tuple[DonorLayer, ...], Field(exclude_if=lambda donors: not donors)]
#: What a training grew by; files leave it out where it did not grow.
Growth = Annotated[tuple[GrowthEvent, ...], Field(exclude_if=lambda events: not events)]


class Report(Measured):
    """What was measured of a candidate.

    metrics: repeatable measurements (`bpb_<shard>`, `ppl_<shard>`, `instability`, ...). timed: those of this machine's
    clock and memory. costs: computed from the blueprint as trained. `figures` says what each is. flops: those of this
    candidate's own training (forward and backward), each step by the architecture that it had, and of its twin's.
    tokens_beside: that `flops` counts beside its own: of twins, the search for a rate, rounds that failed, annealing.
    twin: what selection reads besides; only `value`, `error` and `influence_of` know of it.
    rung: the highest rung finished (-1: none). checkpoint: path below the run folder. blueprint: as trained, where it
    is another than was asked for; `Candidate.as_trained` reads it. growth: how it came to be that. losses: of its own
    training, at most 200 points. donors: the layers of other models in it, with the hashes of what they were.
    micro_batches: parts in which each batch went through the model, more than one where memory was short.
    """

    id: CandidateId
    status: Status
    reason: Words = ""
    rung: Whole = -1
    timed: dict[str, float] = {}
    costs: dict[str, float] = {}
    tokens: Tokens = Tokens(own=0, lineage=0, unique=0)
    steps: Whole = 0
    flops: float = 0.0
    tokens_beside: Beside = 0
    twin: Twin | None = None
    inheritance: Inheritance | None = None
    checkpoint: CheckpointPath | None = None
    blueprint: OtherBlueprint = None
    growth: Growth = ()
    losses: Losses = ()
    donors: Donors = ()
    stop_reason: StopReason = StopReason.FULL_RUN
    nan_seen: bool = False
    loss_spike: bool = False
    micro_batches: Annotated[Whole, Field(ge=1, exclude_if=lambda parts: parts == 1)] = 1

    @property
    def tokens_spent(self) -> int:
        """All training tokens that `flops` counts."""
        return self.tokens.own + self.tokens_beside

    def having_spent(self, later: Self) -> Self:
        """Itself, with what a later training of the same candidate has taken in all, whose result it does not take."""
        beside = max(self.tokens_beside, later.tokens_spent - self.tokens.own)
        return self.replace(flops=max(self.flops, later.flops), tokens_beside=beside)

    def value(self, name: str) -> float | None:
        """What the candidate is compared by: the metric (its twin's, or a mean of both, where it has one), timed metric
        or cost called `name`; None when it has none."""
        if name in self.metrics:
            return self._judged(name, self.metrics, self.twin.metrics if self.twin is not None else {})
        return self.costs.get(name, self.timed.get(name))

    def error(self, name: str) -> float | None:
        """The standard error of `value`; None where nobody knows it."""
        if name not in self.errors:
            return None
        from morphogen.estimates import standard_error

        twins = self.twin.errors if self.twin is not None else {}
        mixed_U = self.influence_of(name) if self.twin is not None and self.twin.share < 1.0 else None
        return self._judged(name, self.errors, twins) if mixed_U is None else standard_error(mixed_U)

    def influence_of(self, name: str) -> "Floats | None":
        """How far every part of the measured text pushes `value`, shape (U,); None where nobody knows."""
        if name not in self.influence:
            return None
        from morphogen.estimates import unpacked

        own_U = unpacked(self.influence[name])
        if self.twin is None or name not in self.twin.influence:
            return own_U
        return (1.0 - self.twin.share) * own_U + self.twin.share * unpacked(self.twin.influence[name])

    def _judged(self, name: str, own: Mapping[str, float], twins: Mapping[str, float]) -> float:
        if self.twin is None or name not in twins:
            return own[name]
        return (1.0 - self.twin.share) * own[name] + self.twin.share * twins[name]

    def with_composites(self, composites: "Mapping[str, Composite]") -> Self:
        """Itself with the composite metrics that its figures give, and its twin's give."""
        from morphogen.estimates import composed, known_of

        plain = {**self.timed, **self.costs, **self.estimates}
        made = composed(plain, composites)
        if not made:
            return self
        twin = self.twin
        if twin is not None:
            its = composed({**plain, **twin.estimates}, composites)
            twin = twin.replace(**known_of({**twin.estimates, **its}))
        return self.replace(**known_of({**self.estimates, **made}), twin=twin)

    @property
    def without_influence(self) -> Self:
        """Itself as it is kept where it is compared with nobody any more."""
        return self.replace(influence={}, twin=self.twin and self.twin.replace(influence={}))


class Job(Record):
    """All that evaluating one candidate needs. Pure data: the same job gives the same report anywhere.

    `seed` is the run's seed; streams derive from `(seed, candidate.index, purpose)`. `run_dir` is where checkpoint
    paths start. `before`: what an earlier job measured of the same candidate, which this one goes on to train.
    `first_token`: where in the run's text its training begins, the same for all candidates that are compared.
    `with_twin`: whether a twin is trained beside it, by which selection judges. `twin`: that of the parent which it
    continues, the same blueprint, so that none has to be trained.
    `budget_tokens`: what all candidates may spend by the experiment, in tokens of this one; 0 where nobody said.
    `repeat`: from 1 on, one more training from the same start, whose batches and dropout depend on this number alone
    and which leaves no checkpoint.
    `micro_batches`: parts in which each batch goes through the model, so that it takes less memory.
    `shares`: whether others may compute on its device at the same time, so that with too little memory it is better
    begun again alone than trained in parts.
    `checkpoint_tokens`: tokens between two checkpoints in the middle of training, from which the same job goes on when
    it is begun again; 0 leaves none. `partial_at`: a path or fsspec URL where they lie; empty: below the run's folder.
    """

    experiment: dict[str, Any]
    candidate: Candidate
    parents: tuple[ParentRef, ...]
    ancestors: tuple[Ancestor, ...]
    stages: tuple[Stage, ...]
    seed: int
    run_dir: str
    device: str
    before: Report | None = None
    with_twin: bool = False
    twin: Twin | None = None
    first_token: Whole = 0
    budget_tokens: Whole = 0
    repeat: Whole = 0
    micro_batches: Annotated[Whole, Field(ge=1)] = 1
    shares: bool = False
    checkpoint_tokens: Annotated[Whole, Field(ge=0)] = 0
    partial_at: str = ""
