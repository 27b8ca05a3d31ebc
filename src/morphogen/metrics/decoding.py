"""Decoding, measured: how fast tokens come, how large the cache is that they need, and what it loses.

B batch, T tokens (T1 is T + 1), S of them decoded, V vocabulary
"""

import math
import statistics
import time
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from morphogen.data.spelling import Ids
from morphogen.estimates import Estimate, Floats, ratio
from morphogen.figures import Figure
from morphogen.metrics.measuring import Subject, measures
from morphogen.metrics.perplexity import Parts

if TYPE_CHECKING:
    from torch import Tensor

    from morphogen.network import LanguageModel

#: Tokens decoded one by one when decoding is measured: enough for a median, some milliseconds each.
DECODED_TOKENS = 16
#: Bits per byte between decoding and one pass that are rounding.
ROUNDING = 1e-4


class Decoding(NamedTuple):
    """tokens_per_second: decoded one by one, all sequences together, at the median step. kv_bytes: of the real cache
    (growing and fixed parts, in the dtypes they are held in), per token and sequence, at the end."""

    tokens_per_second: float
    kv_bytes: float


def measure_decoding(model: "LanguageModel", ids_BT: "Tensor", steps: int, *, bf16: bool = False) -> Decoding:
    """Feed all but the last `steps` tokens at once, then those one by one, each step timed.

    The model is left in the mode it was in. Raises ValueError where `steps` is not 1 to T - 1.
    """
    import torch

    from morphogen.network import Cache, cache_bytes

    if not 1 <= steps < ids_BT.shape[1]:
        raise ValueError(f"got {steps} steps over {ids_BT.shape[1]} tokens, expected at least 1 and one token before")
    cache: Cache = {}
    training, seconds = model.training, []
    model.eval()
    with torch.no_grad(), torch.autocast(ids_BT.device.type, torch.bfloat16, enabled=bf16):
        model.extend(ids_BT[:, :-steps], cache)
        for t in range(ids_BT.shape[1] - steps, ids_BT.shape[1]):
            start = time.perf_counter()
            int(model.extend(ids_BT[:, t : t + 1], cache)[0, -1].argmax())  # waits for the device, as sampling would
            seconds.append(time.perf_counter() - start)
    model.train(training)
    return Decoding(ids_BT.shape[0] / statistics.median(seconds), cache_bytes(cache) / ids_BT.numel())


@measures(
    Figure(
        "kv_bytes",
        unit="bytes/token",
        better="min",
        sort="metric",
        summary="The decoding cache as it really is after one held-out sequence (growing and fixed parts, in the types "
        "they are held in), over that sequence's tokens.",
    ),
    Figure(
        "decode_throughput",
        unit="tokens/s",
        better="max",
        sort="timed",
        summary=f"Tokens decoded one by one in one sequence, at the median of {DECODED_TOKENS} steps.",
    ),
)
def decoding(subject: Subject) -> dict[str, float]:
    """Of one held-out sequence of the first measured shard."""
    import torch

    prepared = subject.prepared
    batches = subject.mixture.eval_batches(prepared.eval_shards[0].name, prepared.seq_len, limit_batches=1)
    one_BT = torch.from_numpy(next(iter(batches)).ids[:1]).to(subject.device)
    found = measure_decoding(subject.model, one_BT, min(DECODED_TOKENS, one_BT.shape[1] - 1), bf16=subject.bf16)
    return {"kv_bytes": found.kv_bytes, "decode_throughput": found.tokens_per_second}


@measures(
    Figure(
        "decoding_gap",
        unit="bits/byte",
        better="min",
        sort="metric",
        summary=f"How much more the last {DECODED_TOKENS} tokens of held-out sequences cost when they are decoded one "
        "by one from the cache than in one pass, which is what `bpb` is of: what a window or int8 of `kv_policy` takes "
        "away, or a mixture's capacity gave; 0 where it is rounding.",
    )
)
def decoding_gap(subject: Subject) -> dict[str, float]:
    """On one batch of the first measured shard, in fp32."""
    prepared = subject.prepared
    batch = next(iter(subject.mixture.eval_batches(prepared.eval_shards[0].name, prepared.tokens_per_step, 1)))
    assert batch.part_BT is not None
    assert batch.n_bytes_BT is not None
    steps = min(DECODED_TOKENS, batch.ids.shape[1] - 1)
    nats_BS = lost_in_decoding(subject.model, batch.ids, steps)
    bytes_BS = batch.n_bytes_BT[:, -steps:].astype(np.float64)
    own_P = (batch.part_BT[:, -steps:].ravel(), nats_BS.ravel(), np.ones(nats_BS.size), bytes_BS.ravel())
    parts = Parts(*own_P).merged()
    value = float(nats_BS.sum() / bytes_BS.sum() / math.log(2.0))
    if abs(value) < ROUNDING:
        return {"decoding_gap": 0.0}
    return {"decoding_gap": Estimate(value, ratio(parts.nats_P, parts.bytes_P).influence_U / math.log(2.0))}


def lost_in_decoding(model: "LanguageModel", ids_BT1: Ids, steps: int) -> Floats:
    """Nats that each of the last `steps` targets costs more when these tokens are decoded one by one, after all before
    them in one piece, than in one pass over all: (B, S). The model is left in the mode it was in."""
    import torch
    from torch.nn import functional as F

    from morphogen.network import Cache

    device = next(model.parameters()).device
    ids, training = torch.from_numpy(ids_BT1).to(device), model.training
    read_BT, target_BS = ids[:, :-1], ids[:, -steps:]
    cache: Cache = {}
    model.eval()
    with torch.no_grad():
        whole_BSV = model(read_BT)[:, -steps:]
        if steps < read_BT.shape[1]:
            model.extend(read_BT[:, :-steps], cache)
        ones = [read_BT[:, t : t + 1] for t in range(read_BT.shape[1] - steps, read_BT.shape[1])]
        decoded_BSV = torch.cat([model.extend(one_B1, cache) for one_B1 in ones], 1)
    model.train(training)
    whole_BS, decoded_BS = (
        F.cross_entropy(logits_BSV.double().mT, target_BS, reduction="none") for logits_BSV in (whole_BSV, decoded_BSV)
    )
    found: Floats = (decoded_BS - whole_BS).cpu().numpy()
    return found
