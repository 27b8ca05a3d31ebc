"""Costs: what follows from the blueprint alone. Nothing here is a measurement.

`params`: trainable parameters, a tied head counted once. `flops_per_token`: forward, averaged over a sequence; a
training step is three times that. `kv_bytes_per_token`: cache that grows with the sequence, two bytes an entry.
Blocks that a recurrence loops over count once for each of its `max_train_recurrence` steps, their caches too.
`state_bytes`: cache of fixed size per sequence. `train_memory_bytes`: weights, gradients and AdamW moments in fp32.
`graph_entropy`: how mixed the branches are, in bits.
"""

from morphogen.blueprint.diff import entropy
from morphogen.blueprint.schema import Blueprint
from morphogen.network import parameter_count
from morphogen.parts.base import TRAITS, Cost

#: A training step computes the forward pass once and about twice its FLOPs backwards.
TRAIN_FACTOR = 3.0


def total(blueprint: Blueprint, seq_len: int) -> Cost:
    """The sum of the parts' costs at a sequence length, as the model runs outside training."""
    whole = Cost()
    for gene in blueprint.genes(seq_len):
        whole += gene.part.cost(gene.ctx) * (gene.loop.steps(1.0) if gene.loop else 1)
    return whole


def structure(blueprint: Blueprint) -> dict[str, float]:
    """How many blocks and recurrences there are, and how many blocks hold a mixture, a selector, a memory."""
    held = [frozenset[str]().union(*(part.traits() for part in block.branches())) for block in blueprint.blocks]
    return {
        "layers": float(len(blueprint.blocks)),
        "recurrences": float(len(blueprint.recurrences)),
        **{f"{trait}_blocks": float(sum(trait in traits for traits in held)) for trait in TRAITS},
    }


def costs(blueprint: Blueprint, seq_len: int) -> dict[str, float]:
    """Every cost by name."""
    whole, params = total(blueprint, seq_len), parameter_count(blueprint)
    return {
        "params": float(params),
        "flops_per_token": whole.flops,
        "kv_bytes_per_token": whole.kv_bytes,
        "state_bytes": whole.state_bytes,
        "train_memory_bytes": 16.0 * params,
        **structure(blueprint),
        "graph_entropy": entropy(blueprint),
    }


def train_flops(blueprint: Blueprint, seq_len: int, tokens: int) -> float:
    """FLOPs that training on `tokens` takes, if it runs to its end; recurrences take their mean number of steps."""
    per_token = sum(
        gene.part.cost(gene.ctx).flops * (gene.loop.mean_steps() if gene.loop else 1)
        for gene in blueprint.genes(seq_len)
    )
    return TRAIN_FACTOR * per_token * tokens
