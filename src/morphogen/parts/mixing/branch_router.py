"""A router that shares a token out over its block's branches. D model dim, n target branches, R hidden units"""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field, PositiveFloat, PositiveInt

from morphogen.parts.contract.alignment import Alignment, AxisMap
from morphogen.parts.contract.operator import BlockT, block_operator, operator, pick
from morphogen.parts.contract.part import Context, Cost, NormKind, Part
from morphogen.parts.contract.tensors import ZEROS, Axis, Tensor
from morphogen.parts.mixing.targeted import Target, Targeted, fewer_targets, holds, present, without

if TYPE_CHECKING:
    from torch import nn


class BranchRouter(Targeted):
    """`x + n · softmax(z / temperature)_i · branch_i(x)` over the n targets: shares that are 1 each while z is 0.

    `token`: z = W₂ silu(W₁ norm(block's input)) + b, for each token by itself; `static`: z = b. W₂ and b start at zero,
    so a new router changes nothing. Soft routing over branches, after arXiv 1701.06538 and 2404.02258, but every branch
    runs.
    """

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
        from morphogen.parts.mixing.branch_router_layer import Router

        return Router(self, ctx)

    def cost(self, ctx: Context) -> Cost:
        """The router, and one multiplication per channel and target."""
        router = 2.0 * self.hidden * (ctx.dim + len(self.targets)) if self.router_type == "token" else 0.0
        return Cost(flops=router) + self.scaling(ctx)

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


@block_operator(preserves=lambda block, ctx: not holds(block, BranchRouter))
def toggle_branch_router(block: BlockT, ctx: Context, rng: np.random.Generator) -> BlockT | None:
    """A router that gives each token its shares of the branches, 1 each at first; or, where there is one, none."""
    if holds(block, BranchRouter):
        return without(block, BranchRouter)
    targets = present(block)
    return block.evolve(extras=(*block.extras, BranchRouter(targets=targets))) if len(targets) > 1 else None


@operator(BranchRouter, preserves=False)
def tune_branch_router(part: BranchRouter, ctx: Context, rng: np.random.Generator) -> BranchRouter | None:
    """Another temperature, no longer by token, or one of three targets fewer."""
    knob = pick(rng, ["temperature", "router_type", "targets"])
    if knob == "temperature":
        return part.evolve(temperature=pick(rng, [t for t in (0.5, 1.0, 2.0) if t != part.temperature]))
    if knob == "router_type":
        return part.evolve(router_type="static")
    return fewer_targets(part, rng)


@operator(BranchRouter, preserves=True)
def grow_branch_router(part: BranchRouter, ctx: Context, rng: np.random.Generator) -> BranchRouter | None:
    """Twice the hidden units, writing zero; a static router starts to look at the tokens."""
    if part.router_type == "static":
        return part.evolve(router_type="token")
    return part.evolve(hidden=2 * part.hidden) if part.hidden <= 256 else None
