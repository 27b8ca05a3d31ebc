"""What the branches of a model report of themselves while it trains. Each kind of part declares its own figures."""

import statistics

from morphogen.metrics.measuring import Subject, measures

#: The mean over the last so many training steps is taken.
STEPS = 50


@measures()
def reported(subject: Subject) -> dict[str, float]:
    """Every figure that branches recorded."""
    return {name: statistics.fmean(values[-STEPS:]) for name, values in subject.recorded.items()}
