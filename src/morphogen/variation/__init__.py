"""Edits and crossovers, and what a run learns of them. Called by the search."""
