"""Kinds for the slot `ffn`: feed-forward layers and mixtures of experts."""
