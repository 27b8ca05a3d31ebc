"""Probes, measured: how well a model gives the scored tokens. B sequences, T tokens, K scored tokens, V vocabulary,
N scored tokens of all sequences, S sequences."""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from morphogen.data.probes import DEPTHS
from morphogen.errors import DivergedError
from morphogen.estimates import Estimate, Floats
from morphogen.figures import Figure
from morphogen.metrics.measuring import Subject, measures

if TYPE_CHECKING:
    from torch import nn

    from morphogen.data.probes import Asked, Probe

#: Every model of every run is asked the same questions, in as many sequences.
SEQUENCES = 64
#: The stream of the questions; training's streams have longer names.
_EVAL = 2


class Answers(NamedTuple):
    """Of every scored token: whether it is the likeliest of the whole vocabulary, its −ln p in nats, by which power of
    two of the distance it counts, in which part of the sequence stands what has to be known, and in which sequence."""

    right_N: NDArray[np.bool_]
    nats_N: Floats
    bucket_N: NDArray[np.int64]
    depth_N: NDArray[np.int64]
    sequence_N: NDArray[np.int64]

    def mean(self, values_N: NDArray[Any]) -> Estimate:
        """The mean over buckets of distances of their mean values, with how far every sequence pushes it."""
        _, place_N, count_K = np.unique(self.bucket_N, return_inverse=True, return_counts=True)
        mean_K = np.bincount(place_N, weights=values_N) / count_K
        pushes_N = (values_N - mean_K[place_N]) / count_K[place_N] / len(count_K)
        return Estimate(float(mean_K.mean()), np.bincount(self.sequence_N, pushes_N, SEQUENCES).astype(np.float64))

    def at(self, depth: int) -> "Answers | None":
        """Those of one part of the sequence; None where there are none."""
        here = self.depth_N == depth
        return Answers(*(values[here] for values in self)) if here.any() else None


def questions(probe: "Probe", length: int) -> "list[Asked]":
    """The sequences of a length; those of each have a stream of their own."""
    own = () if length == probe.seq_len else (length,)
    return [probe.sequence(_EVAL, number, *own, length=length) for number in range(SEQUENCES)]


def answers(model: "nn.Module", probe: "Probe", length: int, *, batch_size: int, bf16: bool = False) -> Answers:
    """What the model answers in `SEQUENCES` sequences of a length. It is left in the mode it was in.

    Raises DivergedError where the loss is not finite. batch_size: sequences of a batch of training.
    """
    import torch

    training = model.training
    model.eval()
    asked = questions(probe, length)
    size = max(1, batch_size * probe.seq_len // length) if length > probe.seq_len else batch_size
    with torch.no_grad():
        told = [one for first in range(0, SEQUENCES, size) for one in _told(model, asked[first : first + size], bf16)]
    model.train(training)
    right_N = np.concatenate([right for right, _ in told])
    nats_N = np.concatenate([nats for _, nats in told]).astype(np.float64)
    if not np.isfinite(nats_N).all():
        raise DivergedError(f"the loss on probe:{probe.name} is {nats_N.mean()} nats per question")
    at_N = np.concatenate([one.asked for one in asked])
    distance_N = np.concatenate([one.distance for one in asked])
    return Answers(
        right_N,
        nats_N,
        np.array([distance.bit_length() for distance in distance_N.tolist()]),
        np.clip((at_N - distance_N) * len(DEPTHS) // length, 0, len(DEPTHS) - 1),
        np.repeat(np.arange(SEQUENCES), [len(one.asked) for one in asked]),
    )


def _told(model: "nn.Module", asked: "list[Asked]", bf16: bool) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    """Of each sequence whether its scored tokens are right, and their nats."""
    import torch
    from torch.nn import functional as F

    device = next(model.parameters()).device
    ids_BT = torch.from_numpy(np.stack([one.ids[:-1] for one in asked])).to(device)
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        logits_BTV = model(ids_BT)
    for row, one in enumerate(asked):
        logits_KV = logits_BTV[row, torch.from_numpy(one.asked).to(device)].float()
        targets_K = torch.from_numpy(one.ids[one.asked + 1]).to(device)
        right_K = logits_KV.argmax(-1) == targets_K
        yield right_K.cpu().numpy(), F.cross_entropy(logits_KV, targets_K, reduction="none").cpu().numpy()


def over_lengths(found: list[Estimate]) -> Estimate:
    """The mean over lengths, which are asked of sequences of their own."""
    return Estimate(float(np.mean(found)), np.concatenate([one.influence_U / len(found) for one in found]))


def figures_of(probe: "Probe", told: dict[int, Answers]) -> dict[str, float]:
    """Accuracy, loss and chance of one probe; accuracy by length and by depth."""
    label = probe.label
    found: dict[str, float] = {
        f"acc_{label}": over_lengths([one.mean(one.right_N) for one in told.values()]),
        f"nll_{label}": over_lengths([one.mean(one.nats_N) for one in told.values()]),
        f"chance_{label}": probe.chance,
    }
    for length, one in told.items():
        found[f"acc_{label}_len_{length}"] = one.mean(one.right_N)
        for depth, percent in enumerate(DEPTHS) if probe.kind.deep else ():
            if (part := one.at(depth)) is not None:
                found[f"acc_{label}_len_{length}_depth_{percent}"] = part.mean(part.right_N)
    if probe.kind.perplexity:
        nats = found[f"nll_{label}"]
        assert isinstance(nats, Estimate)
        ppl = math.exp(min(nats, 700.0))
        found[probe.kind.perplexity] = Estimate(ppl, ppl * nats.influence_U)
    return found


def probed(subject: Subject, probe: "Probe") -> dict[int, Answers]:
    """Length -> what the model answers; once for all metrics that ask."""
    size = subject.prepared.batch_size
    if probe.label not in subject.answered:
        subject.answered[probe.label] = {
            length: answers(subject.model, probe, length, batch_size=size, bf16=subject.bf16)
            for length in probe.asked_at
        }
    return subject.answered[probe.label]


_OF = "of the scored tokens of a probe, the mean over distances by powers of two, and over its lengths"


@measures(
    Figure(
        "acc_<probe>",
        unit="share",
        better="max",
        sort="metric",
        needs=("probe",),
        summary=f"Share {_OF}, that are the likeliest of the whole vocabulary.",
        chance="chance_<probe>",
    ),
    Figure(
        "nll_<probe>",
        unit="nats",
        better="min",
        sort="metric",
        needs=("probe",),
        summary=f"The loss {_OF}.",
    ),
    Figure(
        "chance_<probe>",
        unit="share",
        better="none",
        sort="metric",
        needs=("probe",),
        summary="What `acc_<probe>` is of a model that knows only which tokens may be answers; the same for all.",
    ),
    Figure(
        "acc_<probe>_len_<length>",
        unit="share",
        better="max",
        sort="metric",
        needs=("probe",),
        summary="`acc_<probe>` in sequences of that length.",
        chance="chance_<probe>",
    ),
    Figure(
        "acc_<probe>_len_<length>_depth_<depth>",
        unit="share",
        better="max",
        sort="metric",
        needs=("probe",),
        summary="The same where what has to be known stands in the fifth of the sequence from so many percent on.",
        chance="chance_<probe>",
    ),
    Figure(
        "ppl_math",
        unit="perplexity",
        better="min",
        sort="metric",
        needs=("math",),
        summary="exp of `nll_<probe>` of the probe math: of the digits of generated sums.",
    ),
)
def probes(subject: Subject) -> dict[str, float]:
    """How well the model answers the data's probes, but for what `recall` says of mqar."""
    found: dict[str, float] = {}
    for probe in subject.prepared.probes:
        found |= figures_of(probe, probed(subject, probe))
    return found
