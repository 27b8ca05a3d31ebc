"""µP: how far the learning rate of every parameter is scaled, so that the rate found at one width is right at others.

Under Adam and Lion a step moves every entry by about the rate, whatever its gradient's size. What a matrix adds to its
output then grows with its fan-in, and what is added to the residual stream counts by the size of that stream, whose
entries begin at 1/√dim here. With w = dim / base_dim the rates of

    matrices whose fan-in grows with the width:                         1 / w
    those of them that write to the stream:                             1 / w^1.5
    what writes to it from a fan-in that stays (rows of a table), heads: 1 / √w
    what else has a fan-in that stays (taps), vectors, single numbers:  1

keep every change of the function as large as at `base_dim`. Weight decay of a matrix, which is multiplied by its rate,
is divided by the factor. Ref: Tensor Programs V, arXiv 2203.03466, here for embeddings that begin at 1/√dim.
"""

from collections.abc import Mapping

from morphogen.blueprint.schema import Blueprint
from morphogen.blueprint.tensors import specs
from morphogen.parts.contract.tensors import Spec, flat

#: Powers of the width: for a fan-in that grows, for the stream that is written to, and of heads.
FAN_IN, STREAM, HEADS = 1.0, 0.5, 0.5


def factors(blueprint: Blueprint, base_dim: int | None) -> Mapping[str, float]:
    """Parameter -> what its learning rate is multiplied by; 1 for all without `base_dim`, and at that width."""
    wider = 1.0 if base_dim is None else blueprint.emb.dim / base_dim
    return {name: wider ** -_power(spec) for name, (_, _, spec) in specs(blueprint).items()}


def _power(spec: Spec) -> float:
    if len(spec.shape) < 2:
        return 0.0
    if any("vocab" in axis for axis in flat(spec.axes)) and not spec.writes:
        return HEADS
    return FAN_IN * (not spec.steady) + STREAM * spec.writes
