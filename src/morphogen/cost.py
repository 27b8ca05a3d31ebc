"""Costs: what follows from the blueprint alone. Nothing here is a measurement.

Blocks that a recurrence loops over count once for each of its `max_train_recurrence` steps, their caches too.
"""

from morphogen.blueprint.diff import entropy
from morphogen.blueprint.schema import Blueprint
from morphogen.blueprint.tensors import parameter_count
from morphogen.figures import Figure, declare
from morphogen.parts.contract.part import TRAITS, Cost

#: A training step computes the forward pass once and about twice its FLOPs backwards.
TRAIN_FACTOR = 3.0

declare(
    Figure(
        "params",
        unit="parameters",
        better="min",
        sort="cost",
        column=True,
        summary="Trainable parameters; a tied head counts once.",
    ),
    Figure(
        "flops_per_token",
        unit="FLOPs/token",
        better="min",
        sort="cost",
        column=True,
        summary="Of the forward pass only, a multiply-add counting 2, averaged over a sequence; a training step takes "
        f"{TRAIN_FACTOR:g} times as many.",
    ),
    Figure(
        "kv_bytes_per_token",
        unit="bytes/token",
        better="min",
        sort="cost",
        column=True,
        summary="Decoding cache that grows with the sequence, at 2 bytes an entry. `kv_bytes` is the measured cache, "
        "its fixed parts included.",
    ),
    Figure(
        "state_bytes",
        unit="bytes/sequence",
        better="min",
        sort="cost",
        summary="Decoding cache of fixed size, as of recurrent states and windows that are full.",
    ),
    Figure(
        "train_memory_bytes",
        unit="bytes",
        better="min",
        sort="cost",
        summary="Weights, gradients and AdamW moments in fp32.",
    ),
    Figure("layers", unit="blocks", better="max", sort="cost", summary="Blocks of the model."),
    Figure("recurrences", unit="1", better="max", sort="cost", summary="Recurrences of the model."),
    Figure(
        "moe_blocks", unit="blocks", better="max", sort="cost", score="moe", summary="Blocks with a mixture of experts."
    ),
    Figure(
        "selector_blocks", unit="blocks", better="max", sort="cost", summary="Blocks whose attention has a selector."
    ),
    Figure("memory_blocks", unit="blocks", better="max", sort="cost", summary="Blocks with a memory."),
    Figure(
        "graph_entropy",
        unit="bits",
        better="none",
        sort="cost",
        summary="How mixed the branches are: the Shannon entropy of the branches, each with all its settings; 0 where "
        "all are alike.",
    ),
)


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
