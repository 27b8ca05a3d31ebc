"""Weights follow the edit: plans, splices, checkpoints."""
