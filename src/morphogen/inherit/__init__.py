"""Weights follow the edit: plans, splices, checkpoints.

`morphogen.inherit` is this package and, called, the function `descent.inherit`: a module whose class has `__call__`.
"""

import sys
from types import ModuleType
from typing import Any


class _Called(ModuleType):
    """Passes calls on to the function, which brings torch only then."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from morphogen.inherit.descent import inherit

        return inherit(*args, **kwargs)


sys.modules[__name__].__class__ = _Called
