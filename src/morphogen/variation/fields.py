"""Fields of one's own choice in the one part that an operator has put in or changed."""

from collections.abc import Mapping
from typing import NamedTuple

from pydantic import JsonValue, ValidationError

from morphogen.blueprint.record import recorded
from morphogen.blueprint.schema import Block, Blueprint
from morphogen.errors import InputError, unknown
from morphogen.parts.contract.part import Part


class Made(NamedTuple):
    """A part or recurrence that an edit has put in or changed. position, path: where it stands; path is None for a
    recurrence."""

    position: int
    path: str | None
    part: Part


def made_parts(before: Blueprint, child: Blueprint) -> list[Made]:
    """Every part and recurrence that `child` has and `before` has not."""
    old_parts = {(block.id, path): part for block in before.blocks for _, path, part in block.parts()}
    parts = [
        Made(i, path, part)
        for i, block in enumerate(child.blocks)
        for _, path, part in block.parts()
        if old_parts.get((block.id, path)) != part
    ]
    loops = [Made(i, None, loop) for i, loop in enumerate(child.recurrences) if loop not in before.recurrences]
    return parts + loops


def with_fields(before: Blueprint, child: Blueprint, fields: Mapping[str, JsonValue]) -> Blueprint | None:
    """The child with `fields` in the one part or recurrence that it has and `before` has not; None where that fails."""
    found = made_parts(before, child)
    if len(found) != 1:
        return None
    position, path, part = found[0]
    try:
        made = type(part).model_validate(_laid_over(part, fields))
    except ValidationError:
        return None
    if made == part:
        return child
    if path is None:
        loops = tuple(made if i == position else other for i, other in enumerate(child.recurrences))
        return child.evolve(recurrences=loops)
    block = with_part(child.blocks[position], path, made)
    return None if block is None else with_block(child, position, block)


def check_fields(before: Blueprint, child: Blueprint, fields: Mapping[str, JsonValue]) -> None:
    """InputError with the field, what was found and what is allowed, where `with_fields` has no child because of
    one."""
    found = made_parts(before, child)
    if len(found) != 1:
        raise InputError(f"set: {len(found)} parts are put in or changed, expected the one whose fields could be set")
    part = found[0].part
    for name in fields:
        if name not in type(part).names():
            raise InputError(unknown(f"set.{name}", name, type(part).names()))
    recorded(type(part), _laid_over(part, fields), "set")


def _laid_over(part: Part, fields: Mapping[str, JsonValue]) -> dict[str, object]:
    own = type(part).names()
    return {**dict(part), **{own.get(name, name): value for name, value in fields.items()}}


def with_block(blueprint: Blueprint, position: int, block: Block) -> Blueprint | None:
    """The blueprint with another block at a position; None where that is not valid."""
    blocks = list(blueprint.blocks)
    blocks[position] = block
    return blueprint.evolve(blocks=tuple(blocks))


def with_part(block: Block, path: str, part: Part) -> Block | None:
    """The block with another part at a path, such as `ffn` or `extras.0`; None where that is not valid."""
    slot, _, number = path.partition(".")
    if not number:
        return block.evolve(**{slot: part})
    extras = list(block.extras)
    extras[int(number)] = part
    return block.evolve(extras=tuple(extras))
