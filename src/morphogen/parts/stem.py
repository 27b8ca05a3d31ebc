"""The tensors outside the blocks: token embedding, learned positions, final norm, and the head when it is not tied.

Their names have no prefix: `emb.weight`, `positions.weight`, `norm.weight`, `head.weight`, `head.bias`.
"""

from dataclasses import replace
from typing import ClassVar

from morphogen.parts.contract.alignment import Alignment
from morphogen.parts.contract.part import Context, Cost, Part
from morphogen.parts.contract.tensors import ZEROS, Init, Tensor


class Stem(Part):
    """Embedding, final norm and head as one part, so that inheritance treats them like every other."""

    slot: ClassVar = "stem"
    neutral_fields: ClassVar = frozenset({"tie_embeddings", "positions", "freeze", "freeze_emb"})
    tie_embeddings: bool
    positions: int = 0
    bias: bool = False
    scale: float = 1.0
    softcap: float | None = None
    freeze: bool = False
    freeze_emb: bool = False

    def tensors(self, ctx: Context) -> dict[str, Tensor]:
        """The embedding starts at `emb.init_std`, the head at the same scale; a tied head is the embedding itself."""
        start = Init("normal", (ctx.init_std,))
        rows = Tensor(("vocab", "dim"), start, writes=True, trained=not self.freeze_emb, steady=True)
        table = {"emb.weight": rows}
        if self.positions:
            table["positions.weight"] = replace(rows, axes=("place", "dim"))
        if not self.tie_embeddings:
            table["head.weight"] = Tensor(("vocab", "dim"), start, trained=not self.freeze)
        return table | ({"head.bias": Tensor(("vocab",), ZEROS, trained=not self.freeze)} if self.bias else {})

    def sizes(self, ctx: Context) -> dict[str, int]:
        """vocab, dim, and place: the positions that are learned."""
        return {"vocab": ctx.vocab, "dim": ctx.dim, "place": self.positions}

    def cost(self, ctx: Context) -> Cost:
        """The head's matmul; looking a token up costs nothing."""
        return Cost(flops=2.0 * ctx.dim * ctx.vocab)

    def kept(self, ctx: Context) -> float:
        """The logits and their gradient; the embedded tokens, the final norm's output and the gradients of both."""
        return 2.0 * ctx.vocab + 4.0 * ctx.dim

    def align(self, parent: Part, ctx: Context, parent_ctx: Context) -> Alignment | None:
        """A head that was tied is carried as a copy of the embedding; tying an untied one, new tokens and fewer
        positions lose. New tokens start as the mean of the old ones, so that they take little of their probability.
        """
        plain = super().align(parent, ctx, parent_ctx)
        if plain is None or not isinstance(parent, Stem):
            return None
        sources = dict(plain.sources)
        if parent.tie_embeddings and not self.tie_embeddings:
            sources["head.weight"] = "emb.weight"
        tied = self.tie_embeddings and not parent.tie_embeddings
        exact = plain.exact and not tied and ctx.vocab == parent_ctx.vocab
        note = "tied the head to the embedding" if tied else plain.note
        if ctx.vocab != parent_ctx.vocab:
            note = f"vocabulary {parent_ctx.vocab} became {ctx.vocab}"
        if self.positions < parent.positions:
            exact, note = False, f"positions {parent.positions} became {self.positions}"
        grown = ("emb.weight", "head.weight", "head.bias") if ctx.vocab > parent_ctx.vocab else ()
        mean = {name: ("vocab",) for name in grown if name in self.tensors(ctx)}
        return Alignment(sources=sources, exact=exact, note=note, scales=plain.scales, zero=plain.zero, mean=mean)
