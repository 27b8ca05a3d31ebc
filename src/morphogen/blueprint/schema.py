"""A blueprint: the architecture alone, as frozen data. Field names here are the public DSL."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Self

import numpy as np
from pydantic import Field, PositiveFloat, PositiveInt, model_validator

import morphogen.parts  # noqa: F401  (registers every kind)
from morphogen.errors import InputError
from morphogen.parts.base import Context, Frozen, Modifier, NormKind, Part, PartIn
from morphogen.parts.stem import Stem


class Embedding(Frozen):
    """Token embedding. vocab: null takes the tokenizer's size."""

    dim: PositiveInt
    vocab: PositiveInt | None = None
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    init_std: PositiveFloat = 0.02


class Head(Frozen):
    """Output head; tied, it is the embedding itself."""

    tie_embeddings: bool = True


GeneId = Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+$")]


class Block(Frozen):
    """An ordered list of residual branches: attn, ssm, extras, ffn.

    id: stable gene id, assigned when absent. origin: the gene this block was copied from; a child without a parent
    block of its own id inherits from that one. parallel: all branches read the block's input.
    """

    id: GeneId = ""
    origin: GeneId | None = None
    attn: Annotated[Part, PartIn("attn")] | None = None
    ssm: Annotated[Part, PartIn("ssm")] | None = None
    extras: tuple[Annotated[Part, PartIn("extra")], ...] = ()
    ffn: Annotated[Part, PartIn("ffn")] | None = None
    parallel: bool = False

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
    `b1.extra.layer_scale.0`; `stem`). prefix: of its tensors in a state dict."""

    key: str
    prefix: str
    slot: str
    part: Part
    ctx: Context
    block: Block | None

    def tensor(self, name: str) -> str:
        """The full name of one of the part's tensors."""
        return f"{self.prefix}.{name}" if self.prefix else name


class Blueprint(Frozen):
    """The architecture: embedding, blocks and head."""

    name: str = "unnamed"
    emb: Embedding
    norm: NormKind = "rmsnorm"
    blocks: Annotated[tuple[Block, ...], Field(min_length=1)]
    head: Head = Head()

    @model_validator(mode="before")
    @classmethod
    def _assign_ids(cls, data: Any) -> Any:
        if not isinstance(data, Mapping) or not isinstance(data.get("blocks"), list | tuple):
            return data
        blocks = data["blocks"]
        if not any(isinstance(b, Mapping) and not b.get("id") for b in blocks):
            return data
        taken = {
            str(b["id"] if isinstance(b, Mapping) else b.id)
            for b in blocks
            if not isinstance(b, Mapping) or b.get("id")
        }
        free = (f"b{i}" for i in range(10**9) if f"b{i}" not in taken)
        named = [{**b, "id": next(free)} if isinstance(b, Mapping) and not b.get("id") else b for b in blocks]
        return {**data, "blocks": named}

    @model_validator(mode="after")
    def _unique_ids(self) -> Self:
        ids = [block.id for block in self.blocks]
        repeated = sorted({i for i in ids if ids.count(i) > 1})
        if repeated:
            raise ValueError(f"blocks share the id {', '.join(repeated)}, expected every id once")
        return self

    def with_vocab(self, vocab: int) -> "Blueprint":
        """The same with the vocabulary size filled in; InputError when it is set to a smaller one."""
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
        return Context(self.emb.dim, self.norm, self.emb.vocab, self.emb.init_std, branches, seq_len)

    def genes(self, seq_len: int = 256) -> list[Gene]:
        """Every part with its place: the stem first, then block by block."""
        ctx = self.context(seq_len)
        genes = [Gene("stem", "", "stem", Stem(tie_embeddings=self.head.tie_embeddings), ctx, None)]
        for position, block in enumerate(self.blocks):
            seen: Counter[str] = Counter()
            for slot, path, part in block.parts():
                key = f"{slot}.{part.label}.{seen[part.label]}" if slot == "extra" else slot
                seen[part.label] += 1
                genes.append(Gene(f"{block.id}.{key}", f"blocks.{position}.{path}", slot, part, ctx, block))
        return genes

    def fresh_id(self, rng: np.random.Generator) -> str:
        """A gene id that neither this blueprint nor, for all practical purposes, any other of its lineage has."""
        taken = {b.id for b in self.blocks} | {b.origin for b in self.blocks}
        return next(name for _ in range(10**9) if (name := f"g{int(rng.integers(16**8)):08x}") not in taken)

    def to_json(self) -> dict[str, Any]:
        """Plain data that `Blueprint.model_validate` reads back."""
        return self.model_dump(mode="json")
