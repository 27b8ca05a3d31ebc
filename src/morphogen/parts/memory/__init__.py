"""Extras that read or write a memory of the past."""
