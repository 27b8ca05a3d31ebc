"""Layers of other trained models as a residual branch.

B batch, T tokens, D model dim, E width of another model, N lanes, K choices, b units of a bottleneck, R rank
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from morphogen.figures import Figure
from morphogen.parts.contract.alignment import Alignment, AxisMap
from morphogen.parts.contract.frozen import Frozen
from morphogen.parts.contract.part import Context, Cost, NormKind, Part
from morphogen.parts.contract.tensors import ZEROS, Axes, Axis, Init, Tensor, donated, flat

if TYPE_CHECKING:
    from torch import nn

SEMI_ORTHOGONAL = Init("semi_orthogonal")
#: Routers start with small logits: choices differ, weights are nearly equal.
ROUTER_START = Init("fan_in_normal", (0.1,))
#: What the names of a layer's own tensors begin with, and those of what is added to its matrices.
LAYERS, DOWN, UP = "layers", "lora_down", "lora_up"


class ForeignLayerOf(Frozen):
    """One layer of another model."""

    model: Annotated[str, Field(min_length=1, pattern=r"^[^\x00]+$")]
    """The model's folder, or its name on the Hugging Face hub. Of its weights only safetensors are read."""
    layer: NonNegativeInt
    """Which of its layers, from 0."""


class Lane(NamedTuple):
    """Layers that run one after the other at the width of their model. first, end: which of the experts. after: the
    lane that it reads, None where it reads the branch's input."""

    first: int
    end: int
    after: int | None


class Foreign(Part):
    """Σ over lanes of g_n · write_n(f_n(h_n) − h_n) / √E, with h_n = read_n(x) and f_n layers of another model.

    What is added is what the layers change, f(h) − h, residuals of their own included. So with `normed: false` and
    read and write the identity (times √E), blocks of one layer each compute x + f(x) − x = f(x): all layers of a model
    in order, behind its embedding and before its head, are that model.

    Without a router the layers run in order, those of one model as one lane, and a lane after the first reads what the
    lane before came to, through a map of its own; g = 1. With a router every layer is a lane, all read x, and g says
    how much of each a token gets. All layers run causally, also those of models that see the future. Write starts at
    zero where the branch is put in, so that it changes nothing at first; read starts as the identity, or semi-
    orthogonal where widths differ.
    """

    slot: ClassVar = "extra"
    neutral_fields: ClassVar = frozenset(
        {"bottleneck", "freeze", "lora", "offload", "noise", "balance", "adapter_lr", "router_lr"}
    )
    figures: ClassVar = (
        Figure(
            "foreign_router_entropy",
            unit="nats",
            better="max",
            sort="metric",
            needs=("foreign",),
            summary="How evenly routers spread a token over layers of other models, over the last 50 training steps.",
        ),
        Figure(
            "foreign_load_max_over_mean",
            unit="1",
            better="min",
            sort="metric",
            needs=("foreign",),
            summary="The busiest such layer's load over the mean load, likewise; 1 is even.",
        ),
    )

    kind: Literal["foreign"] = "foreign"
    experts: Annotated[tuple[ForeignLayerOf, ...], Field(min_length=1, max_length=256)]
    """The layers, in order."""
    adapter: Literal["linear", "bottleneck"] = "linear"
    """How a lane reads and writes: `linear`, by a matrix each; `bottleneck`, by U gelu(V ·), beside a fixed map where
    it reads."""
    bottleneck: PositiveInt = 32
    """Units of a bottleneck."""
    router: Literal["none", "simple", "token"] = "none"
    """`none`: layers in order. `simple`: softmax(W pooled prefix) weighs them. `token`: each token chooses `top_k`."""
    top_k: PositiveInt = 1
    """Layers that a token chooses; for router token."""
    pooling: Literal["mean", "max", "attention"] = "mean"
    """How what a sequence has been so far is summed up; for router simple. `attention` learns what to look for."""
    noise: NonNegativeFloat = 0.0
    """Standard deviation of what training adds to the logits of router token, so that it tries other layers."""
    balance: NonNegativeFloat = 0.01
    """Times the load-balance loss of a router, and `train.router_lb_coeff`."""
    freeze: bool = True
    """Whether the layers stay as they are. Gradients pass through them all the same."""
    lora: NonNegativeInt = 0
    """Rank of what is learned beside the matrices of frozen layers, W + U V; 0: nothing. Ref: arXiv 2106.09685."""
    normed: bool = True
    """Whether the branch reads the normalised stream, as others do, or the stream as it is."""
    offload: bool = False
    """Whether frozen layers lie in the host's memory, and come to an accelerator for as long as they run."""
    adapter_lr: PositiveFloat = 1.0
    """Learning rate of reading, writing and `lora`, relative to `train.lr`."""
    router_lr: PositiveFloat = 1.0
    """Likewise of the router."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.router == "token" and self.top_k > len(self.experts):
            raise ValueError(f"top_k is {self.top_k}, but there are {len(self.experts)} experts to choose from")
        if self.lora and not self.freeze:
            raise ValueError(f"lora is {self.lora}, but the layers are trained themselves; expected freeze true, or 0")
        return self

    def inert(self) -> frozenset[str]:
        """What another router, adapter or way of training reads."""
        unread = {"bottleneck"} if self.adapter == "linear" else set[str]()
        unread |= {"top_k", "noise"} if self.router != "token" else set()
        unread |= {"pooling"} if self.router != "simple" else set()
        unread |= {"balance", "router_lr"} if self.router == "none" else set()
        unread |= set() if self.freeze else {"offload"}
        return frozenset(unread)

    def lanes(self) -> tuple[Lane, ...]:
        """With a router one for each expert; else one for each run of experts of the same model, in order."""
        if self.router != "none":
            return tuple(Lane(i, i + 1, None) for i in range(len(self.experts)))
        starts = [i for i, e in enumerate(self.experts) if i == 0 or e.model != self.experts[i - 1].model]
        ends = [*starts[1:], len(self.experts)]
        return tuple(
            Lane(first, end, n - 1 if n else None) for n, (first, end) in enumerate(zip(starts, ends, strict=True))
        )

    # ------------------------------------------------------------------------------------------------ tensors

    def tensors(self, ctx: Context) -> dict[str, Tensor]:
        """Of every lane its ways in and out, the router, and of every layer what its model has, or what is added."""
        table: dict[str, Tensor] = {}
        for n, lane in enumerate(self.lanes()):
            table |= self._adapter(n, "dim" if lane.after is None else f"width{lane.after}")
        if self.router != "none":
            if self._looks:
                table["pool.weight"] = Tensor(("one", "dim"), ZEROS, rate=self.router_lr)
            table["router.weight"] = Tensor(("lane", "dim"), ROUTER_START, rate=self.router_lr)
        for i, expert in enumerate(self.experts):
            for name, axes in self._axes(i):
                init = donated(expert.model, expert.layer, name)
                table[f"{LAYERS}.{i}.{name}"] = Tensor(axes, init, trained=not self.freeze, steady=True)
        for i in range(len(self.experts)) if self.lora else ():
            for name, axes in self._matrices(i):
                added, key = Tensor((), rate=self.adapter_lr, steady=True), flat_name(name)
                table[f"{DOWN}.{i}.{key}"] = replace(added, axes=("rank", axes[1]))
                table[f"{UP}.{i}.{key}"] = replace(added, axes=(axes[0], "rank"), init=ZEROS, fresh_zero=("rank",))
        return table

    def _adapter(self, n: int, source: str) -> dict[str, Tensor]:
        """How lane n reads its source and writes to the stream."""
        width, rate, steady = f"width{n}", self.adapter_lr, source != "dim"
        # what grows in a stream that is not normalised is no longer zero to who reads it
        new = ("dim",) if not self.normed and source == "dim" else ()
        if self.adapter == "linear":
            return {
                f"read.{n}.weight": Tensor((width, source), SEMI_ORTHOGONAL, fresh_zero=new, rate=rate, steady=steady),
                f"write.{n}.weight": Tensor(("dim", width), writes=True, rate=rate, steady=True),
            }
        units = "bottleneck"
        return {
            f"read.{n}.weight": Tensor((width, source), SEMI_ORTHOGONAL, fresh_zero=new, trained=False, steady=steady),
            f"read_down.{n}.weight": Tensor((units, source), fresh_zero=new, rate=rate, steady=steady),
            f"read_up.{n}.weight": Tensor((width, units), ZEROS, fresh_zero=(units,), rate=rate),
            f"write_down.{n}.weight": Tensor((units, width), rate=rate, steady=True),
            f"write_up.{n}.weight": Tensor(("dim", units), fresh_zero=(units,), writes=True, rate=rate),
        }

    @property
    def _looks(self) -> bool:
        """Whether the router learns which tokens of the prefix to look at."""
        return self.router == "simple" and self.pooling == "attention"

    def _axes(self, i: int) -> Iterator[tuple[str, Axes]]:
        """Every tensor of a layer by its name there, and its axes, which nothing else has."""
        from morphogen.parts.foreign.donors.opened import shapes_of

        for name, shape in shapes_of(self.experts[i].model, self.experts[i].layer).items():
            yield name, tuple(f"{i}.{name}.{place}" for place in range(len(shape)))

    def _matrices(self, i: int) -> Iterator[tuple[str, Axes]]:
        """Those that are weights of maps."""
        return ((name, axes) for name, axes in self._axes(i) if len(axes) == 2 and name.endswith(".weight"))

    def norms(self, ctx: Context) -> Mapping[str, tuple[Axis, NormKind]]:
        """The branch's, where it has one."""
        return super().norms(ctx) if self.normed else {}

    def sizes(self, ctx: Context) -> dict[str, int]:
        """Of the stream, the lanes, the router, and every dimension of every tensor of the layers."""
        from morphogen.parts.foreign.donors.opened import shapes_of, width_of

        lanes = self.lanes()
        own = {"dim": ctx.dim, "one": 1, "lane": len(lanes), "bottleneck": self.bottleneck, "rank": self.lora}
        own |= {f"width{n}": width_of(self.experts[lane.first].model) for n, lane in enumerate(lanes)}
        for i, expert in enumerate(self.experts):
            for name, shape in shapes_of(expert.model, expert.layer).items():
                own |= {f"{i}.{name}.{place}": size for place, size in enumerate(shape)}
        return own

    def build(self, ctx: Context) -> "nn.Module":
        """(B, T, D) to (B, T, D)."""
        from morphogen.parts.foreign.foreign_layer import ForeignBranch

        return ForeignBranch(self, ctx)

    def cost(self, ctx: Context) -> Cost:
        """Every layer runs on every token, as counted of the layer itself, and every adapter; what is learned beside
        matrices is added to them, once for a sequence."""
        from morphogen.parts.foreign.donors.opened import cost_of

        lanes, sizes, whole = self.lanes(), self.sizes(ctx), Cost()
        for expert in self.experts:
            whole += cost_of(expert.model, expert.layer, ctx.seq_len)
        flops = 0.0
        for n, lane in enumerate(lanes):
            source, width = sizes["dim" if lane.after is None else f"width{lane.after}"], sizes[f"width{n}"]
            flops += 2.0 * width * (source + (ctx.dim if self.adapter == "linear" else 0))
            if self.adapter == "bottleneck":
                flops += 2.0 * self.bottleneck * (source + 2 * width + ctx.dim)
        for i in range(len(self.experts)) if self.lora else ():
            added = sum(sizes[str(rows)] * sizes[str(columns)] for _, (rows, columns) in self._matrices(i))
            flops += 2.0 * self.lora * added / ctx.seq_len
        if self.router == "none":
            return whole + Cost(flops=flops)
        flops += 2.0 * ctx.dim * len(lanes)
        if self._looks:
            flops += 2.0 * ctx.dim * (1 + ctx.seq_len)
        held = {"mean": 4.0 * ctx.dim + 8.0, "max": 4.0 * ctx.dim, "attention": 4.0 * ctx.dim + 4.0}
        return whole + Cost(flops=flops, state_bytes=held[self.pooling] if self.router == "simple" else 0.0)

    def kept(self, ctx: Context) -> float:
        """What adapters and the router keep."""
        total = 0.0
        for name, spec in self.specs(ctx).items():
            if len(spec.shape) < 2 or name.startswith((f"{LAYERS}.", f"{DOWN}.", f"{UP}.")):
                continue
            residual = any(factors == ("dim",) for factors in flat(spec.axes))
            total += math.prod(spec.shape) / ctx.dim if residual else max(spec.shape)
        return total if self.router == "none" else total + ctx.dim * len(self.lanes())

    def kept_whole(self, ctx: Context) -> float:
        """What the layers keep as they run, counted of the layers themselves, and the matrices that LoRA makes."""
        from morphogen.parts.foreign.donors.opened import kept_of

        trained = not self.freeze or self.lora > 0
        total = sum(kept_of(e.model, e.layer, ctx.seq_len, trained=trained) for e in self.experts)
        if self.lora:
            sizes, layers = self.sizes(ctx), range(len(self.experts))
            total += sum(sizes[str(a)] * sizes[str(b)] for i in layers for _, (a, b) in self._matrices(i)) / ctx.seq_len
        return total

    def align(self, parent: Part, ctx: Context, parent_ctx: Context) -> Alignment | None:
        """Beyond the default: a layer is carried where it is the same one of the same model, and else read anew, and
        so is one that is no longer trained; a lane that reads something else learns to read anew. Lanes beside each
        other are found wherever they stand now, with their rows of the router."""
        plain = super().align(parent, ctx, parent_ctx)
        if plain is None or not isinstance(parent, Foreign):
            return plain
        if self._beside and parent._beside and self.experts != parent.experts:
            plain = replace(plain, **self._found(parent, ctx, parent_ctx))
        given_up = self.freeze and not parent.freeze
        specs, theirs = self.specs(ctx), parent.specs(parent_ctx)
        sources = dict[str, str | None]()
        for name, source in plain.sources.items():
            mine, its = _layer(name), None if source is None else _layer(source)
            other = mine is not None and its is not None and self.experts[mine] != parent.experts[its]
            axes = None if source is None else plain.parent_axes.get(name, theirs[source].axes)
            anew = other or (given_up and mine is not None) or specs[name].axes != axes
            sources[name] = None if anew else source
        aligned = replace(plain, sources=sources)
        return aligned.lossy("what the layers had learned is given up") if given_up else aligned

    @property
    def _beside(self) -> bool:
        """Whether every layer is a lane of its own that reads the branch's input."""
        return all(lane.after is None and lane.end == lane.first + 1 for lane in self.lanes())

    def _found(self, parent: "Foreign", ctx: Context, parent_ctx: Context) -> dict[str, Any]:
        """Of an alignment with a parent whose layers stand elsewhere: sources, axes and maps."""
        partners = _partners(self.experts, parent.experts)
        specs, theirs = self.specs(ctx), parent.specs(parent_ctx)
        sizes, their_sizes = self.sizes(ctx), parent.sizes(parent_ctx)
        sources, axes = dict[str, str | None](), dict[str, Axes]()
        rows = tuple(-1 if partner is None else partner for partner in partners)
        maps = {"lane": AxisMap(how="index", size=len(rows), parent_size=len(parent.experts), index=rows)}
        for name, spec in specs.items():
            group, _, rest = name.partition(".")
            number, _, own = rest.partition(".")
            if not number.isdigit():
                sources[name] = name if name in theirs else None
                continue
            partner = partners[int(number)]
            source = f"{group}.{partner}.{own}"
            if partner is None or source not in theirs or len(theirs[source].axes) != len(spec.axes):
                sources[name] = None
                continue
            sources[name], axes[name] = source, spec.axes
            for axis, its in zip(spec.axes, theirs[source].axes, strict=True):
                if isinstance(axis, str) and isinstance(its, str) and axis != its:
                    size, parent_size = sizes[axis], their_sizes[its]
                    how: Literal["first", "largest"] = "first" if size >= parent_size else "largest"
                    maps[axis] = AxisMap(how=how, size=size, parent_size=parent_size)
        return {"sources": sources, "parent_axes": axes, "maps": maps}


def flat_name(name: str) -> str:
    """A tensor's name without dots."""
    return name.replace(".", "__")


def _partners(mine: tuple[ForeignLayerOf, ...], theirs: tuple[ForeignLayerOf, ...]) -> list[int | None]:
    """For each of the child's layers the parent's lane that it goes on from: that of the same layer, else the one in
    its place, where no other layer of the child goes on from that."""
    found: list[int | None] = [i if theirs[i : i + 1] == (layer,) else None for i, layer in enumerate(mine)]
    for i, layer in enumerate(mine):
        if found[i] is None:
            found[i] = next((j for j, one in enumerate(theirs) if one == layer and j not in found), None)
    return [i if j is None and i < len(theirs) and i not in found else j for i, j in enumerate(found)]


def _layer(name: str) -> int | None:
    """Which expert a tensor belongs to; None for those of adapters and routers."""
    group, _, rest = name.partition(".")
    return int(rest.partition(".")[0]) if group in (LAYERS, DOWN, UP) else None
