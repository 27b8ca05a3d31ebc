"""Learned scales on what a block's branches write. D model dim"""

from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from morphogen.parts.contract.alignment import Alignment
from morphogen.parts.contract.operator import BlockT, block_operator, operator
from morphogen.parts.contract.part import Context, Cost, Part
from morphogen.parts.contract.tensors import ONES, Init, Tensor
from morphogen.parts.mixing.targeted import SLOTS, Targeted, fewer_targets, holds, present, without

if TYPE_CHECKING:
    from torch import nn


class LayerScale(Targeted):
    """`x + s ⊙ branch(x)` with a learned vector s per target, starting at `init`. Ref: arXiv 2103.17239."""

    neutral_fields: ClassVar = frozenset({"targets", "init"})

    kind: Literal["layer_scale"] = "layer_scale"
    init: float = 1.0
    """What every entry of s starts at."""

    def tensors(self, ctx: Context) -> dict[str, Tensor]:
        """A vector for each target, which starts at `init`."""
        return {slot: Tensor(("dim",), Init("constant", (self.init,))) for slot in SLOTS if slot in self.targets}

    def sizes(self, ctx: Context) -> dict[str, int]:
        """dim."""
        return {"dim": ctx.dim}

    def build(self, ctx: Context) -> "nn.Module":
        """Scales branch outputs."""
        from morphogen.parts.mixing.layer_scale_layer import Scales

        return Scales(self, ctx)

    def cost(self, ctx: Context) -> Cost:
        """One multiplication per channel and target."""
        return self.scaling(ctx)

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


@block_operator(preserves=True)
def insert_layer_scale(block: BlockT, ctx: Context, rng: np.random.Generator) -> BlockT | None:
    """A learned scale on each branch's output, starting at one."""
    if holds(block, LayerScale):
        return None
    return block.evolve(extras=(*block.extras, LayerScale(targets=present(block), init=1.0)))


@operator(LayerScale, preserves=False)
def tune_layer_scale(part: LayerScale, ctx: Context, rng: np.random.Generator) -> LayerScale | None:
    """Stop scaling one of several branches."""
    return fewer_targets(part, rng)


@block_operator(preserves=False)
def remove_layer_scale(block: BlockT, ctx: Context, rng: np.random.Generator) -> BlockT | None:
    """Take the learned scales away."""
    return without(block, LayerScale)
