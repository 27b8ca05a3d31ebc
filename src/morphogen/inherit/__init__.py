"""Weights follow the edit: plans, splices, checkpoints."""

from morphogen.modules import called_as

called_as(__name__, "morphogen.inherit.descent", "inherit")
