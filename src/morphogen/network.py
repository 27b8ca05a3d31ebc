"""Blueprint to LanguageModel. B batch, T tokens, D model dim, V vocabulary."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from morphogen.blueprint.schema import Block, Blueprint, Gene
from morphogen.errors import InputError
from morphogen.parts.base import Branch, Context, Modulation, Record, Spec
from morphogen.parts.initial import draw, stream
from morphogen.parts.layers import Linear, make_norm


class Residual(nn.Module):
    """One block: its branches in order, each added to the stream after the block's modifiers acted on its output."""

    def __init__(self, block: Block, ctx: Context) -> None:
        super().__init__()
        self.parallel = block.parallel
        self.extras = nn.ModuleList()
        self.order: list[tuple[str, nn.Module]] = []
        self.modifiers: list[Modulation] = []
        for slot, _, part in block.parts():
            module = part.build(ctx)
            if slot == "extra":
                self.extras.append(module)
            else:
                self.add_module(slot, module)
            if isinstance(module, Modulation):
                self.modifiers.append(module)
            else:
                self.order.append((slot, module))

    def forward(self, x_BTD: Tensor) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        block_input_BTD = x_BTD
        for slot, branch in self.order:
            source_BTD = block_input_BTD if self.parallel else x_BTD
            y_BTD = branch(source_BTD)
            for modifier in self.modifiers:
                y_BTD = modifier.modulate(slot, y_BTD, source_BTD)
            x_BTD = x_BTD + y_BTD
        return x_BTD


class LanguageModel(nn.Module):
    """A decoder-only language model: token ids (B, T) to logits (B, T, V)."""

    def __init__(self, blueprint: Blueprint) -> None:
        super().__init__()
        self.blueprint = blueprint
        self.recompute = False
        self.record: Record | None = None
        ctx = blueprint.context()
        self.emb = nn.Embedding(ctx.vocab, ctx.dim, _weight=torch.empty(ctx.vocab, ctx.dim))
        self.dropout = nn.Dropout(blueprint.emb.dropout)
        self.blocks = nn.ModuleList(Residual(block, ctx) for block in blueprint.blocks)
        self.norm = make_norm(ctx.norm, ctx.dim)
        self.head = None
        if not blueprint.head.tie_embeddings:
            self.head = Linear(ctx.dim, ctx.vocab)

    def hidden(self, ids_BT: Tensor) -> Tensor:
        """Normalised final hidden states, (B, T, D)."""
        x_BTD = self.dropout(self.emb(ids_BT))
        for block in self.blocks:
            x_BTD = self._recomputed(block, x_BTD) if self.recompute and self.training else block(x_BTD)
        return cast(Tensor, self.norm(x_BTD))

    def _recomputed(self, block: nn.Module, x_BTD: Tensor) -> Tensor:
        """The block, run again in the backward pass. What it reports then goes to a record that nobody reads."""
        if self.record is None:
            return cast(Tensor, checkpoint(block, x_BTD, use_reentrant=False))
        contexts = (contextlib.nullcontext(), self.recording())
        return cast(Tensor, checkpoint(block, x_BTD, use_reentrant=False, context_fn=lambda: contexts))

    @contextlib.contextmanager
    def recording(self) -> Iterator[Record]:
        """A record that branches report to in the forward passes made in this context.

        >>> with model.recording() as record:
        ...     loss = loss_of(model(ids_BT))
        >>> auxiliary = record.loss({"balance": 1.0})
        """
        record, outer = Record(), self.record
        self._report_to(record)
        try:
            yield record
        finally:
            self._report_to(outer)

    def _report_to(self, record: Record | None) -> None:
        self.record = record
        for module in self.modules():
            if isinstance(module, Branch):
                module.record = record

    def forward(self, ids_BT: Tensor) -> Tensor:
        """Logits (B, T, V); position t sees tokens 0..t."""
        weight_VD = self.emb.weight if self.head is None else self.head.weight
        return F.linear(self.hidden(ids_BT), weight_VD)


def specs(blueprint: Blueprint) -> dict[str, tuple[Gene, str, Spec]]:
    """Every tensor of the model by its name in the state dict: its gene, its name within the part, its spec."""
    return {
        gene.tensor(name): (gene, name, spec)
        for gene in blueprint.genes()
        for name, spec in gene.part.specs(gene.ctx).items()
    }


def parameter_count(blueprint: Blueprint) -> int:
    """Trainable parameters; a tied head counts once."""
    return sum(_numel(spec.shape) for _, _, spec in specs(blueprint).values() if not spec.buffer)


def _numel(shape: tuple[int, ...]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total


def fresh(gene: Gene, name: str, spec: Spec, seed: int) -> Tensor:
    """A fresh fp32 tensor. Its stream derives from the seed and the gene, so that position and order do not matter."""
    return draw(spec.init, spec.shape, stream(seed, gene.key, name))


def initial_state(blueprint: Blueprint, seed: int) -> dict[str, Tensor]:
    """A whole fresh state dict."""
    return {full: fresh(gene, name, spec, seed) for full, (gene, name, spec) in specs(blueprint).items()}


def assemble(blueprint: Blueprint, state: Mapping[str, Tensor]) -> LanguageModel:
    """The model holding exactly the tensors of `state`, not copies. InputError where names or shapes differ."""
    wanted = {full: spec.shape for full, (_, _, spec) in specs(blueprint).items()}
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if wanted != found:
        missing, extra = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
        shapes = [f"{n}: {found[n]} for {wanted[n]}" for n in wanted if n in found and wanted[n] != found[n]]
        parts = (("missing", missing), ("unexpected", extra), ("of another shape", shapes))
        text = "; ".join(f"{len(names)} {what} ({names[0]}, ...)" for what, names in parts if names)
        raise InputError(f"the weights are not those of blueprint {blueprint.name!r}: {text}")
    with torch.device("meta"):
        model = LanguageModel(blueprint)
    model.load_state_dict(dict(state), strict=True, assign=True)
    return model


def build(blueprint: Blueprint, seed: int = 0, vocab: int | None = None) -> LanguageModel:
    """A freshly initialised model. `vocab` fills in `emb.vocab` where that is null.

    >>> model = build(blueprint, seed=0, vocab=256)
    >>> logits_BTV = model(ids_BT)
    """
    if vocab is not None:
        blueprint = blueprint.with_vocab(vocab)
    return assemble(blueprint, initial_state(blueprint, seed))
