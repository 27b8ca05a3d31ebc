"""Names and sizes that the maths and the descriptions of parts agree on. No torch: reading a blueprint needs none."""

from typing import Literal, get_args

#: What there is more than one way to compute: see `ops.paths`.
OpName = Literal[
    "attention", "linear_attention", "gated_delta", "ssd", "selective_scan", "experts", "cross_entropy", "none"
]

#: What queries and keys of linear attention go through; values of those in POSITIVE are never negative, so that they
#: can be weights.
LinearFeature = Literal["elu", "relu", "silu", "softmax", "identity"]
LINEAR_FEATURES: tuple[LinearFeature, ...] = get_args(LinearFeature)
POSITIVE: frozenset[LinearFeature] = frozenset({"elu", "relu", "softmax"})
#: Tokens of a chunk of linear attention (benchmarks).
LINEAR_CHUNK = 64

#: What the keys of fast weights go through.
MemoryFeature = Literal["elu", "relu", "dpfp"]
MEMORY_FEATURES: tuple[MemoryFeature, ...] = get_args(MemoryFeature)
#: Tokens of a chunk of fast weights (benchmarks/speed.py).
MEMORY_CHUNK = 32

#: What makes scores of a router's logits.
RouterKind = Literal["softmax", "sigmoid"]
