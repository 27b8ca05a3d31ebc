"""Mixture of experts as a part: its sizes, costs, and what it inherits. Its module is in `moe_layer`."""

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

from pydantic import ConfigDict, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from morphogen.figures import Figure
from morphogen.ops.names import OpName, RouterKind
from morphogen.parts.contract.alignment import Alignment, AxisMap
from morphogen.parts.contract.part import Context, Cost, Part
from morphogen.parts.contract.registry import PartIn
from morphogen.parts.contract.tensors import ZEROS, Axes, Init, Tensor
from morphogen.parts.contract.widths import Width, times
from morphogen.parts.ffn.inner_parts import alignment_inside, axes_inside, bare, inside
from morphogen.parts.ffn.mlp import GATED, MLP, Activation
from morphogen.parts.ffn.sharing import Sharing, aligned, by_index
from morphogen.parts.ffn.stack import STACKED, halves, kept_units

if TYPE_CHECKING:
    from torch import nn

#: What may stand in for an expert.
EXPERT = PartIn("ffn", also=("ssm", "extra"), without=frozenset({"moe", "foreign"}))
#: Routers start with small logits: choices differ, weights are nearly equal.
ROUTER_START = Init("fan_in_normal", (0.1,))


class MoE(Part):
    """y = Σ over the k chosen experts of weight · expert(x), plus shared experts that every token runs.

    The weights sum to 1. Expert e is down_e(act(gate_e x) ⊙ up_e x), or without a gate as in `MLP`. Token choice
    only, since expert choice sees the future. Ref: arXiv 2101.03961 (Switch), 2401.04088 (Mixtral), 2401.06066 (shared
    and fine-grained experts), 2408.15664 (balance without a loss).
    """

    model_config = ConfigDict(defer_build=True)

    slot: ClassVar = "ffn"
    #: `align` itself judges those of these that may change the function.
    neutral_fields: ClassVar = frozenset(
        {"hidden", "n_experts", "k", "twins", "experts", "router_bias"}
        | {"shared", "shared_hidden", "balance", "z_loss", "drop_upcycle"}
    )

    figures: ClassVar = (
        Figure(
            "router_entropy",
            unit="nats",
            better="max",
            sort="metric",
            needs=("moe",),
            summary="How evenly routers spread a token over the experts, over the last 50 training steps.",
        ),
        Figure(
            "expert_load_max_over_mean",
            unit="1",
            better="min",
            sort="metric",
            needs=("moe",),
            summary="The busiest expert's load over the mean load, likewise; 1 is even.",
        ),
        Figure(
            "router_overflow",
            unit="share",
            better="min",
            sort="metric",
            needs=("moe",),
            summary="Assignments of tokens beyond the experts' capacity, likewise; 0 without a capacity.",
        ),
    )

    kind: Literal["moe"] = "moe"
    hidden: PositiveInt
    """Hidden units of each routed expert."""
    n_experts: Annotated[int, Field(ge=2)]
    """Routed experts in all."""
    k: PositiveInt = 2
    """Experts that each token runs, their weights summing to 1."""
    activation: Activation = "swiglu"
    """Function of the experts' units; swiglu, geglu and geglu_tanh are gated."""
    shared: NonNegativeInt = 0
    """Experts besides, which every token runs."""
    shared_hidden: PositiveInt | None = None
    """Hidden units of each shared expert; null: `hidden`."""
    router_type: RouterKind = "softmax"
    """How logits become scores."""
    router_temperature: PositiveFloat = 1.0
    """What logits are divided by first."""
    router_bias: Literal["none", "aux_free"] = "none"
    """`aux_free` keeps a bias per expert, for the choice alone, that each training step moves against its load."""
    balance: NonNegativeFloat = 0.01
    """Coefficient of the load-balance loss, in training only."""
    z_loss: NonNegativeFloat = 0.0
    """Coefficient of mean(logsumexp(logits)²), in training only."""
    capacity_factor: PositiveFloat | None = None
    """With `drop_policy` greedy an expert takes at most ⌈factor·k·(t + 1) / n_experts⌉ of a sequence's tokens 0..t;
    otherwise only the mark that `router_overflow` is measured by. null: no capacity."""
    drop_policy: Literal["none", "greedy"] = "none"
    """`greedy`: experts refuse tokens beyond their capacity."""
    experts: tuple[Annotated[Part, EXPERT], ...] = ()
    """Parts that stand in for the last experts: feed-forward layers of other sizes, or kinds that mix tokens. Those
    read the whole sequence, and count where they are chosen."""
    twins: tuple[NonNegativeInt, ...] = ()
    """Of every twin the number of the expert that it split from, with which it shares the place: of the tokens that
    reach that one, a gate sends each on to the twin or leaves it there, one gate after another. Twins are the last of
    the stacked experts; a twin may split in its turn."""
    drop_upcycle: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Share of each expert's hidden units drawn afresh when it is made from a dense layer (2502.19261)."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.stacked < 0:
            raise ValueError(f"experts lists {len(self.experts)} parts, but n_experts is {self.n_experts}")
        for i, host in enumerate(self.twins):
            if host >= self.own_places + i:
                raise ValueError(
                    f"twins[{i}] is {host}, expected a number below {self.own_places + i}: one of the "
                    f"{self.own_places} experts that are neither twins nor listed in experts, or an earlier twin"
                )
        if self.places < max(2, self.k):
            raise ValueError(f"the router chooses {self.k} of {self.places} places, expected at least 2 and k of them")
        if self.drop_policy == "greedy" and self.capacity_factor is None:
            raise ValueError("drop_policy is greedy, but there is no capacity_factor")
        return self

    @property
    def stacked(self) -> int:
        """Experts in the stacked tensors, twins among them."""
        return self.n_experts - len(self.experts)

    @property
    def own_places(self) -> int:
        """Places of the stacked experts: twins share one."""
        return self.stacked - len(self.twins)

    @property
    def places(self) -> int:
        """What the router chooses among."""
        return self.n_experts - len(self.twins)

    @property
    def shared_width(self) -> int:
        """Hidden units of one shared expert."""
        return self.shared_hidden or self.hidden

    @property
    def sharing(self) -> Sharing:
        """Who shares which place."""
        return Sharing.of(self.own_places, self.twins)

    def shared_by(self, sharing: Sharing) -> Self | None:
        """Itself with experts that have split or gone; None where too few are left."""
        return self.evolve(n_experts=len(sharing.experts) + len(self.experts), twins=sharing.twins)

    def with_places(self, count: int) -> Self | None:
        """Itself with so many places of stacked experts, as many as before or more."""
        more = count - self.own_places
        twins = tuple(host + more * (host >= self.own_places) for host in self.twins)
        return self.evolve(n_experts=self.n_experts + more, twins=twins)

    def op(self) -> OpName:
        """Experts run on tokens sorted by expert."""
        return "experts"

    def counts_as(self) -> frozenset[str]:
        """A mixture of experts."""
        return frozenset({"moe"})

    def within(self, ctx: Context) -> Self:
        """Where every token runs every expert nothing is balanced; a capacity that nothing exceeds drops nothing."""
        changed: dict[str, object] = {"experts": tuple(part.within(ctx) or part for part in self.experts)}
        if self.k == self.n_experts:
            changed |= {"balance": 0.0, "router_bias": "none"}
        if self.drop_policy == "greedy" and self.capacity_factor and self.capacity_factor * self.k >= self.n_experts:
            changed |= {"drop_policy": "none"}
        if self.shared:
            changed |= {"shared_hidden": self.shared_width}
        return self.model_copy(update=changed)

    def inert(self) -> frozenset[str]:
        """The shared experts' size without any, a capacity that nothing is dropped by."""
        return frozenset(
            ({"shared_hidden"} if not self.shared else set())
            | ({"capacity_factor"} if self.drop_policy == "none" else set())
        )

    def tensors(self, ctx: Context) -> dict[str, Tensor]:
        """The routers', then the stacked experts', the shared ones', and those of the parts in `experts` without their
        first norms: the input is normalised once for all."""
        table: dict[str, Tensor] = {}
        for name, place, expert, count in (
            ("router", "place", "expert", self.stacked),
            ("other_router", "other", "other", len(self.experts)),
        ):
            if count:
                table[f"{name}.weight"] = Tensor((place, "dim"), ROUTER_START)
            if count and self.router_bias == "aux_free":
                table[f"{name}.bias"] = Tensor((expert,), ZEROS, trained=False)
        if self.twins:
            table["twin.weight"] = Tensor(("twin", "dim"), ROUTER_START)
        gated = self.activation in GATED
        if self.stacked:
            rows = Tensor(("expert", "hidden", "dim"))
            start = Init("normal", (ctx.output_gain / math.sqrt(self.hidden),))
            table |= {"up.weight": rows, **({"gate.weight": rows} if gated else {})}
            table["down.weight"] = Tensor(rows.axes, start, fresh_zero=("expert", "hidden"), writes=True)
        if self.shared:
            units = ("shared", "shared_hidden")
            rows = Tensor((units, "dim"))
            table |= {"shared_up.weight": rows, **({"shared_gate.weight": rows} if gated else {})}
            table["shared_down.weight"] = Tensor(("dim", units), fresh_zero=units, writes=True)
        for i, part in enumerate(self.experts):
            for name, spec in bare(part, ctx).items():  # what they inherit, `_with_others` says
                table[f"others.{i}.{name}"] = Tensor(
                    axes_inside(i, spec.axes), spec.init, writes=spec.writes, trained=spec.trained, steady=spec.steady
                )
        return table

    def sizes(self, ctx: Context) -> dict[str, int]:
        """Those of the stack, and `others.<i>.<axis>` for the parts in `experts`."""
        sizes = {
            "dim": ctx.dim,
            "place": self.own_places,
            "expert": self.stacked,
            "hidden": self.hidden,
            "twin": len(self.twins),
            "other": len(self.experts),
            "shared": self.shared,
            "shared_hidden": self.shared_width,
        }
        for i, part in enumerate(self.experts):
            sizes |= {inside(i, axis): size for axis, size in part.sizes(ctx).items()}
        return sizes

    def resized(self, target: Width, factor: float, ctx: Context) -> "MoE | None":
        """Other hidden units of the experts, routed and shared; and what the parts in `experts` have of the sort."""
        others = tuple(part.resized(target, factor, ctx) or part for part in self.experts)
        changed: dict[str, object] = {"experts": others}
        if target == "ffn":
            changed["hidden"] = times(self.hidden, factor)
            changed["shared_hidden"] = None if self.shared_hidden is None else times(self.shared_hidden, factor)
        return self.evolve(**changed)

    def build(self, ctx: Context) -> "nn.Module":
        """(B, T, D) to (B, T, D)."""
        from morphogen.parts.ffn.moe_layer import Experts

        return Experts(self, ctx)

    def cost(self, ctx: Context) -> Cost:
        """Router, k experts and the shared ones; of `experts`, those that mix tokens run on every token.

        Choices are taken as even, and no token as dropped.
        """
        matrices = 3 if self.activation in GATED else 2
        share = self.k / self.places  # of the tokens, at one place
        units = share * self.own_places * self.hidden + self.shared * self.shared_width
        flops = 2.0 * ctx.dim * (matrices * units + self.places + len(self.twins))
        total = Cost(flops=flops, state_bytes=8.0 * (self.n_experts + 1) if self.drop_policy == "greedy" else 0.0)
        for part in self.experts:
            whole = part.cost(ctx)
            part_of_it = replace(whole, flops=whole.flops * share, elementwise=whole.elementwise * share)
            total += part_of_it if part.pointwise else whole
        return total

    def kept(self, ctx: Context) -> float:
        """Hidden units as in `MLP`; for each of a token's k experts its copies going in and coming out, one weighed.

        Choices are taken as even, and as in `cost` experts that mix tokens run on every token.
        """
        units, share = 4 if self.activation in GATED else 2, self.k / self.places
        total = share * self.own_places * (units * self.hidden + 3.0 * ctx.dim) + 2.0 * self.places
        total += units * self.shared * self.shared_width
        return total + sum((share if part.pointwise else 1.0) * part.kept(ctx) for part in self.experts)

    # ------------------------------------------------------------------------------------------- inheritance

    def align(self, parent: Part, ctx: Context, parent_ctx: Context) -> Alignment | None:
        """From another mixture by tensor; from a dense layer by giving every expert a copy of it."""
        if isinstance(parent, MLP):
            return self._upcycled(parent, ctx, parent_ctx)
        plain = super().align(parent, ctx, parent_ctx)
        if plain is None or not isinstance(parent, MoE):
            return plain
        notes = [plain.note] if plain.note else []
        segmented = self._segments(parent)
        if not segmented:
            notes += self._other_choices(parent)
        # without twins a place is an expert, so that its row goes where the expert goes
        axes: dict[str, Axes] = {} if self.twins or parent.twins else {"router.weight": ("expert", "dim")}
        maps, scales = dict[str, AxisMap](), dict(plain.scales)
        if segmented:
            axes, maps = halves(parent.n_experts, parent.hidden)
            scales["down.weight"] = 2.0
        elif self.twins or parent.twins:
            maps = dict(self._shared_as(parent).takes())
        if self.experts and parent.experts:
            kept = min(len(self.experts), len(parent.experts))
            maps["other"] = by_index([i if i < kept else -1 for i in range(len(self.experts))], len(parent.experts))
        whole = Alignment(
            sources=plain.sources,
            exact=not notes and plain.exact,
            note="; ".join(notes),
            axes=axes,
            parent_axes=axes,
            maps=maps,
            scales=scales,
            zero=plain.zero,
        )
        return self._with_others(whole, parent, ctx, parent_ctx)

    def _segments(self, parent: "MoE") -> bool:
        """Whether every expert of the parent became two of half its size, twice as many of which are chosen."""
        return (
            (self.n_experts, self.k) == (2 * parent.n_experts, 2 * parent.k)
            and 2 * self.hidden == parent.hidden
            and not (self.twins or parent.twins or self.experts or parent.experts)
            and self.router_bias == parent.router_bias
        )

    def _other_choices(self, parent: "MoE") -> list[str]:
        """Why tokens may go elsewhere than in the parent. An expert that splits in two changes nothing."""
        notes = []
        if self.k != parent.k:
            notes.append(f"k {parent.k} became {self.k}")
        if parent.router_bias == "aux_free" and self.router_bias == "none":
            notes.append("router bias removed")
        if self.own_places != parent.own_places or len(self.experts) != len(parent.experts):
            notes.append(f"{parent.places} places became {self.places}")
        if {gate.row for gate in parent.sharing.gates} - {gate.row for gate in self._shared_as(parent).gates}:
            notes.append("twins merged")
        if self.n_experts != parent.n_experts and self.drop_policy == "greedy":
            notes.append("capacity changed")
        return notes

    def _shared_as(self, parent: "MoE") -> Sharing:
        """Its sharing as what became of the parent's."""
        return aligned(self.own_places, self.twins, parent.sharing)

    def _with_others(self, whole: Alignment, parent: "MoE", ctx: Context, parent_ctx: Context) -> Alignment:
        """The same with what the parts in `experts` inherit, each from the one of its number."""
        for i, part in enumerate(self.experts):
            mine = part.align(parent.experts[i], ctx, parent_ctx) if i < len(parent.experts) else None
            if mine is None:
                mine = Alignment(dict.fromkeys(bare(part, ctx)), exact=False, note=f"experts[{i}] is new")
            whole = whole.joined(alignment_inside(i, mine, bare(part, ctx)))
        return whole

    def _upcycled(self, parent: MLP, ctx: Context, parent_ctx: Context) -> Alignment:
        """Every expert a copy of the dense layer, less the units that `drop_upcycle` draws afresh. Ref: 2212.05055."""
        theirs = parent.specs(parent_ctx)
        same = self.activation == parent.activation and self.stacked > 0 and not parent.bias
        exact = same and not (self.experts or self.drop_upcycle) and self.drop_policy == "none"
        lost = "the dense layer's biases are lost" if parent.bias else "experts are not all copies of the dense layer"
        copied = AxisMap(how="index", size=self.stacked, parent_size=1, index=(0,) * self.stacked)
        rows: Axes = ("expert", "hidden", "dim")
        columns: Axes = ("expert", "dim", "hidden")
        axes, maps = dict[str, Axes](), {"expert": copied}
        zero = self.fresh_zero(ctx)
        if self.drop_upcycle:
            axes = dict.fromkeys(STACKED, ("unit", "dim"))
            kept = kept_units(self.stacked, self.hidden, parent.hidden, self.drop_upcycle)
            rows, columns, maps = ("unit", "dim"), ("dim", "unit"), {"unit": kept}
            zero["down.weight"] = ("unit",)
        return Alignment(
            sources={name: name if name in theirs else None for name in self.specs(ctx)},
            exact=exact,
            note="" if exact else lost,
            axes=axes,
            parent_axes={"up.weight": rows, "gate.weight": rows, "down.weight": columns},
            maps=maps,
            scales=self.norm_scales(parent, ctx, parent_ctx),
            zero=zero,
        )

    def bequeath(self, child: Part, ctx: Context, child_ctx: Context) -> Alignment | None:
        """To a dense layer: the mean of the stacked experts."""
        if not isinstance(child, MLP) or not self.stacked:
            return None
        mean = AxisMap(how="mean", size=1, parent_size=self.stacked, groups=(tuple(range(self.stacked)),))
        theirs = self.specs(ctx)
        rows = ("expert", "hidden", "dim")
        return Alignment(
            sources={name: name if name in theirs else None for name in child.specs(child_ctx)},
            exact=False,
            note="the mean of the experts",
            axes={"up.weight": rows, "gate.weight": rows, "down.weight": ("expert", "dim", "hidden")},
            parent_axes=dict.fromkeys(STACKED, rows),
            maps={"expert": mean},
            scales=child.norm_scales(self, child_ctx, ctx),
            zero=child.fresh_zero(child_ctx),
        )
