"""The contract every kind of part keeps, and the registries that kinds and operators join by being defined.

A part is frozen data that describes one residual branch of a block (or, for a `Modifier`, something done to the
branches' outputs). From what it declares of its tensors (`Part.tensors`) and norms follow initialisation, splicing,
growth, crossover between sizes and the transfer of optimizer state. Adding a kind means adding one file to the folder
of its slot (and one for its torch module).
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self, get_args

from pydantic import Field, ValidationError, model_validator

from morphogen.errors import InputError, anybodys
from morphogen.figures import Figure, declare
from morphogen.ops.names import OpName
from morphogen.parts.contract.alignment import Alignment
from morphogen.parts.contract.context import Context as Context
from morphogen.parts.contract.context import NormKind as NormKind
from morphogen.parts.contract.cost import Cost as Cost
from morphogen.parts.contract.frozen import Frozen, remembered
from morphogen.parts.contract.tensors import Axis, Spec, Tensor, flat, shape_of, specified
from morphogen.parts.contract.widths import Width

if TYPE_CHECKING:
    from torch import nn

#: What structural gates and the conditions of templates ask for: mixtures of experts, selectors, memories.
COUNTED = ("moe", "selector", "memory")

#: Methods that every kind has to bring.
OWN = ("tensors", "sizes", "build", "cost")
#: The stable name of a block or a recurrence within a lineage.
GeneId = Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+$")]


class Part(Frozen):
    """One residual branch as data. Subclasses with a `kind` field join the registry.

    Attributes:
        slot: Where it may stand.
        neutral_fields: Fields whose change leaves the function as it was once weights are carried, as sizes, names and
            what only training or decoding reads; a change of any other is lossy.
        figures: What its branch records of itself in training (`Record.add_figure`).
    """

    slot: ClassVar[Literal["attn", "ssm", "ffn", "extra", "stem", "recurrence"]]
    neutral_fields: ClassVar[frozenset[str]] = frozenset()
    figures: ClassVar[tuple[Figure, ...]] = ()

    @model_validator(mode="before")
    @classmethod
    def _type_alias(cls, data: object) -> object:
        if isinstance(data, Mapping) and "type" in data and "kind" not in data and "type" not in cls.model_fields:
            return {("kind" if key == "type" else key): value for key, value in data.items()}
        return data

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: object) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        if "figures" in vars(cls):
            declare(*(figure if figure.needs else replace(figure, needs=(cls.__qualname__,)) for figure in cls.figures))
        if "kind" in cls.model_fields:
            if lacking := [name for name in OWN if vars(Part)[name] is getattr(cls, name)]:
                raise InputError(f"kind {cls.__qualname__} of {cls.__module__} lacks {' and '.join(lacking)}")
            for kind in kinds_of(cls):
                REGISTRY[(cls.slot, kind)] = cls

    @property
    def label(self) -> str:
        """The kind, as it stands in the blueprint."""
        return str(vars(self)["kind"])

    @classmethod
    def anew(cls, kind: str, ctx: Context) -> "Part | None":
        """The part of this kind that evolution puts where there is none. By default that of default fields.

        Not asked of the kinds that operators of their own alone put in (`registry.SETTLED`).

        Args:
            kind: The kind, where the class has several.
            ctx: The model around it.

        Returns:
            The part; None where evolution should not put one there, or a field has no default.
        """
        try:
            return cls.model_validate({"kind": kind})
        except ValidationError:
            return None

    def inert(self) -> frozenset[str]:
        """Fields without effect at the present setting; digest and distance skip them."""
        return frozenset()

    def within(self, ctx: Context) -> Self | None:
        """The plainest part that no sequence of at most `ctx.seq_len` tokens tells from this one; None where they
        cannot tell it from none at all. An edit that leaves this as it was is no edit at that length.

        By default the part itself. A kind with windows, strides or taps puts those that reach beyond the sequence to
        what they come to, and then asks its base class.
        """
        return self

    def resized(self, target: Width, factor: float, ctx: Context) -> "Part | None":
        """How a model grows or shrinks in training: another number of units of a sort.

        Args:
            target: Hidden units (ffn), heads, or channels of a head (head_dim).
            factor: How many times as many, rounded to what it allows (`widths.times`).
            ctx: The model around it.

        Returns:
            Itself, changed; None where it has none of that sort, as by default, or cannot have so many.
        """
        return None

    def unread(self) -> frozenset[str]:
        """Those of `inert` that nothing reads: they change no speed and no measurement either."""
        return self.inert()

    def op(self) -> OpName:
        """The op that most of its time goes to, of those that there are several ways to compute."""
        return "none"

    def counts_as(self) -> frozenset[str]:
        """What a block that holds this part counts as: of `COUNTED`."""
        return frozenset()

    def recorded(self) -> tuple[Figure, ...]:
        """What its branch records of itself in training."""
        return self.figures

    def neutral(self) -> bool:
        """Whether putting this part in anew, its writers at zero, leaves the function as it was."""
        return True

    @property
    def pointwise(self) -> bool:
        """Whether a token's output depends on that token alone."""
        return False

    def tensors(self, ctx: Context) -> dict[str, Tensor]:
        """Every tensor that it has, but for those of its norms.

        Args:
            ctx: The model around it.

        Returns:
            Name within the module to what the tensor is, in a fixed order.
        """
        raise NotImplementedError  # every kind has its own

    def norms(self, ctx: Context) -> Mapping[str, tuple[Axis, NormKind]]:
        """Its norm modules.

        Args:
            ctx: The model around it.

        Returns:
            Name to the axis it runs over, and its kind.
        """
        return {"norm": ("dim", ctx.norm)}

    def sizes(self, ctx: Context) -> dict[str, int]:
        """The length of every axis that `tensors` and `norms` name.

        Args:
            ctx: The model around it.
        """
        raise NotImplementedError  # every kind has its own axes

    def build(self, ctx: Context) -> "nn.Module":
        """Its module.

        Args:
            ctx: The model around it.

        Returns:
            A module with uninitialised tensors, named and shaped as `specs` says.
        """
        raise NotImplementedError  # every kind has its own module

    def cost(self, ctx: Context) -> Cost:
        """What running it costs; parameters are counted from `specs`.

        Args:
            ctx: The model around it.
        """
        raise NotImplementedError  # every kind has its own cost

    def kept(self, ctx: Context) -> float:
        """Entries per token that a training step keeps for the backward pass, beside the branch's input and its norm.

        By default what every matrix reads or writes besides the residual stream, once: a map of dim to n keeps n. That
        is right within a half for most kinds; one that keeps more (gates, states of scans) says so itself.

        Args:
            ctx: The model around it.
        """
        total = 0.0
        for spec in self.specs(ctx).values():
            if spec.shape and spec.trained:
                residual = any(factors == ("dim",) for factors in flat(spec.axes))
                total += math.prod(spec.shape) / (ctx.dim if residual else min(spec.shape))
        return total

    def specs(self, ctx: Context) -> dict[str, Spec]:
        """Every tensor of the module with its shape, in a fixed order: those of its norms, then `tensors`.

        Args:
            ctx: The model around it.
        """
        return dict(_specs(self, ctx))

    def fresh_zero(self, ctx: Context) -> dict[str, tuple[str, ...]]:
        """Tensor -> axes along which new entries start at zero, of those that have any."""
        return {name: tensor.fresh_zero for name, tensor in self.tensors(ctx).items() if tensor.fresh_zero}

    def bequeath(self, child: "Part", ctx: Context, child_ctx: Context) -> Alignment | None:
        """How a child of another class, that knows nothing of this one, inherits from it.

        Args:
            child: The part that inherits.
            ctx: The model around this part.
            child_ctx: The model around the child.

        Returns:
            Which tensor comes from which; None where it cannot inherit.
        """
        return None

    def kept_whole(self, ctx: Context) -> float:
        """Likewise entries that are kept in fp32 whatever the precision of the training.

        Args:
            ctx: The model around it.
        """
        return 0.0

    def align(self, parent: "Part", ctx: Context, parent_ctx: Context) -> Alignment | None:
        """How this part inherits from a parent's.

        The default is for a parent of the same class: tensors by name, axes by name, the norm rule wherever a norm runs
        over an axis that grew, and exactness exactly when only sizes changed.

        Args:
            parent: The part that it inherits from.
            ctx: The model around this part.
            parent_ctx: The model around the parent's.

        Returns:
            Which tensor comes from which; None when the kinds have nothing in common.
        """
        if type(parent) is not type(self):
            return parent.bequeath(self, parent_ctx, ctx)
        specs, theirs = self.specs(ctx), parent.specs(parent_ctx)
        neutral, before = self.neutral_fields | (self.inert() & parent.inert()), dict(parent)
        changed = sorted(name for name, value in self if name not in neutral and value != before[name])
        return Alignment(
            sources={name: name if name in theirs else None for name in specs},
            exact=not changed and not (theirs.keys() - specs.keys()),
            note=f"changed {', '.join(changed)}" if changed else "",
            scales=self.norm_scales(parent, ctx, parent_ctx),
            zero=self.fresh_zero(ctx),
        )

    def in_common(self, parent: "Part", ctx: Context, parent_ctx: Context) -> Alignment | None:
        """Inheritance from a part of another class: the tensors of equal name and axes. It is lossy.

        Args:
            parent: The part that it inherits from.
            ctx: The model around this part.
            parent_ctx: The model around the parent's.

        Returns:
            Which tensor comes from which; None where the two share none.
        """
        specs, theirs = self.specs(ctx), parent.specs(parent_ctx)
        common = {name for name, spec in specs.items() if name in theirs and theirs[name].axes == spec.axes}
        if not common & self.tensors(ctx).keys():
            return None
        return Alignment(
            sources={name: name if name in common else None for name in specs},
            exact=False,
            note=f"{parent.label} became {self.label}",
            scales=self.norm_scales(parent, ctx, parent_ctx),
            zero=self.fresh_zero(ctx),
        )

    def norm_scales(self, parent: "Part", ctx: Context, parent_ctx: Context) -> dict[str, float]:
        """Factors on norm tensors whose axis grew from d to d': gain × √(d/d'), eps × d/d'.

        Args:
            parent: The part that it inherits from.
            ctx: The model around this part.
            parent_ctx: The model around the parent's.

        Returns:
            Name of a tensor to its factor, of those that have one.
        """
        sizes, theirs = self.sizes(ctx), parent.sizes(parent_ctx)
        scales: dict[str, float] = {}
        for name, (axis, _) in self.norms(ctx).items():
            if name not in parent.norms(parent_ctx):
                continue
            (width,), (their_width,) = shape_of((axis,), sizes), shape_of((axis,), {**sizes, **theirs})
            ratio = their_width / width
            if ratio < 1:
                scales[f"{name}.weight"] = math.sqrt(ratio)
                scales[f"{name}.eps"] = ratio
        return scales


@remembered  # making, inheriting and costing a model ask for the same again and again
def _specs(part: Part, ctx: Context) -> dict[str, Spec]:
    with anybodys(f"{type(part).__name__}: what its tensors are", InputError):
        try:
            return specified(part.norms(ctx), part.tensors(ctx), part.sizes(ctx), ctx.output_gain)
        except InputError as error:
            raise InputError(f"{type(part).__name__}: {error}") from None


class Modifier(Part):
    """An extra that acts on the outputs of the block's branches instead of adding a branch of its own."""

    def norms(self, ctx: Context) -> Mapping[str, tuple[Axis, NormKind]]:
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
    return get_args(cls.model_fields["kind"].annotation)
