"""When operators on layers of other models are drawn."""

from collections.abc import Iterable, Mapping

from morphogen.blueprint.schema import Blueprint
from morphogen.parts.foreign.foreign import Foreign

#: Operators that are not drawn without such layers, nor models to take them from.
NAMES = (
    "insert_foreign",
    "change_foreign_source",
    "change_foreign_adapter",
    "grow_foreign_adapter",
    "change_foreign_router",
    "unfreeze_foreign",
    "drop_foreign",
)


def donor_weights(root: Blueprint | None, donors: Iterable[str], given: Mapping[str, float]) -> dict[str, float]:
    """The weights of these operators that are not `given`: 1 where there are donors, or the root has such layers, else
    as declared, 0."""
    parts = [] if root is None else [part for block in root.blocks for part in block.branches()]
    wanted = any(donors) or any(isinstance(part, Foreign) for part in parts)
    return {name: 1.0 for name in NAMES if wanted and name not in given}
