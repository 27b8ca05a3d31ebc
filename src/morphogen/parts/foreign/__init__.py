"""Layers of other trained models as branches of a block."""
