"""The contract every kind of part keeps, and the registries that kinds and operators join by being defined.

A part is frozen data that describes one residual branch of a block (or, for a `Modifier`, something done to the
branches' outputs). From what it declares about its tensors (named, factored axes; which entries of a grown tensor
start at zero; which norms run over which axis) follow initialisation, splicing, growth, crossover between sizes and
the transfer of optimizer state. Adding a kind means adding one file to this package.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, cast

from pydantic import Field, model_validator

from morphogen.figures import Figure, declare
from morphogen.parts.contract.alignment import Alignment
from morphogen.parts.contract.frozen import Frozen
from morphogen.parts.contract.tensors import NORMAL, ONES, ZEROS, Axes, Init, Spec, flat, shape_of

if TYPE_CHECKING:
    from torch import nn

NormKind = Literal["rmsnorm", "layernorm"]
NORM_EPS = 1e-5

#: What structural gates and the conditions of templates ask for: mixtures of experts, selectors, memories.
TRAITS = ("moe", "selector", "memory")

#: The stable name of a block or a recurrence within a lineage.
GeneId = Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+$")]


@dataclass(frozen=True)
class Context:
    """What a part may know of the model around it.

    dim: residual width. vocab: tokens in the embedding. init_std: of the embedding at the start. branches: residual
    branches in the whole model. seq_len: tokens per sequence, for costs only.
    """

    dim: int
    norm: NormKind
    vocab: int
    init_std: float
    branches: int
    seq_len: int = 256

    @property
    def output_gain(self) -> float:
        """The gain of fresh output projections: init_std / √(2·branches), the root as in GPT-2.

        What branches add is then of the embedding's size at most. Were it larger, tokens would drown in what the first
        branch writes, and training would take that much longer to begin.
        """
        return self.init_std / math.sqrt(2 * max(1, self.branches))


@dataclass(frozen=True)
class Cost:
    """Costs of one part, per token of a sequence of `ctx.seq_len`, forward only.

    flops: floating-point operations, a multiply-add counting 2. kv_bytes: cache that grows with the sequence, in bytes
    per token at 2 bytes an entry. state_bytes: cache of fixed size per sequence, in bytes.
    """

    flops: float = 0.0
    kv_bytes: float = 0.0
    state_bytes: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.flops + other.flops, self.kv_bytes + other.kv_bytes, self.state_bytes + other.state_bytes)

    def __mul__(self, times: float) -> "Cost":
        return Cost(self.flops * times, self.kv_bytes * times, self.state_bytes * times)


class Part(Frozen):
    """One residual branch as data. Subclasses with a `kind` field join the registry.

    slot: where it may stand. axes: every tensor it can have, with its factored axes. initial: how tensors start, where
    not `NORMAL`. zero_init: tensor -> inner axes along which new entries start at zero so that a new unit changes
    nothing. writers: tensors whose `dim` axis is added to the residual stream. buffers: tensors training leaves alone.
    size_fields: fields that set sizes or names only; any other field's change changes the function. pointwise: whether
    a token's output depends on that token alone. figures: what its branch records of itself in training
    (`Record.add_figure`).
    """

    slot: ClassVar[Literal["attn", "ssm", "ffn", "extra", "stem", "recurrence"]]
    axes: ClassVar[Mapping[str, Axes]] = {}
    initial: ClassVar[Mapping[str, Init]] = {}
    zero_init: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    writers: ClassVar[frozenset[str]] = frozenset()
    buffers: ClassVar[frozenset[str]] = frozenset()
    size_fields: ClassVar[frozenset[str]] = frozenset()
    pointwise: ClassVar[bool] = False
    figures: ClassVar[tuple[Figure, ...]] = ()

    @model_validator(mode="before")
    @classmethod
    def _type_alias(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and "type" in data and "kind" not in data and "type" not in cls.model_fields:
            return {("kind" if key == "type" else key): value for key, value in data.items()}
        return data

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        if "figures" in vars(cls):
            declare(*(figure if figure.needs else replace(figure, needs=(cls.__qualname__,)) for figure in cls.figures))
        if "kind" in cls.model_fields:
            for kind in kinds_of(cls):
                REGISTRY[(cls.slot, kind)] = cls

    @property
    def label(self) -> str:
        """The kind, as it stands in the blueprint."""
        return str(cast(Any, self).kind)

    def inert(self) -> frozenset[str]:
        """Fields without effect at the present setting; digest and distance skip them."""
        return frozenset()

    def unread(self) -> frozenset[str]:
        """Those of `inert` that nothing reads: they change no speed and no measurement either."""
        return self.inert()

    def traits(self) -> frozenset[str]:
        """What a block that holds this part counts as: of `TRAITS`."""
        return frozenset()

    def recorded(self) -> tuple[Figure, ...]:
        """What its branch records of itself in training."""
        return self.figures

    def neutral(self) -> bool:
        """Whether putting this part in anew, its writers at zero, leaves the function as it was."""
        return True

    def absent(self, ctx: Context) -> frozenset[str]:
        """Names in `axes` that this configuration does not have."""
        return frozenset()

    def norms(self, ctx: Context) -> Mapping[str, tuple[str, NormKind]]:
        """Norm modules: name -> (axis it runs over, kind)."""
        return {"norm": ("dim", ctx.norm)}

    def sizes(self, ctx: Context) -> dict[str, int]:
        """Length of every axis named in `axes`."""
        raise NotImplementedError  # every kind has its own axes

    def build(self, ctx: Context) -> "nn.Module":
        """The module, with uninitialised tensors named and shaped as `specs` says."""
        raise NotImplementedError  # every kind has its own module

    def cost(self, ctx: Context) -> Cost:
        """What running it costs; parameters are counted from `specs`."""
        raise NotImplementedError  # every kind has its own cost

    def kept(self, ctx: Context) -> float:
        """Entries per token that a training step keeps for the backward pass, beside the branch's input and its norm.

        By default what every matrix reads or writes besides the residual stream, once: a map of dim to n keeps n. That
        is right within a half for most kinds; one that keeps more (gates, states of scans) says so itself.
        """
        total = 0.0
        for spec in self.specs(ctx).values():
            if spec.shape and not spec.buffer:
                residual = any(factors == ("dim",) for factors in flat(spec.axes))
                total += math.prod(spec.shape) / (ctx.dim if residual else min(spec.shape))
        return total

    def specs(self, ctx: Context) -> dict[str, Spec]:
        """Every tensor of the module, in a fixed order."""
        sizes, gone = self.sizes(ctx), self.absent(ctx)
        out: dict[str, Spec] = {}
        for name, (axis, kind) in self.norms(ctx).items():
            width = (sizes[axis],)
            out[f"{name}.weight"] = Spec((axis,), width, ONES)
            if kind == "layernorm":
                out[f"{name}.bias"] = Spec((axis,), width, ZEROS)
            out[f"{name}.eps"] = Spec((), (), Init("constant", (NORM_EPS,)), buffer=True)
        for name, axes in self.axes.items():
            if name not in gone:
                init = self.initial.get(name, NORMAL)
                if self.writes(name) and init == NORMAL:
                    init = Init("fan_in_normal", (ctx.output_gain,))
                out[name] = Spec(axes, shape_of(axes, sizes), init, buffer=name in self.buffers)
        return out

    def writes(self, name: str) -> bool:
        """Whether a tensor's `dim` axis is added to the residual stream."""
        return name in self.writers

    def bequeath(self, child: "Part", ctx: Context, child_ctx: Context) -> Alignment | None:
        """How a child of another class, that knows nothing of this one, inherits; None where it cannot."""
        return None

    def align(self, parent: "Part", ctx: Context, parent_ctx: Context) -> Alignment | None:
        """How this part inherits from `parent`; None when the kinds have nothing in common.

        The default is for a parent of the same class: tensors by name, axes by name, the norm rule wherever a norm
        runs over an axis that grew, and exactness exactly when only sizes changed.
        """
        if type(parent) is not type(self):
            return parent.bequeath(self, parent_ctx, ctx)
        specs, theirs = self.specs(ctx), parent.specs(parent_ctx)
        changed = sorted(
            name
            for name in type(self).model_fields
            if name not in self.size_fields | (self.inert() & parent.inert())
            and getattr(self, name) != getattr(parent, name)
        )
        return Alignment(
            sources={name: name if name in theirs else None for name in specs},
            exact=not changed and not (theirs.keys() - specs.keys()),
            note=f"changed {', '.join(changed)}" if changed else "",
            scales=self.norm_scales(parent, ctx, parent_ctx),
            zero=self.zero_init,
        )

    def in_common(self, parent: "Part", ctx: Context, parent_ctx: Context) -> Alignment | None:
        """Inheritance from a part of another class: the tensors of equal name and axes; lossy. None without any."""
        specs, theirs = self.specs(ctx), parent.specs(parent_ctx)
        common = {name for name, spec in specs.items() if name in theirs and theirs[name].axes == spec.axes}
        if not common & set(self.axes):
            return None
        return Alignment(
            sources={name: name if name in common else None for name in specs},
            exact=False,
            note=f"{parent.label} became {self.label}",
            scales=self.norm_scales(parent, ctx, parent_ctx),
            zero=self.zero_init,
        )

    def norm_scales(self, parent: "Part", ctx: Context, parent_ctx: Context) -> dict[str, float]:
        """Factors on norm tensors whose axis grew from d to d': gain × √(d/d'), eps × d/d'."""
        sizes, theirs = self.sizes(ctx), parent.sizes(parent_ctx)
        scales: dict[str, float] = {}
        for name, (axis, _) in self.norms(ctx).items():
            if name not in parent.norms(parent_ctx):
                continue
            ratio = theirs.get(axis, sizes[axis]) / sizes[axis]
            if ratio < 1:
                scales[f"{name}.weight"] = math.sqrt(ratio)
                scales[f"{name}.eps"] = ratio
        return scales


class Modifier(Part):
    """An extra that acts on the outputs of the block's branches instead of adding a branch of its own."""

    def norms(self, ctx: Context) -> Mapping[str, tuple[str, NormKind]]:
        """A modifier normalises nothing."""
        return {}

    def acts_on(self) -> tuple[str, ...]:
        """Slots whose branches it changes; the block must have them."""
        return ()

    def channel_scales(self, slot: str) -> tuple[str, ...]:
        """Names of this part's vectors over `dim` that multiply the output of branch `slot`."""
        return ()


REGISTRY: dict[tuple[str, str], type[Part]] = {}


def kinds_of(cls: type[Part]) -> tuple[str, ...]:
    """The values that `kind` may take in a class of parts."""
    return tuple(cls.model_fields["kind"].annotation.__args__)  # type: ignore[union-attr]


def registered(slot: str) -> dict[str, type[Part]]:
    """kind -> class, for every kind that may stand in `slot`."""
    return {kind: cls for (where, kind), cls in REGISTRY.items() if where == slot}
