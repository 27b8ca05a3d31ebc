"""Per-channel scaling of branch outputs. B batch, T tokens, D model dim."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from morphogen.parts.base import (
    ONES,
    Alignment,
    Axes,
    BlockLike,
    Context,
    Cost,
    Init,
    Modifier,
    Modulation,
    Part,
    Spec,
    block_operator,
    operator,
    pick,
)

Target = Literal["attn", "ssm", "extra", "ffn"]


class LayerScale(Modifier):
    """`x + s ⊙ branch(x)` with a learned vector s per target, starting at `init`. Ref: arXiv 2103.17239."""

    slot: ClassVar = "extra"
    axes: ClassVar[Mapping[str, Axes]] = dict.fromkeys(("attn", "ssm", "extra", "ffn"), ("dim",))
    size_fields: ClassVar = frozenset({"targets", "init"})

    kind: Literal["layer_scale"] = "layer_scale"
    targets: Annotated[tuple[Target, ...], Field(min_length=1)] = ("attn", "ffn")
    init: float = 1.0

    def absent(self, ctx: Context) -> frozenset[str]:
        """Only the targets have a vector."""
        return frozenset(self.axes) - set(self.targets)

    def sizes(self, ctx: Context) -> dict[str, int]:
        """dim."""
        return {"dim": ctx.dim}

    def specs(self, ctx: Context) -> dict[str, Spec]:
        """Each vector starts at `init`."""
        start = Init("constant", (self.init,))
        return {name: Spec(spec.axes, spec.shape, start) for name, spec in super().specs(ctx).items()}

    def build(self, ctx: Context) -> nn.Module:
        """Scales branch outputs."""
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


class Scales(Modulation):
    """The module of `LayerScale`."""

    def __init__(self, part: LayerScale, ctx: Context) -> None:
        super().__init__()
        self.targets = frozenset(part.targets)
        for target in part.targets:
            self.register_parameter(target, nn.Parameter(torch.empty(ctx.dim)))

    def modulate(self, slot: str, y_BTD: Tensor, x_BTD: Tensor) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        return y_BTD * self.get_parameter(slot).to(y_BTD.dtype) if slot in self.targets else y_BTD


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
