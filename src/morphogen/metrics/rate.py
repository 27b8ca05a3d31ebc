"""The learning rate of a run that looks for one; training/range_test.py finds it."""

from morphogen.experiment import RATE_FOUND
from morphogen.figures import Figure, declare

declare(
    Figure(
        RATE_FOUND,
        unit="1",
        better="none",
        sort="search",
        summary="What `train.lr: auto` found; of the root, among whose FLOPs the trainings count that it took.",
    )
)
