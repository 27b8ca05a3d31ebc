"""When operators on layers of other models are drawn."""

from collections.abc import Iterable, Mapping

from morphogen.blueprint.schema import Blueprint
from morphogen.parts.contract.operator import OPERATORS, offered
from morphogen.parts.foreign import foreign_operators
from morphogen.parts.foreign.foreign import Foreign

#: Operators that are not drawn without such layers, nor models to take them from.
NAMES = tuple(name for name, op in OPERATORS.items() if op.act.__module__ == foreign_operators.__name__)


def donor_weights(root: Blueprint | None, donors: Iterable[str], given: Mapping[str, float]) -> dict[str, float]:
    """The weights of these operators that are not `given`: 1 where there are donors, or the root has such layers, else
    as declared, 0."""
    parts = [] if root is None else [part for block in root.blocks for part in block.branches()]
    wanted = any(donors) or any(isinstance(part, Foreign) for part in parts)
    return offered(NAMES, wanted, given)
