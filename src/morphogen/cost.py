"""Costs: what follows from the blueprint alone. Nothing here is a measurement.

`params`: trainable parameters, a tied head counted once. `flops_per_token`: forward, averaged over a sequence; a
training step is three times that. `kv_bytes_per_token`: cache that grows with the sequence, two bytes an entry.
`state_bytes`: cache of fixed size per sequence. `train_memory_bytes`: weights, gradients and AdamW moments in fp32.
"""

from morphogen.blueprint.schema import Blueprint
from morphogen.network import parameter_count
from morphogen.parts.base import Cost

#: A training step computes the forward pass once and about twice its FLOPs backwards.
TRAIN_FACTOR = 3.0


def total(blueprint: Blueprint, seq_len: int) -> Cost:
    """The sum of the parts' costs at a sequence length."""
    return sum((gene.part.cost(gene.ctx) for gene in blueprint.genes(seq_len)), Cost())


def costs(blueprint: Blueprint, seq_len: int) -> dict[str, float]:
    """Every cost by name."""
    whole, params = total(blueprint, seq_len), parameter_count(blueprint)
    return {
        "params": float(params),
        "flops_per_token": whole.flops,
        "kv_bytes_per_token": whole.kv_bytes,
        "state_bytes": whole.state_bytes,
        "train_memory_bytes": 16.0 * params,
        "layers": float(len(blueprint.blocks)),
    }


def train_flops(blueprint: Blueprint, seq_len: int, tokens: int) -> float:
    """FLOPs that training on `tokens` takes."""
    return TRAIN_FACTOR * total(blueprint, seq_len).flops * tokens
