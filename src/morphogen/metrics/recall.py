"""Recall, measured: how well a model answers the questions of a probe. B sequences, T tokens, K pairs, V vocabulary."""

import math
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from morphogen.errors import DivergedError
from morphogen.estimates import Estimate, Floats
from morphogen.figures import Figure
from morphogen.metrics.measuring import Subject, measures

if TYPE_CHECKING:
    from torch import nn

    from morphogen.data.probes import Probe

#: Every model of every run is asked the same questions, in as many sequences.
SEQUENCES = 64
#: The stream of the questions; training's streams have longer names.
_EVAL = 2


def recall(model: "nn.Module", probe: "Probe", *, batch_size: int, bf16: bool = False) -> dict[str, float]:
    """`long_recall`, `recall_nll` and `recall_chance` over `SEQUENCES` sequences of the probe.

    long_recall: the share of questions whose likeliest next token, of the whole vocabulary, is the right value: in
    each bucket of distances [2ⁿ, 2ⁿ⁺¹) between a key's two places, in tokens; then the mean over buckets.
    recall_nll: the same mean of −ln p(value), in nats. recall_chance: the accuracy of a model that knows only which
    tokens are values; its nll is −ln of that. (One that knows which values a sequence has, but not whose, gets 1 / K.)
    Raises DivergedError where the loss is not finite. The model is left in the mode it was in.
    """
    import torch
    from torch.nn import functional as F

    device = next(model.parameters()).device
    training = model.training
    model.eval()
    questions = [probe.sequence(_EVAL, number) for number in range(SEQUENCES)]
    right, nats = [], []
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        for first in range(0, SEQUENCES, batch_size):
            chosen = questions[first : first + batch_size]
            ids_BT = torch.from_numpy(np.stack([one.ids[:-1] for one in chosen])).to(device)
            asked_BK = torch.from_numpy(np.stack([one.asked for one in chosen])).to(device)
            values_BK = torch.from_numpy(np.stack([one.ids[one.asked + 1] for one in chosen])).to(device)
            logits_BTV = model(ids_BT)
            logits_NV = logits_BTV[torch.arange(len(chosen), device=device)[:, None], asked_BK].flatten(0, 1).float()
            right.append(logits_NV.argmax(-1) == values_BK.flatten())
            nats.append(F.cross_entropy(logits_NV, values_BK.flatten(), reduction="none"))
    model.train(training)
    buckets: defaultdict[int, list[tuple[float, float]]] = defaultdict(list)
    distances = np.concatenate([one.distance for one in questions]).tolist()
    answers = zip(distances, torch.cat(right).tolist(), torch.cat(nats).tolist(), strict=True)
    for distance, is_right, nll in answers:
        buckets[distance.bit_length()].append((float(is_right), nll))
    accuracy, loss = np.mean([np.mean(bucket, axis=0) for bucket in buckets.values()], axis=0).tolist()
    if not math.isfinite(loss):
        raise DivergedError(f"the loss on probe:mqar is {loss} nats per question")
    bucket_N = np.array([distance.bit_length() for distance in distances])
    right_N, nats_N = torch.cat(right).cpu().numpy(), torch.cat(nats).cpu().numpy()
    return {
        "long_recall": Estimate(accuracy, _influence(right_N, bucket_N)),
        "recall_nll": Estimate(loss, _influence(nats_N, bucket_N)),
        "recall_chance": probe.chance,
    }


def _influence(values_N: NDArray[Any], bucket_N: NDArray[np.int64]) -> Floats:
    """How far every sequence pushes the mean over buckets of their mean values; N questions, as many a sequence."""
    _, place_N, count_K = np.unique(bucket_N, return_inverse=True, return_counts=True)
    mean_K = np.bincount(place_N, weights=values_N) / count_K
    pushes_N = (values_N - mean_K[place_N]) / count_K[place_N] / len(count_K)
    return np.asarray(pushes_N.reshape(SEQUENCES, -1).sum(axis=1), dtype=np.float64)


@measures(
    Figure(
        "long_recall",
        unit="share",
        better="max",
        sort="metric",
        needs=("probe",),
        summary="Questions of the recall probe that are answered rightly: the mean over distances, by powers of two.",
        chance="recall_chance",
    ),
    Figure(
        "recall_nll",
        unit="nats",
        better="min",
        sort="metric",
        needs=("probe",),
        summary="The loss at the right answer to the probe's questions, the same mean.",
    ),
    Figure(
        "recall_chance",
        unit="share",
        better="none",
        sort="metric",
        needs=("probe",),
        summary="What `long_recall` is of a model that knows only which tokens are answers; the same for all models.",
    ),
)
def probe_recall(subject: Subject) -> dict[str, float]:
    """How well the model answers the data's probe, where it has one."""
    prepared = subject.prepared
    if prepared.probe is None:
        return {}
    return recall(subject.model, prepared.probe, batch_size=prepared.batch_size, bf16=subject.bf16)
