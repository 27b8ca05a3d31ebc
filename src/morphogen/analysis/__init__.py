"""Trainings from scratch that tell whether a search found anything. Called by `morphogen verify` and `fidelity`."""
