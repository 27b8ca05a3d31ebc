"""Operators on how a candidate is trained. They change no architecture, and are drawn only where given a weight."""

import numpy as np

from morphogen.experiment import Train
from morphogen.parts.contract.operator import train_operator


@train_operator(preserves=True)
def toggle_precision(train: Train, rng: np.random.Generator) -> Train | None:
    """Train and measure in bfloat16 (autocast) instead of float32, or the other way round."""
    return train.evolve(bf16=not train.in_bf16)
