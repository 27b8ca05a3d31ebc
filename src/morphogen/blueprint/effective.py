"""What of a blueprint shows in sequences of a run's length. Called by variation: an edit of the rest is none."""

from typing import TypeVar

from morphogen.blueprint.schema import Block, Blueprint
from morphogen.errors import InputError, anybodys
from morphogen.parts.contract.frozen import remembered
from morphogen.parts.contract.part import Context, Part

P = TypeVar("P", bound=Part)


@remembered
def effective(blueprint: Blueprint, seq_len: int) -> Blueprint:
    """The plainest blueprint that no sequence of at most `seq_len` tokens tells from this one, for comparing.

    Its weights are among those of the blueprint: parts that read nothing at that length are gone, even where a block is
    left with none.
    """
    ctx = blueprint.nominal.context(seq_len)
    blocks = tuple(_block(block, ctx) for block in blueprint.blocks)
    loops = tuple(loop.within(ctx) for loop in blueprint.recurrences)
    return blueprint.model_copy(update={"blocks": blocks, "recurrences": loops})


def _block(block: Block, ctx: Context) -> Block:
    """Every part as it is at that length; one branch alone is not parallel."""
    slots = {"attn": block.attn, "ssm": block.ssm, "ffn": block.ffn}
    parts = {slot: part and _within(part, ctx) for slot, part in slots.items()}
    extras = tuple(found for extra in block.extras if (found := _within(extra, ctx)) is not None)
    made = block.model_copy(update={**parts, "extras": extras})
    return made.model_copy(update={"parallel": block.parallel and len(made.branches()) > 1})


def _within(part: P, ctx: Context) -> P | None:
    with anybodys(f"{type(part).__name__}: what it is at {ctx.seq_len} tokens", InputError):
        return part.within(ctx)
