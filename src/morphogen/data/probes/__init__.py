"""Probes: sequences made on the spot that test one ability, a kind of probe a file. `probe.py` says what a kind is."""

from morphogen.data.probes.probe import Asked, Kind, Probe, scored_only

__all__ = ["Asked", "Kind", "Probe", "scored_only"]
