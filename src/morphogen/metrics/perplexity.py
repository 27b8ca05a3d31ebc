"""Held-out loss. B sequences, T targets of a sequence (T1 is T + 1 tokens), N = B·T, V vocabulary."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from morphogen.data.spelling import Ids
from morphogen.errors import DivergedError, InputError
from morphogen.estimates import Estimate, Floats, mean, ratio, summed
from morphogen.figures import Figure, declare
from morphogen.metrics.measuring import Subject, measures

if TYPE_CHECKING:
    from torch import nn

    from morphogen.data.mixture import EvalBatch, Mixture

#: Batches per shard on which a child is measured right after the splice (`bpb_inherited`). Every measurement gives its
#: figure on these very batches too (`bpb_sample`), of the weights that children inherit, which are not averaged: the
#: jump is the child's bpb_inherited − its parent's bpb_sample.
SAMPLE_BATCHES = 2

#: exp of more than this is no longer a float64.
_MOST_NATS = 700.0


class Parts(NamedTuple):
    """Sums over pieces of parts of a text: which part each is of, and its nats, target tokens and bytes."""

    part_P: Ids
    nats_P: Floats
    tokens_P: Floats
    bytes_P: Floats

    def __or__(self, other: "Parts") -> "Parts":
        return Parts(
            np.concatenate([self.part_P, other.part_P]),
            np.concatenate([self.nats_P, other.nats_P]),
            np.concatenate([self.tokens_P, other.tokens_P]),
            np.concatenate([self.bytes_P, other.bytes_P]),
        )

    def merged(self) -> "Parts":
        """One piece of each part."""
        part_U, place_P = np.unique(self.part_P, return_inverse=True)
        nats_U, tokens_U, bytes_U = (summed(sums_P, place_P) for sums_P in (self.nats_P, self.tokens_P, self.bytes_P))
        return Parts(part_U, nats_U, tokens_U, bytes_U)


@dataclass(frozen=True)
class Score:
    """Summed loss over held-out text: nats, over how many target tokens, that stand for how many bytes; of each of its
    parts too, where these are known."""

    nats: float
    tokens: int
    n_bytes: int
    parts: Parts | None = field(default=None, compare=False)

    def __add__(self, other: "Score") -> "Score":
        parts = None if self.parts is None or other.parts is None else self.parts | other.parts
        return Score(self.nats + other.nats, self.tokens + other.tokens, self.n_bytes + other.n_bytes, parts)

    @property
    def ppl(self) -> float:
        """exp(nats per token). DivergedError where that is not a number."""
        mean = self.nats / self.tokens
        if not mean < _MOST_NATS:
            raise DivergedError(f"held-out loss is {mean} nats per token, which gives no perplexity")
        value = math.exp(mean)
        if self.parts is None:
            return value
        parts = self.parts.merged()
        return Estimate(value, value * ratio(parts.nats_P, parts.tokens_P).influence_U)

    @property
    def bpb(self) -> float:
        """Bits per byte of text."""
        value = self.nats / math.log(2.0) / self.n_bytes
        if self.parts is None:
            return value
        parts = self.parts.merged()
        return Estimate(value, ratio(parts.nats_P, parts.bytes_P).influence_U / math.log(2.0))


def score_batches(model: "nn.Module", batches: "Iterable[EvalBatch]", *, bf16: bool = False) -> list[Score]:
    """One score per batch; the model is left in the mode it was in. Losses are in fp32 at least, also under bf16."""
    import torch
    from torch.nn import functional as F

    device = next(model.parameters()).device
    nats, each, scored = [], [], []
    training = model.training
    model.eval()
    # no_grad, not inference_mode: tables that parts cache on first use must still serve in training
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        for batch in batches:
            on_device_BT1 = torch.from_numpy(batch.ids).to(device, non_blocking=True)
            logits_BTV = model(on_device_BT1[:, :-1])
            logits_NV = logits_BTV.flatten(0, 1).to(torch.promote_types(logits_BTV.dtype, torch.float32))
            logp_NV, target_N = F.log_softmax(logits_NV, -1), on_device_BT1[:, 1:].flatten()
            nats.append(F.nll_loss(logp_NV, target_N, reduction="sum"))
            each.append(F.nll_loss(logp_NV, target_N, reduction="none"))
            scored.append(batch)
    model.train(training)
    sums = torch.stack(nats).double().tolist() if nats else []
    return [
        Score(total, batch.ids[:, 1:].size, batch.n_bytes, _parts(batch, nats_N.double().cpu().numpy()))
        for total, nats_N, batch in zip(sums, each, scored, strict=True)
    ]


def _parts(batch: "EvalBatch", nats_N: Floats) -> Parts | None:
    """Of one batch, whose targets cost so many nats."""
    if batch.part_BT is None or batch.n_bytes_BT is None:
        return None
    return Parts(
        batch.part_BT.ravel(), nats_N, np.ones_like(nats_N), batch.n_bytes_BT.ravel().astype(np.float64)
    ).merged()


def held_out(
    model: "nn.Module",
    mixture: "Mixture",
    eval_tokens: int,
    *,
    limit_batches: int | None = None,
    split: Literal["eval", "test"] = "eval",
    bf16: bool = False,
) -> dict[str, list[Score]]:
    """Shard -> a score per batch, over the first `eval_tokens` of each measured shard. InputError where none is."""
    scores = {}
    for shard in mixture.prepared.eval_shards:
        batches = mixture.eval_batches(shard.name, eval_tokens, limit_batches, split)
        scores[shard.name] = score_batches(model, batches, bf16=bf16)
        if not scores[shard.name]:
            raise InputError(f"eval shard {shard.name!r}: got 0 batches of its {split} split, expected at least one")
    return scores


def shard_metrics(scores: Mapping[str, Sequence[Score]], weights: Mapping[str, float]) -> dict[str, float]:
    """`ppl_<shard>` and `bpb_<shard>`, and their means over shards by `weights`, `ppl` and `bpb`.

    Raises InputError for a shard without a score, DivergedError for a loss that is not finite.
    """
    metrics: dict[str, float] = {}
    for shard, parts in scores.items():
        if not parts:
            raise InputError(f"eval shard {shard!r}: got 0 batches, expected at least one")
        whole = sum(parts[1:], parts[0])
        metrics[f"ppl_{shard}"], metrics[f"bpb_{shard}"] = whole.ppl, whole.bpb
    for kind in ("ppl", "bpb"):
        metrics[kind] = mean({shard: metrics[f"{kind}_{shard}"] for shard in scores}, weights)
    return metrics


def evaluate(
    model: "nn.Module",
    mixture: "Mixture",
    eval_tokens: int,
    *,
    limit_batches: int | None = None,
    split: Literal["eval", "test"] = "eval",
    bf16: bool = False,
) -> dict[str, float]:
    """`held_out` as metrics: what a trained model is measured by."""
    scores = held_out(model, mixture, eval_tokens, limit_batches=limit_batches, split=split, bf16=bf16)
    return shard_metrics(scores, mixture.prepared.eval_weights)


def sample_bpb(scores: Mapping[str, Sequence[Score]], weights: Mapping[str, float]) -> float:
    """Bits per byte over the first `SAMPLE_BATCHES` batches of every shard."""
    return shard_metrics({shard: parts[:SAMPLE_BATCHES] for shard, parts in scores.items()}, weights)["bpb"]


declare(
    Figure(
        "bpb_inherited",
        unit="bits/byte",
        better="min",
        sort="search",
        needs=("weights",),
        summary="Held-out loss right after the splice, before any training, on the batches of `bpb_sample`; of "
        "children that inherit weights.",
    ),
    Figure(
        "bpb_annealed",
        unit="bits/byte",
        better="min",
        sort="search",
        summary="`bpb` of a finalist after its rate was brought down to zero over `evolution.anneal_tokens`.",
    ),
    Figure(
        "bpb_sample",
        unit="bits/byte",
        better="min",
        sort="metric",
        summary=f"`bpb` on the first {SAMPLE_BATCHES} batches of every shard of the weights that children inherit, not "
        "of their average, for `bpb_inherited` of a child.",
    ),
)


@measures(
    Figure(
        "bpb",
        unit="bits/byte",
        better="min",
        sort="metric",
        summary="Held-out loss per byte of text, the mean over the measured shards by their weights.",
    ),
    Figure("bpb_<shard>", unit="bits/byte", better="min", sort="metric", summary="The same of one measured shard."),
    Figure(
        "ppl",
        unit="perplexity",
        better="min",
        sort="metric",
        summary="exp of the held-out loss per token, the mean over the measured shards by their weights; compares only "
        "models of one tokenizer.",
    ),
    Figure("ppl_<shard>", unit="perplexity", better="min", sort="metric", summary="The same of one measured shard."),
)
def perplexity(subject: Subject) -> dict[str, float]:
    """Over the held-out text."""
    return shard_metrics(subject.scores, subject.prepared.eval_weights)
