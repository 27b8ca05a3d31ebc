"""Costs: what follows from the blueprint alone. Nothing here is a measurement.

Blocks that a recurrence loops over count once for each of its `max_train_recurrence` steps, their caches too.
"""

from collections.abc import Sequence
from statistics import fmean
from typing import NamedTuple, Self

from morphogen.blueprint.diff import entropy
from morphogen.blueprint.schema import Blueprint, Gene
from morphogen.blueprint.tensors import borrowed_count, moment_count, parameter_count
from morphogen.errors import InputError, anybodys
from morphogen.experiment import Train
from morphogen.figures import Figure, declare
from morphogen.parts.contract.part import COUNTED, Cost

#: A training step computes the forward pass once and about twice its FLOPs backwards.
TRAIN_FACTOR = 3.0
#: Numbers in fp32 for every token and entry of the vocabulary that a teacher's divergence holds at its peak, and those
#: that both sides' logits are copied to from bfloat16.
TAUGHT, COPIED = 4.0, 2.0

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
        unit="forward FLOPs/token",
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
        summary="Estimate of the most that one training step holds: weights, their average, moments, and activations "
        "of one batch or gradients. Mostly within 1.2 times of `peak_memory_bytes`, within 1.5 but for tiny models.",
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
        whole += _cost(gene) * (gene.loop.steps(1.0) if gene.loop else 1)
    return whole


def _cost(gene: Gene) -> Cost:
    """Of one part, run once."""
    with anybodys(f"{type(gene.part).__name__}: what it costs", InputError):
        return gene.part.cost(gene.ctx)


def structure(blueprint: Blueprint) -> dict[str, float]:
    """How many blocks and recurrences there are, and how many blocks hold a mixture, a selector, a memory."""
    held = [frozenset[str]().union(*(part.counts_as() for part in block.branches())) for block in blueprint.blocks]
    return {
        "layers": float(len(blueprint.blocks)),
        "recurrences": float(len(blueprint.recurrences)),
        **{f"{sort}_blocks": float(sum(sort in sorts for sorts in held)) for sort in COUNTED},
    }


class Step(NamedTuple):
    """What decides about a training step's memory beside the architecture. optimizer: whose moments are kept.
    averaged: whether an average of the weights is kept beside them. taught: whether a teacher is."""

    sequences: int
    bf16: bool = False
    grad_ckpt: bool = False
    optimizer: str = "adamw"
    averaged: bool = True
    taught: bool = False

    @classmethod
    def of(cls, train: Train, sequences: int) -> Self:
        """As an experiment trains on batches of so many sequences."""
        averaged, taught = train.schedule == "constant", train.anchoring.self_distillation is not None
        return cls(sequences, train.in_bf16, train.grad_ckpt, train.optimizer.name, averaged, taught)


def train_memory_bytes(blueprint: Blueprint, seq_len: int, step: Step) -> float:
    """Bytes that a training step holds at its peak, estimated.

        4 · (moments + params · (1 + averaged + taught)) + 4 · borrowed + max(batch · Σ kept, 4 · params)

    The peak is at the end of the forward pass, when all activations are there, or at the end of the backward pass, when
    all gradients are. A branch keeps its input and its norm in fp32, and what `Part.kept` says, at 2 bytes an entry
    with bf16, where the weights have copies too, or 4 as `Part.kept_whole` says. Every step of a recurrence keeps its
    own. With `grad_ckpt` blocks keep their input, and one at a time all of it. With a teacher there are its logits,
    both sides' log-probabilities, and what their divergence is made of. Borrowed are frozen layers of other models, of
    which there are the weights alone, with a teacher twice.
    """
    params, size = parameter_count(blueprint), 2.0 if step.bf16 else 4.0
    blocks: dict[str, float] = {}
    outside = inputs = 0.0
    for gene in blueprint.genes(seq_len):
        times = gene.loop.steps(1.0) if gene.loop else 1
        with anybodys(f"{type(gene.part).__name__}: what training keeps of it", InputError):
            kept = 8.0 * gene.ctx.dim + size * gene.part.kept(gene.ctx) + 4.0 * gene.part.kept_whole(gene.ctx)
        if not step.grad_ckpt or gene.block is None:
            outside += times * kept
        else:
            if gene.block.id not in blocks:
                inputs += times * 4.0 * gene.ctx.dim
            blocks[gene.block.id] = blocks.get(gene.block.id, 0.0) + kept
    activations = step.sequences * seq_len * (outside + inputs + max(blocks.values(), default=0.0))
    if step.taught:
        numbers = TAUGHT + COPIED * step.bf16
        activations += 4.0 * step.sequences * seq_len * numbers * blueprint.context().vocab
    borrowed = borrowed_count(blueprint)
    copies = 2.0 * (params + borrowed) if step.bf16 else 0.0
    kept = moment_count(blueprint, step.optimizer) + params * (1 + step.averaged + step.taught)
    return 4.0 * kept + 4.0 * borrowed * (1 + step.taught) + max(activations + copies, 4.0 * params)


def costs(blueprint: Blueprint, seq_len: int, step: Step | None = None) -> dict[str, float]:
    """Every cost by name; `train_memory_bytes` where `step` says how it is trained."""
    whole = total(blueprint, seq_len)
    return {
        "params": float(parameter_count(blueprint)),
        "flops_per_token": whole.flops,
        "kv_bytes_per_token": whole.kv_bytes,
        "state_bytes": whole.state_bytes,
        **({} if step is None else {"train_memory_bytes": train_memory_bytes(blueprint, seq_len, step)}),
        **structure(blueprint),
        "graph_entropy": entropy(blueprint),
    }


def train_flops(blueprint: Blueprint, seq_len: int, tokens: int, progress: Sequence[float] | None = None) -> float:
    """FLOPs that training on `tokens` takes, `TRAIN_FACTOR` times those of the forward pass: what `grad_ckpt` computes
    again, and what frozen layers spare, does not count.

    progress: of every step the share of training that was done before it, by which recurrences take more or fewer
    steps; None: of a whole training, of which they take their mean number.
    """
    if progress is not None and not progress:
        return 0.0
    per_token = sum(_cost(gene).flops * _times(gene, progress) for gene in blueprint.genes(seq_len))
    return TRAIN_FACTOR * per_token * tokens


def _times(gene: Gene, progress: Sequence[float] | None) -> float:
    """How often a part runs in a step of training, on average over steps."""
    if gene.loop is None:
        return 1.0
    return gene.loop.mean_steps() if progress is None else fmean(map(gene.loop.steps, progress))
