"""Weights follow the edit: plans, splices, checkpoints."""

from morphogen.inherit.plan import Plan, plan
from morphogen.inherit.splice import inherit, splice, splice_job

__all__ = ["Plan", "inherit", "plan", "splice", "splice_job"]
