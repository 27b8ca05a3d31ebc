"""Decoding, measured: how fast tokens come, and how large the cache is that they need. B batch, T tokens."""

import statistics
import time
from typing import TYPE_CHECKING, NamedTuple

from morphogen.figures import Figure
from morphogen.metrics.measuring import Subject, measures

if TYPE_CHECKING:
    from torch import Tensor

    from morphogen.network import LanguageModel

#: Tokens decoded one by one when decoding is measured: enough for a median, some milliseconds each.
DECODED_TOKENS = 16


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
