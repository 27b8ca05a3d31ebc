"""Batches of a text of bytes, for benchmarks that train models of bytes. Not a benchmark itself: it does nothing."""

import numpy as np
import torch
from numpy.typing import NDArray

from morphogen.network import LanguageModel

#: Sequences of a batch, and of the one that is held out.
BATCH, HELD = 8, 64


def batch(length: int, text: NDArray[np.int64], seed: int, step: int, size: int = BATCH) -> NDArray[np.int64]:
    """Sequences of `length` + 1 bytes of the first nine tenths of a text; with step −1 of the rest, whatever the seed
    of a training is."""
    cut = len(text) * 9 // 10
    low, high = (cut, len(text) - length - 1) if step < 0 else (0, cut - length - 1)
    starts_B = np.random.default_rng((seed, step + 1)).integers(low, high, size=size)
    return text[starts_B[:, None] + np.arange(length + 1)]


@torch.no_grad()
def held_out(length: int, model: LanguageModel, text: NDArray[np.int64]) -> float:
    """Loss on the held-out part, in nats per byte."""
    ids_BT1 = torch.from_numpy(batch(length, text, 0, -1, HELD))
    mode = model.training
    logits_BTV = model.eval()(ids_BT1[:, :-1])
    model.train(mode)
    return float(torch.nn.functional.cross_entropy(logits_BTV.flatten(0, 1), ids_BT1[:, 1:].flatten()))
