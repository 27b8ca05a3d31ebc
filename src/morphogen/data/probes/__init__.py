"""Probes: sequences made on the spot that test one ability, a kind of probe a file. `probe.py` says what a kind is."""

from morphogen.data.probes.probe import DEPTHS, Asked, Kind, Probe, kind_of, scored_only

__all__ = ["DEPTHS", "Asked", "Kind", "Probe", "kind_of", "scored_only"]
