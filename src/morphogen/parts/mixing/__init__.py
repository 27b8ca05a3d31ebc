"""Extras that mix tokens or the block's branches, and plug-ins."""
