"""morphogen evolves language-model architectures. See README.md, and `morphogen --help`.

Importing this package is cheap: torch is loaded when one of the names below is first used.

>>> import morphogen as mg
>>> experiment = mg.load("configs/live_smoke.yaml")
>>> model = mg.build(experiment.model, seed=0)
"""

import importlib
from typing import TYPE_CHECKING, Any

from morphogen.errors import MorphogenError

if TYPE_CHECKING:
    from morphogen.fusion.fused import FusionModel
    from morphogen.growth.models import grow
    from morphogen.inherit.descent import inherit
    from morphogen.keeping import Keep, Mend
    from morphogen.network import build
    from morphogen.plugins import allow_code
    from morphogen.run import Run, evolve, load
    from morphogen.variation.operator import describe_operators as operators
    from morphogen.variation.operator import edit as mutate

__version__ = "0.1.0"
__all__ = [
    "FusionModel",
    "Keep",
    "Mend",
    "MorphogenError",
    "Run",
    "allow_code",
    "build",
    "evolve",
    "grow",
    "inherit",
    "load",
    "mutate",
    "operators",
]

#: Public name -> where it is defined.
_HOMES = {
    "FusionModel": ("morphogen.fusion.fused", "FusionModel"),
    "Keep": ("morphogen.keeping", "Keep"),
    "Mend": ("morphogen.keeping", "Mend"),
    "Run": ("morphogen.run", "Run"),
    "allow_code": ("morphogen.plugins", "allow_code"),
    "build": ("morphogen.network", "build"),
    "evolve": ("morphogen.run", "evolve"),
    "grow": ("morphogen.growth.models", "grow"),
    "inherit": ("morphogen.inherit.descent", "inherit"),
    "load": ("morphogen.run", "load"),
    "mutate": ("morphogen.variation.operator", "edit"),
    "operators": ("morphogen.variation.operator", "describe_operators"),
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'morphogen' has no attribute {name!r}")
    module, attribute = _HOMES[name]
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    return [*globals(), *_HOMES]
