"""Which share of a GPU a candidate takes on a cluster, whose scheduler counts shares and knows nothing of memory.

Where it computes is left to the scheduler: here is what `placement` predicts and corrects, as a share of the smallest
GPU, so that it fits wherever it comes to be.
"""

import math

from morphogen.candidate import Report
from morphogen.execution.placement import Device, Floor, boundless

#: Shares are rounded up to so many parts of a GPU.
GRAIN = 100


class Shares:
    """The shares of candidates that compute at the same time. Who is known by a number.

    gpu_bytes: memory of a GPU, by node; of one at least before the first is asked for.
    """

    def __init__(self) -> None:
        self.gpu_bytes: dict[str, int] = {}
        self._floor = Floor([boundless("cluster")])

    def take(self, key: int, predicted_bytes: float) -> float:
        """The share of one that begins. predicted_bytes: as its architecture tells."""
        self._floor.add(key, predicted_bytes)
        self._floor.begin(1)
        _, need = self._floor.at_work(key)
        smallest = min(self.gpu_bytes.values())
        room_bytes = Device("smallest", None, "cuda", smallest, smallest).room_bytes
        return min(1.0, math.ceil(GRAIN * need.bytes / room_bytes) / GRAIN)

    def done(self, key: int, report: Report | None = None) -> None:
        """It computes no more. report: by which later predictions are corrected."""
        whole = report is not None and report.micro_batches == 1
        self._floor.done(key, report.timed.get("peak_memory_bytes") if report is not None and whole else None)
