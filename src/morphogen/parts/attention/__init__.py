"""Kinds for the slot `attn`, and what they share."""
