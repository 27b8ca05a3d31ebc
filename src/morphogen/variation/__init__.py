"""Edits and crossovers, and what a run learns of them. Called by the search.

Importing this package imports every module of it, by which the operators that stand in it are registered.
"""

import importlib
import pkgutil

for _module in pkgutil.iter_modules(__path__, f"{__name__}."):
    importlib.import_module(_module.name)
