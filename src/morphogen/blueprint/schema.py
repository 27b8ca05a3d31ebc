"""A blueprint: the architecture alone, as frozen data. Field names here are the public DSL."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Self

import numpy as np
from pydantic import Field, PositiveFloat, PositiveInt, model_validator

import morphogen.parts  # noqa: F401  (registers every kind)
from morphogen.arguments import whole
from morphogen.blueprint.growth import GrowthRule, of_blocks
from morphogen.errors import InputError
from morphogen.parts.contract.frozen import Frozen
from morphogen.parts.contract.part import Context, GeneId, Modifier, NormKind, Part
from morphogen.parts.contract.registry import PartIn
from morphogen.parts.recurrence.recurrence import Recurrence, follow
from morphogen.parts.stem import Stem

#: Said to whom something else is handed over as a blueprint.
EXPERIMENTS = "that of an experiment is `experiment.model`"


class Embedding(Frozen):
    """Token embedding."""

    later: ClassVar = frozenset({"scale", "positions", "freeze"})

    dim: PositiveInt
    """Channels of the residual stream."""
    vocab: PositiveInt | None = None
    """Tokens; null takes the tokenizer's size."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Share of the embedding's entries that a training step drops."""
    init_std: PositiveFloat | None = None
    """Standard deviation at the start; null is 1/√dim, with which first logits of a tied head have unit variance."""
    scale: PositiveFloat = 1.0
    """What the embedding is multiplied by before the first block, but not where it is the head."""
    positions: PositiveInt | None = None
    """Positions that have a learned vector of their own, added to the tokens'; no sequence may then be longer. null:
    none."""
    freeze: bool = False
    """Whether tokens' and positions' vectors stay as they are, and with them a tied head."""


class Head(Frozen):
    """Output head; tied, it is the embedding itself."""

    later: ClassVar = frozenset({"bias", "softcap", "freeze"})

    tie_embeddings: bool = True
    """Whether the embedding's matrix is the head's too."""
    bias: bool = False
    """Whether every token has a bias; a tied head has none."""
    softcap: PositiveFloat | None = None
    """Logits stay within this of 0, by tanh; null leaves them as they are."""
    freeze: bool = False
    """Whether the head's matrix and biases stay as they are."""

    @model_validator(mode="after")
    def _own_bias(self) -> Self:
        if self.bias and self.tie_embeddings:
            raise ValueError("bias is true, but a tied head has none; expected tie_embeddings false")
        if self.freeze and self.tie_embeddings:
            raise ValueError("freeze is true, but a tied head is the embedding; expected emb.freeze, or no tied head")
        return self


class Block(Frozen):
    """An ordered list of residual branches: attn, ssm, extras, ffn."""

    id: GeneId = ""
    """The gene's stable name; assigned when absent."""
    origin: GeneId | None = None
    """The gene this block was copied from: a child without a parent block of its own id inherits from that one."""
    attn: Annotated[Part, PartIn("attn")] | None = None
    """Attention; null: none."""
    ssm: Annotated[Part, PartIn("ssm")] | None = None
    """State-space layer, after attention; null: none."""
    extras: tuple[Annotated[Part, PartIn("extra")], ...] = ()
    """Memories, convolutions, plug-ins and what modifies branches, after `ssm` and in this order."""
    ffn: Annotated[Part, PartIn("ffn")] | None = None
    """Feed-forward layer, last; null: none."""
    parallel: bool = False
    """Whether all branches read the block's input, rather than each the sum so far."""

    @model_validator(mode="after")
    def _something_to_do(self) -> Self:
        slots = self.slots()
        if not slots:
            raise ValueError(
                "block has no branch, expected at least one of attn, ssm, ffn or an extra that is a branch"
            )
        for extra in self.extras:
            if isinstance(extra, Modifier):
                missing = sorted(set(extra.acts_on()) - slots)
                if missing:
                    raise ValueError(
                        f"{extra.label} targets {', '.join(missing)}, but the block has {', '.join(sorted(slots))}"
                    )
        return self

    def slots(self) -> set[str]:
        """Slots that hold a branch."""
        return {slot for slot, _, part in self.parts() if not isinstance(part, Modifier)}

    def branches(self) -> list[Part]:
        """The parts that add to the residual stream."""
        return [part for _, _, part in self.parts() if not isinstance(part, Modifier)]

    def parts(self) -> Iterator[tuple[str, str, Part]]:
        """(slot, path below the block, part) in the order they run."""
        if self.attn is not None:
            yield "attn", "attn", self.attn
        if self.ssm is not None:
            yield "ssm", "ssm", self.ssm
        for i, extra in enumerate(self.extras):
            yield "extra", f"extras.{i}", extra
        if self.ffn is not None:
            yield "ffn", "ffn", self.ffn


@dataclass(frozen=True)
class Gene:
    """One part in its place. key: stable name by gene id (`b1.attn`,
    `b1.extra.layer_scale.0`; `stem`; `r0.recurrence`). prefix: of its tensors in a state dict. loop: the recurrence
    that it is run by, again and again; a recurrence's own part has itself."""

    key: str
    prefix: str
    slot: str
    part: Part
    ctx: Context
    block: Block | None
    loop: Recurrence | None = None

    def tensor(self, name: str) -> str:
        """The full name of one of the part's tensors."""
        return f"{self.prefix}.{name}" if self.prefix else name


class Blueprint(Frozen):
    """The architecture: embedding, blocks, which of them are looped, head, and how all of that grows in training."""

    name: str = "unnamed"
    """What the model is called; it changes nothing else."""
    emb: Embedding
    """The token embedding."""
    norm: NormKind = "rmsnorm"
    """The norm before every branch and before the head."""
    blocks: Annotated[tuple[Block, ...], Field(min_length=1)]
    """Blocks, first to last."""
    recurrences: tuple[Recurrence, ...] = ()
    """Runs of blocks that are looped, in their order; none shares a block with another. Positions follow the blocks."""
    growth: tuple[GrowthRule, ...] = ()
    """Rules by which the model changes while it trains, asked in this order."""
    head: Head = Head()
    """The output head."""

    @model_validator(mode="before")
    @classmethod
    def _assign_ids(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        return {
            **data,
            **{
                key: _named(data[key], letter)
                for key, letter in (("blocks", "b"), ("recurrences", "r"), ("growth", "rule"))
                if isinstance(data.get(key), list | tuple)
            },
        }

    @model_validator(mode="after")
    def _unique_ids(self) -> Self:
        for what, genes in (("blocks", self.blocks), ("recurrences", self.recurrences), ("growth rules", self.growth)):
            ids = [gene.id for gene in genes]
            if repeated := sorted({i for i in ids if ids.count(i) > 1}):
                raise ValueError(f"{what} share the id {', '.join(repeated)}, expected every id once")
        return self

    @model_validator(mode="after")
    def _recurrences_fit(self) -> Self:
        free = 0
        for i, loop in enumerate(self.recurrences):
            if loop.end > len(self.blocks):
                raise ValueError(
                    f"recurrences[{i}]: got end {loop.end}, but the model has {len(self.blocks)} blocks; expected a "
                    f"range [start, end) of blocks"
                )
            if loop.start < free:
                raise ValueError(
                    f"recurrences[{i}]: starts at {loop.start}, before recurrences[{i - 1}] ends at {free}; expected "
                    f"ranges in order that share no block"
                )
            free = loop.end
        return self

    @property
    def nominal(self) -> "Blueprint":
        """The same with a vocabulary: one that is not known yet counts as one token."""
        return self if self.emb.vocab is not None else self.with_vocab(1)

    def with_vocab(self, vocab: int) -> "Blueprint":
        """The same with the vocabulary size filled in; InputError for none, and when it is set to a smaller one."""
        vocab = whole("model.emb.vocab", vocab, least=1)
        if self.emb.vocab is not None and self.emb.vocab < vocab:
            raise InputError(f"model.emb.vocab: got {self.emb.vocab}, but the tokenizer has {vocab} tokens")
        if self.emb.vocab is not None:
            return self
        return self.model_copy(update={"emb": self.emb.model_copy(update={"vocab": vocab})})

    def context(self, seq_len: int = 256) -> Context:
        """What every part is told of the model."""
        if self.emb.vocab is None:
            raise InputError("model.emb.vocab: not set, expected a number of tokens (or a tokenizer to take it from)")
        branches = sum(len(block.branches()) for block in self.blocks)
        init_std = 1.0 / math.sqrt(self.emb.dim) if self.emb.init_std is None else self.emb.init_std
        return Context(self.emb.dim, self.norm, self.emb.vocab, init_std, branches, seq_len)

    def genes(self, seq_len: int = 256) -> list[Gene]:
        """Every part with its place: the stem first, then block by block."""
        ctx = self.context(seq_len)
        emb = self.emb
        stem = Stem(**dict(self.head), positions=emb.positions or 0, scale=emb.scale, freeze_emb=emb.freeze)
        genes = [Gene("stem", "", "stem", stem, ctx, None)]
        for position, block in enumerate(self.blocks):
            loop = next((loop for loop in self.recurrences if loop.start <= position < loop.end), None)
            seen: Counter[str] = Counter()
            for slot, path, part in block.parts():
                key = f"{slot}.{part.label}.{seen[part.label]}" if slot == "extra" else slot
                seen[part.label] += 1
                genes.append(Gene(f"{block.id}.{key}", f"blocks.{position}.{path}", slot, part, ctx, block, loop))
        for i, loop in enumerate(self.recurrences):
            genes.append(Gene(f"{loop.id}.recurrence", f"recurrences.{i}", "recurrence", loop, ctx, None, loop))
        return genes

    def with_blocks(self, blocks: Iterable[Block]) -> "Blueprint | None":
        """The same with other blocks, each recurrence moved with those it loops over. One that has lost all is gone,
        and so is a growth rule that has lost all it names.

        None where that is invalid or nothing differs.
        """
        after = tuple(blocks)
        kept = follow(self.recurrences, [block.id for block in self.blocks], [block.id for block in after])
        rules = of_blocks(self.growth, {block.id for block in after})
        return self.evolve(blocks=after, recurrences=kept, growth=rules)

    def fresh_id(self, rng: np.random.Generator) -> str:
        """A gene id that neither this blueprint nor, for all practical purposes, any other of its lineage has."""
        taken = {b.id for b in self.blocks} | {b.origin for b in self.blocks} | {r.id for r in self.recurrences}
        taken |= {rule.id for rule in self.growth}
        return next(name for _ in range(10**9) if (name := f"g{int(rng.integers(16**8)):08x}") not in taken)

    def to_json(self) -> dict[str, Any]:
        """Plain data that `Blueprint.model_validate` reads back."""
        return self.model_dump(mode="json")


def _named(genes: Sequence[Any], letter: str) -> tuple[Any, ...]:
    """Blocks, recurrences or rules as given, with the first free ids `<letter>0`, `<letter>1`, ... where absent."""
    taken = {str(gene["id"]) for gene in genes if isinstance(gene, Mapping) and gene.get("id")}
    taken |= {gene.id for gene in genes if isinstance(gene, Block | Recurrence | GrowthRule)}
    free = (f"{letter}{i}" for i in range(10**9) if f"{letter}{i}" not in taken)

    def named(gene: Any) -> Any:
        if isinstance(gene, Mapping):
            return gene if gene.get("id") else {**gene, "id": next(free)}
        unnamed = isinstance(gene, Block | Recurrence | GrowthRule) and not gene.id
        return gene.model_copy(update={"id": next(free)}) if unnamed else gene

    return tuple(map(named, genes))
