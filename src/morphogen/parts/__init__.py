"""The kinds of parts, a folder for each slot. Importing this package registers them all, and loads no torch.

Every module below is imported but for those that hold torch modules: `contract` has its own, a kind has
`<its file>_layer.py`, imported when something is built.
"""

import importlib
import pkgutil
from collections.abc import Iterator


def _descriptions() -> Iterator[str]:
    """The modules that may define a kind, in order of name."""
    for slot in pkgutil.iter_modules(__path__, f"{__name__}."):
        if slot.ispkg and not slot.name.endswith(".contract"):
            folder = importlib.import_module(slot.name)
            names = (module.name for module in pkgutil.iter_modules(folder.__path__, f"{slot.name}."))
            yield from (name for name in names if not name.endswith("_layer"))


for _name in _descriptions():
    importlib.import_module(_name)
