"""Actions of growth on blueprints: what an architecture becomes, as data, and whether exactly. No torch."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from morphogen.blueprint.diff import changes
from morphogen.blueprint.growth import GrowthAction
from morphogen.blueprint.schema import Blueprint
from morphogen.candidate import Edit
from morphogen.inherit.plan import plan
from morphogen.parts.contract.alignment import AxisMap
from morphogen.variation.making import NOBODY, UNKNOWN, Chosen, Used, make


class Grown(NamedTuple):
    """What an architecture became.

    edit: its operator is the action's name; `preserves`: whether the grown model computes the same function. takes:
    `<gene key>/<axis>` -> which of the parent's units go where, as `inherit.plan.plan` has them. stacked: ids of new
    blocks whose output projections are copied too.
    """

    blueprint: Blueprint
    edit: Edit
    takes: Mapping[str, AxisMap] = MappingProxyType({})
    stacked: tuple[str, ...] = ()


def act(
    blueprint: Blueprint,
    action: GrowthAction,
    rng: np.random.Generator,
    chosen: Chosen = NOBODY,
    used: Used = UNKNOWN,
) -> Grown | None:
    """What `action` makes of a blueprint; None where there is nothing to do, as where the model is at its limit.

    rng, chosen, used: as `variation.making.make` has them.
    """
    made = make(blueprint, action, rng, chosen, used)
    if made is None or made.blueprint is None:
        return None
    nominal = made.blueprint.nominal
    drawn = plan(nominal, [blueprint.nominal], takes=made.takes, stacked=made.stacked)
    edit = Edit(
        operator=action.action,
        target=", ".join(f"blocks[{block}]" for block in made.blocks) or "model",
        preserves=drawn.exact and made.blueprint != blueprint,
        changes=changes(blueprint, made.blueprint),
    )
    return Grown(made.blueprint, edit, made.takes, made.stacked)
