"""Modules that are called as a function of theirs: `morphogen.evolve` and `morphogen.inherit` are both.

`import morphogen as mg; mg.evolve(...)` calls the function, `import morphogen.evolve as ev; ev.Keep(...)` finds the
module's names, whichever was imported first.
"""

import importlib
import sys
from types import ModuleType
from typing import Any


class Called(ModuleType):
    """A module that passes calls on to one function."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        home, function = self.__dict__["__called__"]
        return getattr(importlib.import_module(home), function)(*args, **kwargs)


def called_as(module: str, home: str, function: str) -> None:
    """Has the module passed on calls to `function` of module `home`, which is imported when it is called."""
    made = sys.modules[module]
    made.__dict__["__called__"] = (home, function)
    made.__class__ = Called
