"""Weights follow the edit: plans, splices, checkpoints.

`morphogen.inherit` is this package and, called, the function `descent.inherit`: a module whose class has `__call__`.
"""

import importlib
import inspect
import sys
from types import ModuleType
from typing import Any


class _Called(ModuleType):
    """Passes calls on to the function, which brings torch only then."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from morphogen.inherit.descent import inherit

        return inherit(*args, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        return importlib.import_module, (__name__,)

    @property
    def __signature__(self) -> inspect.Signature:
        from morphogen.inherit.descent import inherit

        return inspect.signature(inherit)


sys.modules[__name__].__class__ = _Called
