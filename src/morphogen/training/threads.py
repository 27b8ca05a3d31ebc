"""How many threads torch computes with: a run, its workers and trainings beside it all have the same."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def default_threads() -> int:
    """Threads that torch computes with: one, unless OMP_NUM_THREADS says otherwise.

    One is what every worker of a pool has, and how sums are split over threads changes their last bits. On a machine
    that others use too, two threads took 2 to 9 times as long as one for models of this size.
    """
    return torch.get_num_threads() if "OMP_NUM_THREADS" in os.environ else 1


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Torch computes with `count` threads meanwhile."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
