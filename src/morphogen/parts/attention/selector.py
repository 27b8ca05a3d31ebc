"""Attention over the past tokens that a small learned indexer scores highest: the `selector` of softmax attention.

B batch, T tokens, S tokens to read, D model dim, A indexer heads, I their width, H query heads, K kv heads,
E width of q and k, V width of v
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, Self

import numpy as np
from pydantic import Field, PositiveInt, model_validator

from morphogen.ops.names import OpName
from morphogen.parts.attention.sparsity import Sparse, seen_pairs
from morphogen.parts.contract.alignment import Alignment
from morphogen.parts.contract.operator import operator
from morphogen.parts.contract.part import Context, Cost, NormKind, Part
from morphogen.parts.contract.tensors import ZEROS, Axis, Tensor

#: The indexer's tensors. Its weights start at zero: all scores are then equal, and of equal scores the latest token
#: wins, so that it starts as a sliding window.
INDEXER: Mapping[str, Tensor] = {
    "selector.q.weight": Tensor((("selector_heads", "selector_dim"), "dim")),
    "selector.k.weight": Tensor(("selector_dim", "dim")),
    "selector.w.weight": Tensor(("selector_heads", "dim"), ZEROS, fresh_zero=("selector_heads",)),
}
#: Fewest tokens to read that operators give.
LEAST_TOPK = 8


class Selective(Sparse):
    """Softmax attention that may read only the `selector_topk` past tokens its indexer scores highest.

    Score of token s for query t: Σ_a w[t, a] · ReLU(q[t, a] · k[s]) / √(A·I), q and w linear in the branch's input, k a
    LayerNorm of a linear map, q and k rotated. Of equal scores the later token wins. Up to `selector_topk` tokens this
    is dense attention. Ref: DeepSeek-V3.2, arXiv 2512.02556.
    """

    neutral_fields: ClassVar = frozenset({"selector_heads", "selector_loss"})

    selector: Literal["none", "dsa"] = "none"
    """Whether a learned indexer (`dsa`) picks the past tokens that attention reads."""
    selector_topk: Annotated[int, Field(ge=2)] = 64
    """Tokens a query reads at most; up to so many this is dense attention. With a selector, as all `selector_…`."""
    selector_heads: PositiveInt = 4
    """Heads of the indexer."""
    selector_dim: Annotated[int, Field(ge=4, multiple_of=2)] = 32
    """Channels of an indexer's head."""
    selector_loss: Literal["align", "task"] = "align"
    """What trains the indexer, whose input is detached: `align`, the KL divergence of attention's distribution over the
    tokens it reads from the softmax of their scores; `task`, the model's own loss, as though scores had been added to
    those of attention (straight-through)."""

    @model_validator(mode="after")
    def _selects_from_all(self) -> Self:
        if self.selector != "none" and self.sparsity != "none":
            raise ValueError(f"selector {self.selector} chooses among all past tokens, expected sparsity none")
        return self

    def within(self, ctx: Context) -> Self | None:
        """A selector that picks all tokens is none."""
        dense = self.selector != "none" and self.selector_topk >= ctx.seq_len
        plain = self.model_copy(update={"selector": "none"}) if dense else self
        return super(Selective, plain).within(ctx)

    def op(self) -> OpName:
        """Attention, unless only picked tokens are read."""
        return "attention" if self.selector == "none" else "none"

    def counts_as(self) -> frozenset[str]:
        """A selector, where there is one."""
        return frozenset({"selector"} if self.selector != "none" else ())

    def inert(self) -> frozenset[str]:
        """The settings of a selector that is not there, and knobs of other patterns."""
        unused = super().inert()
        if self.selector == "none":
            unused |= {"selector_topk", "selector_heads", "selector_dim", "selector_loss"}
        return unused

    def tensors(self, ctx: Context) -> dict[str, Tensor]:
        """The indexer's, where there is one; kinds put their own before them."""
        return {} if self.selector == "none" else dict(INDEXER)

    def norms(self, ctx: Context) -> Mapping[str, tuple[Axis, NormKind]]:
        """The branch's norm, and that of the indexer's keys."""
        norms = dict(super().norms(ctx))
        if self.selector != "none":
            norms["selector.k_norm"] = ("selector_dim", "layernorm")
        return norms

    def sizes(self, ctx: Context) -> dict[str, int]:
        """selector_heads, selector_dim and dim."""
        return {"selector_heads": self.selector_heads, "selector_dim": self.selector_dim, "dim": ctx.dim}

    def align(self, parent: Part, ctx: Context, parent_ctx: Context) -> Alignment | None:
        """New indexer heads weigh nothing, and the others make up for the scale that falls with their number."""
        plain = super().align(parent, ctx, parent_ctx)
        if plain is None or not isinstance(parent, Selective):
            return plain
        ratio = math.sqrt(self.selector_heads / parent.selector_heads)
        return dataclasses.replace(plain, scales={**plain.scales, "selector.w.weight": ratio})

    def keys_read(self, ctx: Context) -> float:
        """Tokens that a query reads, the mean over a sequence."""
        if self.selector == "none":
            return seen_pairs(self.pattern, ctx.seq_len) / ctx.seq_len
        return float(np.minimum(np.arange(ctx.seq_len) + 1, self.selector_topk).mean())

    def selection_kept(self, heads: int, ctx: Context) -> float:
        """Per chosen token its place, and for each of the attention's `heads` a score and its weight."""
        return 0.0 if self.selector == "none" else min(self.selector_topk, ctx.seq_len) * (2.0 * heads + 3.0)

    def selection_cost(self, ctx: Context) -> Cost:
        """Projections, and index scores of all pairs where there is a choice; keys in the cache."""
        if self.selector == "none":
            return Cost()
        heads, width = self.selector_heads, self.selector_dim
        at_T = np.arange(self.selector_topk, ctx.seq_len)
        pairs = float((at_T + 1).sum()) / ctx.seq_len
        flops = 2.0 * ctx.dim * (heads * width + width + heads) + 2.0 * heads * (width + 1) * pairs
        return Cost(flops=flops) + self.kv_policy.cost(self.pattern, ctx.seq_len, 1, width)


@operator(Selective, preserves=False)
def toggle_selector(part: Selective, ctx: Context, rng: np.random.Generator) -> Selective | None:
    """A learned selector of the tokens to read, put in (it starts with the latest ones) or taken out."""
    if part.selector != "none":
        return part.evolve(selector="none")
    return part.evolve(
        selector="dsa",
        selector_topk=max(LEAST_TOPK, ctx.seq_len // int(rng.choice([4, 8, 16]))),
        selector_heads=int(rng.choice([2, 4])),
        selector_dim=int(rng.choice([16, 32])),
    )


@operator(Selective, preserves=False)
def tune_selector(part: Selective, ctx: Context, rng: np.random.Generator) -> Selective | None:
    """Half or twice the tokens that the selector picks, or the width of its heads."""
    if part.selector == "none":
        return None
    factor = float(rng.choice([0.5, 2.0]))
    if rng.random() < 0.5:
        return part.evolve(selector_topk=max(LEAST_TOPK, int(part.selector_topk * factor)))
    return part.evolve(selector_dim=max(8, int(part.selector_dim * factor) // 2 * 2))


@operator(Selective, preserves=True)
def widen_selector(part: Selective, ctx: Context, rng: np.random.Generator) -> Selective | None:
    """Twice the selector's heads; the new ones weigh nothing."""
    return None if part.selector == "none" else part.evolve(selector_heads=2 * part.selector_heads)


@operator(Selective, preserves=False)
def narrow_selector(part: Selective, ctx: Context, rng: np.random.Generator) -> Selective | None:
    """Half the selector's heads; those of largest norm stay."""
    if part.selector == "none" or part.selector_heads < 2:
        return None
    return part.evolve(selector_heads=part.selector_heads // 2)


@operator(Selective, preserves=True)
def toggle_selector_loss(part: Selective, ctx: Context, rng: np.random.Generator) -> Selective | None:
    """Train the selector by the other signal: alignment with the attention, or the language model's loss."""
    if part.selector == "none":
        return None
    return part.evolve(selector_loss="task" if part.selector_loss == "align" else "align")
