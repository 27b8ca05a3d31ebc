"""What is done to the outputs of a block's branches: scales, gates, and a router.

B batch, T tokens, D model dim, n target branches, R hidden units of the router
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, get_args

import numpy as np
from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from morphogen.parts.contract.alignment import Alignment, AxisMap
from morphogen.parts.contract.operator import BlockLike, block_operator, operator, pick
from morphogen.parts.contract.part import Context, Cost, Modifier, NormKind, Part
from morphogen.parts.contract.tensors import ONES, ZEROS, Axis, Init, Tensor

if TYPE_CHECKING:
    from torch import nn

Target = Literal["attn", "ssm", "extra", "ffn"]
SLOTS: tuple[Target, ...] = get_args(Target)


class LayerScale(Modifier):
    """`x + s ⊙ branch(x)` with a learned vector s per target, starting at `init`. Ref: arXiv 2103.17239."""

    slot: ClassVar = "extra"
    neutral_fields: ClassVar = frozenset({"targets", "init"})

    kind: Literal["layer_scale"] = "layer_scale"
    targets: Annotated[tuple[Target, ...], Field(min_length=1)] = ("attn", "ffn")
    """Branches of the block that are scaled, by slot."""
    init: float = 1.0
    """What every entry of s starts at."""

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        _distinct(self.targets)
        return self

    def tensors(self, ctx: Context) -> dict[str, Tensor]:
        """A vector for each target, which starts at `init`."""
        return {slot: Tensor(("dim",), Init("constant", (self.init,))) for slot in SLOTS if slot in self.targets}

    def sizes(self, ctx: Context) -> dict[str, int]:
        """dim."""
        return {"dim": ctx.dim}

    def build(self, ctx: Context) -> "nn.Module":
        """Scales branch outputs."""
        from morphogen.parts.mixing.gating_layer import Scales

        return Scales(self, ctx)

    def cost(self, ctx: Context) -> Cost:
        """One multiplication per channel and target."""
        return Cost(flops=float(ctx.dim * len(self.targets)))

    def acts_on(self) -> tuple[str, ...]:
        """The targets."""
        return self.targets

    def neutral(self) -> bool:
        """True when every scale starts at one."""
        return self.init == 1.0

    def channel_scales(self, slot: str) -> tuple[str, ...]:
        """The target's vector."""
        return tuple(target for target in self.targets if target == slot)

    def align(self, parent: Part, ctx: Context, parent_ctx: Context) -> Alignment | None:
        """A new target is exact when it starts at one; a target taken away is not."""
        plain = super().align(parent, ctx, parent_ctx)
        if plain is None or not isinstance(parent, LayerScale):
            return None
        new = set(self.targets) - set(parent.targets)
        gone = set(parent.targets) - set(self.targets)
        return Alignment(
            sources=plain.sources,
            exact=not gone and (not new or self.init == 1.0),
            note=f"no longer scales {', '.join(sorted(gone))}" if gone else "",
            init={name: ONES for name in self.targets if name in parent.targets},
        )


class Gated(Modifier):
    """`x + g · branch(x)` with one number g per target, starting at `init_weight`. Ref: ReZero, arXiv 2003.04887."""

    slot: ClassVar = "extra"
    neutral_fields: ClassVar = frozenset({"targets", "learnable"})

    kind: Literal["gated"] = "gated"
    targets: Annotated[tuple[Target, ...], Field(min_length=1)] = ("attn", "ffn")
    """Branches of the block that are scaled, by slot."""
    init_weight: float = 1.0
    """What g starts at; changing it starts g anew."""
    learnable: bool = True
    """Whether training changes g."""

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        _distinct(self.targets)
        return self

    def tensors(self, ctx: Context) -> dict[str, Tensor]:
        """A number for each target, which starts at `init_weight`."""
        start = Tensor((), Init("constant", (self.init_weight,)), trained=self.learnable)
        return {slot: start for slot in SLOTS if slot in self.targets}

    def sizes(self, ctx: Context) -> dict[str, int]:
        """None: gates are single numbers."""
        return {}

    def build(self, ctx: Context) -> "nn.Module":
        """Scales branch outputs."""
        from morphogen.parts.mixing.gating_layer import Gates

        return Gates(self)

    def cost(self, ctx: Context) -> Cost:
        """One multiplication per channel and target."""
        return Cost(flops=float(ctx.dim * len(self.targets)))

    def acts_on(self) -> tuple[str, ...]:
        """The targets."""
        return self.targets

    def neutral(self) -> bool:
        """True when every gate starts at one."""
        return self.init_weight == 1.0

    def align(self, parent: Part, ctx: Context, parent_ctx: Context) -> Alignment | None:
        """A new target is exact when it starts at one; a target taken away, or another start, is not."""
        plain = super().align(parent, ctx, parent_ctx)
        if plain is None or not isinstance(parent, Gated):
            return None
        if self.init_weight != parent.init_weight:
            return replace(plain, sources=dict.fromkeys(plain.sources))
        new, gone = set(self.targets) - set(parent.targets), set(parent.targets) - set(self.targets)
        if gone or (new and not self.neutral()):
            return replace(plain, exact=False, note=f"other targets: {', '.join(sorted(gone | new))}")
        return plain


class BranchRouter(Modifier):
    """`x + n · softmax(z / temperature)_i · branch_i(x)` over the n targets: shares that are 1 each while z is 0.

    `token`: z = W₂ silu(W₁ norm(block's input)) + b, for each token by itself; `static`: z = b. W₂ and b start at zero,
    so a new router changes nothing. Soft routing over branches, after arXiv 1701.06538 and 2404.02258, but every branch
    runs.
    """

    slot: ClassVar = "extra"
    neutral_fields: ClassVar = frozenset({"hidden"})

    kind: Literal["branch_router"] = "branch_router"
    targets: Annotated[tuple[Target, ...], Field(min_length=2)] = ("attn", "ffn")
    """Branches of the block that shares are given to, by slot."""
    router_type: Literal["token", "static"] = "token"
    """`token`: shares of each token by itself; `static`: the same for all."""
    hidden: PositiveInt = 16
    """Units of the router; read with `token`."""
    temperature: PositiveFloat = 1.0
    """What z is divided by: lower makes shares more uneven."""

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        _distinct(self.targets)
        return self

    def inert(self) -> frozenset[str]:
        """A static router has no hidden units."""
        return frozenset({"hidden"}) if self.router_type == "static" else frozenset()

    def tensors(self, ctx: Context) -> dict[str, Tensor]:
        """A static router is its bias."""
        bias = {"bias": Tensor(("target",), ZEROS)}
        if self.router_type == "static":
            return bias
        out = Tensor(("target", "hidden"), ZEROS, fresh_zero=("hidden",))
        return {"up.weight": Tensor(("hidden", "dim")), "out.weight": out, **bias}

    def norms(self, ctx: Context) -> Mapping[str, tuple[Axis, NormKind]]:
        """That of the block's input."""
        return {} if self.router_type == "static" else {"norm": ("dim", ctx.norm)}

    def sizes(self, ctx: Context) -> dict[str, int]:
        """hidden, target and dim."""
        return {"hidden": self.hidden, "target": len(self.targets), "dim": ctx.dim}

    def build(self, ctx: Context) -> "nn.Module":
        """Scales branch outputs."""
        from morphogen.parts.mixing.gating_layer import Router

        return Router(self, ctx)

    def cost(self, ctx: Context) -> Cost:
        """The router, and one multiplication per channel and target."""
        router = 2.0 * self.hidden * (ctx.dim + len(self.targets)) if self.router_type == "token" else 0.0
        return Cost(flops=router + ctx.dim * len(self.targets))

    def acts_on(self) -> tuple[str, ...]:
        """The targets."""
        return self.targets

    def align(self, parent: Part, ctx: Context, parent_ctx: Context) -> Alignment | None:
        """Logits follow their targets by name; shares change with the targets. From static to token is exact."""
        plain = super().align(parent, ctx, parent_ctx)
        if plain is None or not isinstance(parent, BranchRouter):
            return None
        if self.targets == parent.targets:
            from_static = parent.router_type == "static" and self.temperature == parent.temperature
            return replace(plain, exact=True, note="") if from_static else plain
        index = tuple(parent.targets.index(t) if t in parent.targets else -1 for t in self.targets)
        take = AxisMap(how="index", size=len(index), parent_size=len(parent.targets), index=index)
        return replace(plain, maps={"target": take})


def _distinct(targets: tuple[str, ...]) -> None:
    if len(set(targets)) < len(targets):
        raise ValueError(f"targets name a branch twice: {', '.join(targets)}")


def present(block: BlockLike) -> list[str]:
    """The block's slots that hold a branch."""
    slots = [slot for slot, part in (("attn", block.attn), ("ssm", block.ssm), ("ffn", block.ffn)) if part]
    if any(not isinstance(extra, Modifier) for extra in block.extras):
        slots.append("extra")
    return slots


@block_operator(preserves=True)
def insert_layer_scale(block: Any, ctx: Context, rng: np.random.Generator) -> Any:
    """A learned scale on each branch's output, starting at one."""
    if any(isinstance(extra, LayerScale) for extra in block.extras):
        return None
    return block.evolve(extras=(*block.extras, LayerScale(targets=tuple(present(block)), init=1.0)))


@operator(LayerScale, preserves=lambda part, ctx: False)
def tune_layer_scale(part: LayerScale, ctx: Context, rng: np.random.Generator) -> LayerScale | None:
    """Stop scaling one of several branches."""
    if len(part.targets) < 2:
        return None
    drop = pick(rng, part.targets)
    return part.evolve(targets=tuple(t for t in part.targets if t != drop))


@block_operator(preserves=False)
def remove_layer_scale(block: Any, ctx: Context, rng: np.random.Generator) -> Any:
    """Take the learned scales away."""
    return block.evolve(extras=tuple(extra for extra in block.extras if not isinstance(extra, LayerScale)))


@block_operator(preserves=lambda block, ctx: not any(isinstance(extra, Gated) for extra in block.extras))
def toggle_gated_mix(block: Any, ctx: Context, rng: np.random.Generator) -> Any:
    """A gate on each branch's output, starting at one; or, where there is one, none. Ref: arXiv 2003.04887."""
    others = tuple(extra for extra in block.extras if not isinstance(extra, Gated))
    if len(others) < len(block.extras):
        return block.evolve(extras=others)
    return block.evolve(extras=(*others, Gated(targets=tuple(present(block)))))


@operator(Gated, preserves=False)
def tune_gated_mix(part: Gated, ctx: Context, rng: np.random.Generator) -> Gated | None:
    """Start the gates anew from 0.25, 0.5 or 1, or stop gating one of several branches."""
    if len(part.targets) > 1 and rng.random() < 0.5:
        drop = pick(rng, part.targets)
        return part.evolve(targets=tuple(t for t in part.targets if t != drop))
    return part.evolve(init_weight=pick(rng, [w for w in (0.25, 0.5, 1.0) if w != part.init_weight]))


@operator(Gated, preserves=True)
def toggle_gate_learning(part: Gated, ctx: Context, rng: np.random.Generator) -> Gated | None:
    """Freeze the gates where they are, or let them learn again."""
    return part.evolve(learnable=not part.learnable)


@block_operator(preserves=lambda block, ctx: not any(isinstance(extra, BranchRouter) for extra in block.extras))
def toggle_branch_router(block: Any, ctx: Context, rng: np.random.Generator) -> Any:
    """A router that gives each token its shares of the branches, 1 each at first; or, where there is one, none."""
    others = tuple(extra for extra in block.extras if not isinstance(extra, BranchRouter))
    if len(others) < len(block.extras):
        return block.evolve(extras=others)
    targets = tuple(present(block))
    return block.evolve(extras=(*others, BranchRouter(targets=targets))) if len(targets) > 1 else None


@operator(BranchRouter, preserves=False)
def tune_branch_router(part: BranchRouter, ctx: Context, rng: np.random.Generator) -> BranchRouter | None:
    """Another temperature, no longer by token, or one of three targets fewer."""
    knob = pick(rng, ["temperature", "router_type", "targets"])
    if knob == "temperature":
        return part.evolve(temperature=pick(rng, [t for t in (0.5, 1.0, 2.0) if t != part.temperature]))
    if knob == "router_type":
        return part.evolve(router_type="static")
    drop = pick(rng, part.targets)
    return part.evolve(targets=tuple(t for t in part.targets if t != drop))


@operator(BranchRouter, preserves=True)
def grow_branch_router(part: BranchRouter, ctx: Context, rng: np.random.Generator) -> BranchRouter | None:
    """Twice the hidden units, writing zero; a static router starts to look at the tokens."""
    if part.router_type == "static":
        return part.evolve(router_type="token")
    return part.evolve(hidden=2 * part.hidden) if part.hidden <= 256 else None
