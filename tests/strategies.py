"""The shipped strategies, with the plug-in of tests/plugins.py among the kinds."""

from hypothesis import strategies as st

from morphogen.parts.mixing.custom import Custom
from morphogen.testing.strategies import MODIFIERS, PARTS, VOCAB, blueprints, experts, moes, rngs

__all__ = ["MODIFIERS", "PARTS", "VOCAB", "blueprints", "experts", "moes", "rngs"]


def customs() -> st.SearchStrategy[Custom]:
    """The plug-in of tests/plugins.py."""
    return st.builds(lambda width: Custom(name="plugins:Bottleneck", params={"width": width}), st.integers(1, 20))


PARTS["extra", "custom"] = customs
