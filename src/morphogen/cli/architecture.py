"""An architecture in a few words, as `status` and `train` show it."""

from collections.abc import Mapping
from typing import Any

from morphogen.blueprint.schema import Blueprint
from morphogen.blueprint.tensors import parameter_count
from morphogen.growth.morphogenesis import experts_of
from morphogen.report.wording import number


def size_of(blueprint: Blueprint) -> dict[str, Any]:
    """Parameters, layers, channels, and the experts of every layer, 0 where it has no mixture."""
    experts = experts_of(blueprint)
    return {
        "params": parameter_count(blueprint),
        "layers": len(blueprint.blocks),
        "dim": blueprint.emb.dim,
        "experts_per_layer": [experts.get(block.id, 0) for block in blueprint.blocks],
    }


def in_words(size: Mapping[str, Any]) -> str:
    """The same in a line."""
    experts = size["experts_per_layer"]
    mixtures = f", experts per layer {' '.join(map(str, experts))}" if any(experts) else ""
    return f"{number(size['params'])} parameters, {size['layers']} layers, dim {size['dim']}{mixtures}"
