"""The contract every kind of part keeps, and the registries that kinds and operators join by being defined.

A part is frozen data that describes one residual branch of a block (or, for a `Modifier`, something done to the
branches' outputs). From what it declares about its tensors (named, factored axes; which entries of a grown tensor
start at zero; which norms run over which axis) follow initialisation, splicing, growth, crossover between sizes and
the transfer of optimizer state. Adding a kind means adding one file to this package.
"""

import math
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Annotated, Any, ClassVar, Literal, Protocol, Self, TypeVar, cast

import numpy as np
from pydantic import Field, GetCoreSchemaHandler, GetJsonSchemaHandler, SerializationInfo, TypeAdapter, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema
from torch import nn

from morphogen import plugins
from morphogen.errors import InputError, OperatorError, unknown
from morphogen.figures import Figure, declare
from morphogen.parts.alignment import Alignment
from morphogen.parts.frozen import Frozen
from morphogen.parts.tensors import NORMAL, ONES, ZEROS, Axes, Init, Spec, shape_of

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

    def build(self, ctx: Context) -> nn.Module:
        """The module, with uninitialised tensors named and shaped as `specs` says."""
        raise NotImplementedError  # every kind has its own module

    def cost(self, ctx: Context) -> Cost:
        """What running it costs; parameters are counted from `specs`."""
        raise NotImplementedError  # every kind has its own cost

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


#: How a union's tag looks in a pydantic error location, so that messages can leave it out.
TAG = "kind="


@dataclass(frozen=True)
class PartIn:
    """Marks a field that holds a registered part, told apart by `kind` (or `type`).

    slot: where it may stand. also: further slots whose branches it may be. without: kinds that it may not be. A class
    that has such a field itself is built late, when every kind is registered (pydantic's `defer_build`).
    """

    slot: str
    also: tuple[str, ...] = ()
    without: frozenset[str] = frozenset()

    def choices(self) -> dict[str, type[Part]]:
        """kind -> class."""
        more = {
            kind: cls for slot in self.also for kind, cls in registered(slot).items() if not issubclass(cls, Modifier)
        }
        return {kind: cls for kind, cls in (registered(self.slot) | more).items() if kind not in self.without}

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        own = self.choices()
        union = core_schema.tagged_union_schema({TAG + kind: handler.generate_schema(own[kind]) for kind in own}, _tag)

        def read(value: Any, among_own: core_schema.ValidatorFunctionWrapHandler) -> Any:
            wider = self._wider(own, _tag(value))
            return among_own(value) if wider is None else wider.validate_python(value)

        def write(part: Any, among_own: core_schema.SerializerFunctionWrapHandler, info: SerializationInfo) -> Any:
            if part.label in own:
                return among_own(part)
            return part.model_dump(mode=info.mode, exclude_defaults=info.exclude_defaults)

        writing = core_schema.wrap_serializer_function_ser_schema(write, info_arg=True, schema=union)
        return core_schema.no_info_wrap_validator_function(read, union, serialization=writing)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        own = cast(Any, schema)["schema"]["choices"]
        load_kinds()
        more = [handler(cls.__pydantic_core_schema__) for kind, cls in self.choices().items() if TAG + kind not in own]
        return {"oneOf": [handler(schema), *more]} if more else handler(schema)

    def _wider(self, own: Mapping[str, type[Part]], tag: str | None) -> "TypeAdapter[Any] | None":
        """What reads a part that is of none of the `own` kinds: with those of installed packages, which are imported
        only now. None where there are no more. ValueError where the kind's package cannot be imported."""
        if tag is None or (kind := tag.removeprefix(TAG)) in own:
            return None
        if kind in plugins.names(plugins.PARTS):
            load_kind(kind)
        else:
            load_kinds()  # the message lists them
        choices = self.choices()
        return None if choices.keys() == own.keys() else _union(self, tuple(choices))


def _tag(value: Any) -> str | None:
    """The tag by which a part, or the data of one, is told apart."""
    if isinstance(value, Part):
        return TAG + value.label
    kind = value.get("kind", value.get("type")) if isinstance(value, Mapping) else None
    return None if kind is None else TAG + str(kind)


@lru_cache(maxsize=64)
def _union(place: PartIn, kinds: tuple[str, ...]) -> TypeAdapter[Any]:
    """Reads a part of any of the `kinds` that are registered for a place by now."""
    return TypeAdapter(Annotated[Part, place])


def load_kind(name: str) -> None:
    """Imports the plug-in that an installed package offers as a kind, by which it is registered. ValueError where that
    fails, or what is found is no part of that kind."""
    try:
        found = plugins.find(plugins.PARTS, name)
    except InputError as error:
        raise ValueError(str(error)) from None
    if not (isinstance(found, type) and issubclass(found, Part)):
        raise ValueError(f"plug-in {name}: got {found!r}, expected a class that inherits from morphogen's Part")
    if "kind" not in found.model_fields:
        raise ValueError(f"plug-in {name}: has no kind of its own; it is {{kind: custom, name: {name}}}")
    if name not in kinds_of(found):
        raise ValueError(f"plug-in {name}: its kind is {', '.join(kinds_of(found))}, expected {name}")


def load_kinds() -> None:
    """Imports every plug-in of installed packages that can be; the kinds and operators they define are registered."""
    for name in plugins.names(plugins.PARTS):
        with suppress(ValueError):
            load_kind(name)


# --------------------------------------------------------------------------------------------------- operators


class BlockLike(Protocol):
    """What a block-level operator sees of a block (`blueprint.schema.Block`)."""

    attn: Part | None
    ssm: Part | None
    extras: tuple[Part, ...]
    ffn: Part | None
    parallel: bool

    def evolve(self, **changes: Any) -> Self | None:
        """A changed, validated copy, or None."""
        ...


Level = Literal["part", "block", "model", "train", "compound"]


@dataclass(frozen=True)
class Operator:
    """A named mutation. `level` says what `act` is called on: a part of class `target`, a block, a whole blueprint, the
    settings of training, or (`compound`, several edits by other operators) a blueprint and what surrounds it.

    preserves: whether a child that inherits computes its parent's function; a predicate where that depends on the
    target, called with the same arguments as `act` less the generator; None where each application says it itself.
    weight: how often it is drawn, relative to the others, unless an experiment says otherwise.
    """

    name: str
    summary: str
    level: Level
    act: Callable[..., Any]
    preserves: bool | Callable[..., bool] | None
    target: type[Part] | None = None
    weight: float = 1.0

    @property
    def declared(self) -> bool | None:
        """`preserves` where it is the same everywhere; None where it depends."""
        return self.preserves if isinstance(self.preserves, bool) else None

    def exact(self, *subject: Any) -> bool:
        """`preserves`, resolved for a subject: `(part, ctx)`, `(block, ctx)`, `(blueprint,)` or `(train,)`."""
        if self.preserves is None:
            raise TypeError(f"{self.name} is exact or not by what it did, not by what it is called on")
        return self.preserves if isinstance(self.preserves, bool) else self.preserves(*subject)


OPERATORS: dict[str, Operator] = {}


def load_operators() -> None:
    """Imports what installed packages add to the operators, those of their kinds included; what cannot be imported is
    left out. A search does so before its first draw, so that no operator comes in the middle of one."""
    _load_operators(tuple(sys.path))


@lru_cache(maxsize=1)
def _load_operators(path: tuple[str, ...]) -> None:
    load_kinds()
    for name in plugins.names(plugins.OPERATORS):
        with suppress(InputError):
            plugins.find(plugins.OPERATORS, name)


#: Other names that are understood where an operator is named -> the operator's own.
ALIASES: Mapping[str, str] = {
    "toggle_mla": "toggle_mla_attention",
    "insert_retro": "insert_retro_module",
}

F = TypeVar("F", bound=Callable[..., Any])
P = TypeVar("P", bound=Part)
T = TypeVar("T")
PartAct = Callable[[P, Context, np.random.Generator], Part | None]


def find_operator(name: str) -> Operator:
    """The operator called `name`, or of which that is an alias; OperatorError with the nearest name otherwise."""
    load_operators()
    own = ALIASES.get(name, name)
    if own not in OPERATORS:
        raise OperatorError(unknown("operator", name, OPERATORS))
    return OPERATORS[own]


def _add(
    level: Level,
    preserves: bool | Callable[..., bool] | None,
    target: type[Part] | None = None,
    weight: float = 1.0,
) -> Callable[[F], F]:
    def join(act: F) -> F:
        if act.__name__ in OPERATORS:
            raise RuntimeError(f"two operators are called {act.__name__}")
        summary = (act.__doc__ or "").strip().split("\n")[0]
        OPERATORS[act.__name__] = Operator(act.__name__, summary, level, act, preserves, target, weight)
        return act

    return join


def operator(target: type[P], *, preserves: bool | Callable[[P, Context], bool]) -> Callable[[PartAct[P]], PartAct[P]]:
    """Register a mutation of one part: `(part, ctx, rng) -> part`, None where it does not apply.

    What it gives may be a part of another class for the same slot.
    """
    return _add("part", preserves, target)


def block_operator(*, preserves: bool | Callable[[Any, Context], bool]) -> Callable[[F], F]:
    """Register a mutation of one block: `(block, ctx, rng) -> block`, None where it does not apply."""
    return _add("block", preserves)


def model_operator(*, preserves: bool | Callable[[Any], bool]) -> Callable[[F], F]:
    """Register a mutation of the whole blueprint: `(blueprint, rng) -> blueprint`, None where it does not apply."""
    return _add("model", preserves)


def train_operator(*, preserves: bool) -> Callable[[F], F]:
    """Register a mutation of how a candidate is trained: `(train, rng) -> train`, None where it does not apply.

    Not drawn unless an experiment gives it a weight: architectures are compared under the same training.
    """
    return _add("train", preserves, weight=0.0)


def compound_operator(name: str, summary: str, act: Callable[..., Any]) -> None:
    """Register a mutation by other operators: `(blueprint, around, rng) -> variation.act.Made`, or None."""
    OPERATORS[name] = Operator(name, summary, "compound", act, None)


def pick(rng: np.random.Generator, choices: list[T] | tuple[T, ...]) -> T | None:
    """One of `choices` uniformly; None when there are none."""
    return choices[int(rng.integers(len(choices)))] if choices else None
