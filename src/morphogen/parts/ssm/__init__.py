"""Kinds for the slot `ssm`: state-space layers."""
