"""Recall, measured: how well a model answers the questions of the probe mqar."""

from typing import TYPE_CHECKING

from morphogen.figures import Figure
from morphogen.metrics.measuring import Subject, measures
from morphogen.metrics.probing import SEQUENCES, Answers, answers, over_lengths, probed

if TYPE_CHECKING:
    from torch import nn

    from morphogen.data.probes import Probe

__all__ = ["SEQUENCES", "recall"]


def recall(model: "nn.Module", probe: "Probe", *, batch_size: int, bf16: bool = False) -> dict[str, float]:
    """`long_recall`, `recall_nll` and `recall_chance` over `SEQUENCES` sequences of the probe.

    long_recall: the share of questions whose likeliest next token, of the whole vocabulary, is the right value: in
    each bucket of distances [2ⁿ, 2ⁿ⁺¹) between a key's two places, in tokens; then the mean over buckets, and over
    lengths where several are asked. recall_nll: the same mean of −ln p(value), in nats. recall_chance: the accuracy of
    a model that knows only which tokens are values; its nll is −ln of that. (One that knows which values a sequence
    has, but not whose, gets 1 / K.) Raises DivergedError where the loss is not finite. The model is left in the mode it
    was in.
    """
    told = {n: answers(model, probe, n, batch_size=batch_size, bf16=bf16) for n in probe.asked_at}
    return _figures(probe, told)


def _figures(probe: "Probe", told: dict[int, Answers]) -> dict[str, float]:
    return {
        "long_recall": over_lengths([one.mean(one.right_N) for one in told.values()]),
        "recall_nll": over_lengths([one.mean(one.nats_N) for one in told.values()]),
        "recall_chance": probe.chance,
    }


@measures(
    Figure(
        "long_recall",
        unit="share",
        better="max",
        sort="metric",
        needs=("mqar",),
        summary="Questions of the recall probe that are answered rightly: the mean over distances, by powers of two.",
        chance="recall_chance",
    ),
    Figure(
        "recall_nll",
        unit="nats",
        better="min",
        sort="metric",
        needs=("mqar",),
        summary="The loss at the right answer to the probe's questions, the same mean.",
    ),
    Figure(
        "recall_chance",
        unit="share",
        better="none",
        sort="metric",
        needs=("mqar",),
        summary="What `long_recall` is of a model that knows only which tokens are answers; the same for all models.",
    ),
)
def probe_recall(subject: Subject) -> dict[str, float]:
    """How well the model answers the data's probe mqar, where it has one."""
    probe = next((probe for probe in subject.prepared.probes if probe.name == "mqar"), None)
    return {} if probe is None else _figures(probe, probed(subject, probe))
