"""A gate, one number, on what each of a block's branches writes."""

from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from morphogen.parts.contract.alignment import Alignment
from morphogen.parts.contract.operator import BlockT, block_operator, operator, pick
from morphogen.parts.contract.part import Context, Cost, Part
from morphogen.parts.contract.tensors import Init, Tensor
from morphogen.parts.mixing.targeted import SLOTS, Targeted, fewer_targets, holds, present, without

if TYPE_CHECKING:
    from torch import nn


class Gated(Targeted):
    """`x + g · branch(x)` with one number g per target, starting at `init_weight`. Ref: ReZero, arXiv 2003.04887."""

    neutral_fields: ClassVar = frozenset({"targets", "learnable"})

    kind: Literal["gated"] = "gated"
    init_weight: float = 1.0
    """What g starts at; changing it starts g anew."""
    learnable: bool = True
    """Whether training changes g."""

    def tensors(self, ctx: Context) -> dict[str, Tensor]:
        """A number for each target, which starts at `init_weight`."""
        start = Tensor((), Init("constant", (self.init_weight,)), trained=self.learnable)
        return {slot: start for slot in SLOTS if slot in self.targets}

    def sizes(self, ctx: Context) -> dict[str, int]:
        """None: gates are single numbers."""
        return {}

    def build(self, ctx: Context) -> "nn.Module":
        """Scales branch outputs."""
        from morphogen.parts.mixing.gated_layer import Gates

        return Gates(self)

    def cost(self, ctx: Context) -> Cost:
        """One multiplication per channel and target."""
        return self.scaling(ctx)

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


@block_operator(preserves=lambda block, ctx: not holds(block, Gated))
def toggle_gated_mix(block: BlockT, ctx: Context, rng: np.random.Generator) -> BlockT | None:
    """A gate on each branch's output, starting at one; or, where there is one, none. Ref: arXiv 2003.04887."""
    if holds(block, Gated):
        return without(block, Gated)
    return block.evolve(extras=(*block.extras, Gated(targets=present(block))))


@operator(Gated, preserves=False)
def tune_gated_mix(part: Gated, ctx: Context, rng: np.random.Generator) -> Gated | None:
    """Start the gates anew from 0.25, 0.5 or 1, or stop gating one of several branches."""
    if len(part.targets) > 1 and rng.random() < 0.5:
        return fewer_targets(part, rng)
    return part.evolve(init_weight=pick(rng, [w for w in (0.25, 0.5, 1.0) if w != part.init_weight]))


@operator(Gated, preserves=True)
def toggle_gate_learning(part: Gated, ctx: Context, rng: np.random.Generator) -> Gated | None:
    """Freeze the gates where they are, or let them learn again."""
    return part.evolve(learnable=not part.learnable)
