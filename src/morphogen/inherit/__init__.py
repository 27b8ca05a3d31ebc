"""Weights follow the edit: plans, splices, checkpoints."""

from morphogen.inherit.descent import Inherited, Moments, inherit, splice_job
from morphogen.inherit.plan import Plan, plan
from morphogen.inherit.splice import splice

__all__ = ["Inherited", "Moments", "Plan", "inherit", "plan", "splice", "splice_job"]
