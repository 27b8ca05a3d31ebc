"""µP: how far the learning rate of every parameter is scaled, so that the rate found at one width is right at others.

Under Adam and Lion a step moves every entry by about the rate, whatever its gradient's size. What a matrix adds to its
output then grows with its fan-in, and what is added to the residual stream counts by the size of that stream, whose
entries begin at 1/√dim here. With w = dim / base_dim the rates of

    matrices that read the stream, or stand between two inner widths:  1 / w
    matrices that write to it:                                         1 / w^1.5
    embeddings and heads (a row per token):                            1 / √w
    vectors and single numbers:                                        1

keep every change of the function as large as at `base_dim`. Weight decay of a matrix, which is multiplied by its rate,
is divided by the factor. Ref: Tensor Programs V, arXiv 2203.03466, here for embeddings that begin at 1/√dim.
"""

from collections.abc import Mapping

from morphogen.blueprint.schema import Blueprint
from morphogen.blueprint.tensors import specs
from morphogen.parts.contract.tensors import Spec, flat

#: Powers of the width, of (rows of tokens, readers, writers).
TOKENS, READERS, WRITERS = 0.5, 1.0, 1.5


def factors(blueprint: Blueprint, base_dim: int | None) -> Mapping[str, float]:
    """Parameter -> what its learning rate is multiplied by; 1 for all without `base_dim`, and at that width."""
    wider = 1.0 if base_dim is None else blueprint.emb.dim / base_dim
    return {name: wider ** -_power(spec) for name, (_, _, spec) in specs(blueprint).items()}


def _power(spec: Spec) -> float:
    if any("vocab" in axis or "place" in axis for axis in flat(spec.axes)):
        return TOKENS if len(spec.shape) > 1 else 0.0
    if len(spec.shape) < 2:
        return 0.0
    return WRITERS if spec.writes else READERS
