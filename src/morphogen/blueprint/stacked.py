"""The blocks of several blueprints one after another, as `passthrough` merges and crossings stack models."""

from collections.abc import Sequence
from typing import NamedTuple

from morphogen.blueprint.schema import Block, Blueprint
from morphogen.errors import InputError


class Stacked(NamedTuple):
    """The blueprint, and of each of its blocks which model it comes from and where it stands there."""

    blueprint: Blueprint
    places: tuple[tuple[int, int], ...]


def stacked(blueprints: Sequence[Blueprint], ids: Sequence[str] | None = None) -> Stacked:
    """The blocks of all in order; embedding, norm, head and growth rules are the first's. A gene's second time is a new
    gene that names it as its origin.

    ids: of all blocks, in order; None: those that they have, and after these for a second time. InputError where widths
    or norms differ, one has recurrences, or there is another number of ids.
    """
    first, blocks, places = blueprints[0], list[Block](), list[tuple[int, int]]()
    if ids is None:
        ids = _names([block for blueprint in blueprints for block in blueprint.blocks])
    if len(ids) != sum(len(blueprint.blocks) for blueprint in blueprints):
        raise InputError(f"merge: got {len(ids)} ids for {sum(len(b.blocks) for b in blueprints)} blocks")
    for number, blueprint in enumerate(blueprints, start=1):
        if (blueprint.emb.dim, blueprint.norm) != (first.emb.dim, first.norm):
            raise InputError(
                f"merge: model {number} has width {blueprint.emb.dim} and {blueprint.norm}, the first {first.emb.dim} "
                f"and {first.norm}; passthrough needs them equal"
            )
        if blueprint.recurrences:
            raise InputError(f"merge: model {number} has recurrences, whose places passthrough cannot keep")
        for i, block in enumerate(blueprint.blocks):
            id = ids[len(blocks)]
            again = {"id": id, "origin": block.id} if id != block.id else {}
            blocks.append(block.model_copy(update=again))
            places.append((number - 1, i))
    made = {**first.to_json(), "blocks": [block.model_dump(mode="json") for block in blocks]}
    return Stacked(Blueprint.model_validate(made), tuple(places))


def _names(blocks: Sequence[Block]) -> list[str]:
    """Their ids; of a gene's second time its own, and a number."""
    found: list[str] = []
    for block in blocks:
        renamed = next(name for k in range(10**9) if (name := f"{block.id}_{k}") not in found)
        found.append(renamed if block.id in found else block.id)
    return found
