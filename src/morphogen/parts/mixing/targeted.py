"""What the extras have in common that act on the outputs of a block's branches: their targets."""

from typing import Annotated, ClassVar, Literal, Self, TypeVar, get_args

import numpy as np
from pydantic import Field, model_validator

from morphogen.parts.contract.operator import BlockLike, BlockT, pick
from morphogen.parts.contract.part import Context, Cost, Modifier

Target = Literal["attn", "ssm", "extra", "ffn"]
SLOTS: tuple[Target, ...] = get_args(Target)


class Targeted(Modifier):
    """A modifier of the branches that it names."""

    slot: ClassVar = "extra"

    targets: Annotated[tuple[Target, ...], Field(min_length=1)] = ("attn", "ffn")
    """Branches of the block that are scaled, by slot."""

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        if len(set(self.targets)) < len(self.targets):
            raise ValueError(f"targets name a branch twice: {', '.join(self.targets)}")
        return self

    def acts_on(self) -> tuple[str, ...]:
        """The targets."""
        return self.targets

    def scaling(self, ctx: Context) -> Cost:
        """One multiplication per channel and target."""
        products = float(ctx.dim * len(self.targets))
        return Cost(flops=products, elementwise=products)


# --------------------------------------------------------------------------------------------------- edits

TargetedT = TypeVar("TargetedT", bound=Targeted)


def present(block: BlockLike) -> tuple[Target, ...]:
    """The block's slots that hold a branch."""
    named: tuple[tuple[Target, bool], ...] = (
        ("attn", block.attn is not None),
        ("ssm", block.ssm is not None),
        ("ffn", block.ffn is not None),
        ("extra", any(not isinstance(extra, Modifier) for extra in block.extras)),
    )
    return tuple(slot for slot, filled in named if filled)


def fewer_targets(part: TargetedT, rng: np.random.Generator) -> TargetedT | None:
    """Without one of several targets."""
    gone = pick(rng, part.targets)
    return part.evolve(targets=tuple(target for target in part.targets if target != gone))


def without(block: BlockT, kind: type[Modifier]) -> BlockT | None:
    """The block without its modifiers of a class; None where it has none."""
    return block.evolve(extras=tuple(extra for extra in block.extras if not isinstance(extra, kind)))


def holds(block: BlockLike, kind: type[Modifier]) -> bool:
    """Whether the block has a modifier of a class."""
    return any(isinstance(extra, kind) for extra in block.extras)
